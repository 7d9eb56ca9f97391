"""`kvwstream forget-example`."""

from __future__ import annotations

from typing import Annotated

import typer

from kvwstream.options import Store


def forget_example(
    store: Store,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of examples to leave out.")],
) -> None:
    """Withdraw examples from STORE: `reduce` leaves them out, earlier results stay auditable."""
    from kvwstream.pipelines.withdraw import withdraw

    names = list(dict.fromkeys(ids))
    revision = withdraw(store, names)
    typer.echo(
        f"{store}: {len(names)} examples withdrawn, {len(revision.removed)} in all (revision "
        f"{revision.number}); what was reduced before still counts them, run `kvwstream reduce` "
        "and `kvwstream apply` again"
    )
