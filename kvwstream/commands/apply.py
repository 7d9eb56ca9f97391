"""`kvwstream apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvwstream.options import Model


def apply(
    model: Model,
    statistics: Annotated[str, typer.Argument(metavar="STATISTICS", help="What `reduce` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    gamma: Annotated[float, typer.Option(help="Strength; 0 changes nothing.")],
    layers: Annotated[str, typer.Option(help="Decoder layers first:last, e.g. 1:25.")],
) -> None:
    """Write a weakened copy of MODEL, shard by shard, without building the model."""
    from kvwstream.accessor import LayerRange
    from kvwstream.checkpoint import resolve_model
    from kvwstream.pipelines import apply as pipeline

    chosen = LayerRange.parse(layers)
    manifest = pipeline.apply(resolve_model(model), statistics, out, gamma=gamma, layers=chosen)
    typer.echo(
        f"{out}: {len(manifest['weakened'])} tensors weakened by {manifest['num_forget_records']} "
        f"forget records, {len(manifest['kept'])} kept"
    )
