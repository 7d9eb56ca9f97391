"""`kvwstream evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvwstream.commands.shown import quiet_transformers, show_table
from kvwstream.options import (
    Accessor,
    Accessors,
    Config,
    Data,
    Device,
    Dtype,
    Format,
    Formats,
    LogJson,
    Model,
    Power,
    Split,
    Task,
    Threshold,
    Until,
)


def evaluate(
    model: Model,
    data: Data,
    out: Annotated[Path | None, typer.Option(help="JSON lines, one per example.")] = None,
    statistics: Annotated[str | None, typer.Option(help="As if weakened by these.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength, with --statistics.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, with --statistics.")] = None,
    power: Power = 1.0,
    threshold: Threshold = 0.0,
    accessor: Accessor = Accessors.record,
    until: Until = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 50,
    dtype: Dtype = "auto",
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    config: Config = None,
    split: Split = "train",
    format: Format = Formats.auto,
    task: Task = None,
    log_json: LogJson = False,
) -> None:
    """Ask MODEL the questions of DATA; with --statistics, as if it were weakened already."""
    from kvwstream.checkpoint import resolve_model
    from kvwstream.pipelines import evaluate as pipeline
    from kvwstream.progress import progress_for
    from kvwstream.readers import read_examples
    from kvwstream.strength import Strength

    quiet_transformers()
    shape = {"power": power, "threshold": threshold, "accessor": accessor.value, "until": until}
    strength = Strength.parse(statistics, gamma, layers, **shape)
    result = pipeline.evaluate(
        resolve_model(model),
        read_examples(data, format=format.value, task=task, config=config, split=split)[:limit],
        statistics=statistics,
        strength=strength,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        progress=progress_for(log_json=log_json),
    )
    show_table(
        [
            ("examples", str(len(result.judgements))),
            ("accuracy", f"{result.accuracy:.3f}"),
            ("ROUGE-L", f"{result.mean('rougeL_f'):.3f} (F), {result.mean('rougeL_recall'):.3f}"),
        ]
    )
    if out:
        result.write(out)
