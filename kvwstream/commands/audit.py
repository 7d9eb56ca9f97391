"""`kvwstream audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from kvwstream.options import Artefacts


def audit(
    paths: Artefacts,
    base: Annotated[str | None, typer.Option(help="Base checkpoint to compare with.")] = None,
    statistics: Annotated[
        str | None, typer.Option(help="Statistics to make weakened tensors anew from.")
    ] = None,
) -> None:
    """Check artefacts offline; exit code 0 only if everything holds."""
    from kvwstream.checkpoint import resolve_model
    from kvwstream.pipelines import audit as pipeline

    folder = resolve_model(base) if base else None
    result = pipeline.audit(paths, base=folder, statistics=statistics)
    for word, lines in (("holds", result.verified), ("note", result.notes)):
        for line in lines:
            typer.echo(f"{word:>6}  {line}")
    for line in result.findings:
        typer.echo(f" wrong  {line}", err=True)
    if not result.passed:
        raise typer.Exit(1)
