"""`kvwstream reduce`."""

from __future__ import annotations

from typing import Annotated

import typer

from kvwstream.options import LogJson


def reduce(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Statistics to write; must not exist.")],
    retain: Annotated[
        list[str] | None, typer.Option(help="Store of data to retain; repeatable.")
    ] = None,
    forget: Annotated[list[str] | None, typer.Option(help="To forget; repeatable.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Statistics of the requests before, instead of --retain.")
    ] = None,
    log_json: LogJson = False,
) -> None:
    """Turn stores into C_r, C_f, the Forget Knowledge Accessor and its sum."""
    from kvwstream.pipelines import reduce as pipeline
    from kvwstream.progress import progress_for

    stored = pipeline.reduce(
        retain or [], out, forget or [], after=after, progress=progress_for(log_json=log_json)
    )
    typer.echo(
        f"{out}: {stored.attributes['num_retain_records']} retain records, "
        f"{stored.num_forget_records} forget records, {len(stored.sites)} sites"
    )
    unseen = stored.unseen_sites()
    if unseen:
        typer.echo(f"{len(unseen)} sites saw no retain token and keep gate 1: {', '.join(unseen)}")
