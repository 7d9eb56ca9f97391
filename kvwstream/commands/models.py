"""`kvwstream models`."""

from __future__ import annotations

import typer

from kvwstream.options import Model


def models(
    model: Model,
) -> None:
    """Show the value projections that MODEL would be measured and weakened at."""
    from kvwstream.checkpoint import resolve_model
    from kvwstream.preview import describe_sites

    for line in describe_sites(resolve_model(model)):
        typer.echo(line)
