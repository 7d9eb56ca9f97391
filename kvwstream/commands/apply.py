"""`kvwstream apply`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kvwstream.options import (
    Accessor,
    Accessors,
    Arithmetic,
    Model,
    Power,
    Shape,
    Shapes,
    Threshold,
    Until,
)


class Kinds(StrEnum):
    """What `apply` writes."""

    checkpoint = "checkpoint"
    adapter = "adapter"
    gates = "gates"


def apply(
    model: Model,
    statistics: Annotated[str, typer.Argument(metavar="STATISTICS", help="What `reduce` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Result to write; must not exist.")],
    gamma: Annotated[float, typer.Option(help="Strength; 0 changes nothing.")],
    layers: Annotated[str, typer.Option(help="Decoder layers first:last, e.g. 1:25.")],
    power: Power = 1.0,
    threshold: Threshold = 0.0,
    accessor: Accessor = Accessors.record,
    until: Until = None,
    shape: Shape = Shapes.paper,
    kind: Annotated[
        Kinds, typer.Option("--as", help="A whole checkpoint, a PEFT adapter, or a gates file.")
    ] = Kinds.checkpoint,
    arithmetic: Annotated[
        Arithmetic | None,
        typer.Option(help="exact rounds once, in-place at every record; default: as collected."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Go on from an earlier state, in-place only.")
    ] = None,
    as_frozen: Annotated[
        bool,
        typer.Option("--as-frozen", help="A progressive store at another strength."),
    ] = False,
) -> None:
    """Write a weakened MODEL, or what weakens it, without building the model."""
    from kvwstream.accessor import LayerRange
    from kvwstream.checkpoint import resolve_model
    from kvwstream.pipelines import apply as pipeline
    from kvwstream.strength import Strength

    chosen = LayerRange.parse(layers)
    strength = Strength(gamma, chosen, power, threshold, accessor.value, until, shape.value)
    manifest = pipeline.apply(
        resolve_model(model),
        statistics,
        out,
        strength,
        kind=kind.value,
        arithmetic=arithmetic.value if arithmetic else None,
        as_frozen=as_frozen,
        start=start,
    )
    if kind is Kinds.checkpoint:
        written = f"{len(manifest['weakened'])} tensors weakened"
    else:
        written = f"gates of {len(manifest['gates'])} sites"
    kept = f", {len(manifest['kept'])} kept" if kind is Kinds.checkpoint else ""
    typer.echo(f"{out}: {written} by {manifest['num_forget_records']} forget records{kept}")
