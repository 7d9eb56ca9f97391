"""The options that several commands share, and what they may be."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Local folder of a checkpoint, or a hub id.")
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="JSON-lines file, local `datasets` folder, or hub data set."
    ),
]
Store = Annotated[
    str, typer.Argument(metavar="STORE", help="Zarr store, a path or s3://, gs://, az://.")
]
Artefacts = Annotated[
    list[str], typer.Argument(metavar="PATH", help="Stores, statistics, what `apply` wrote.")
]
Split = Annotated[str, typer.Option(help="Split of a data set.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a data set.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="auto, balanced or sequential: layers over all GPUs of the worker."),
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Progress as JSON lines.")]


class Tokens(StrEnum):
    """Which positions count."""

    answer = "answer"
    question = "question"
    image = "image"
    all = "all"


class Arithmetic(StrEnum):
    """When products are rounded."""

    exact = "exact"
    in_place = "in-place"


class Formats(StrEnum):
    """Whose rows the data are."""

    auto = "auto"
    jsonl = "jsonl"
    clear = "clear"
    mllmu = "mllmu"
    tofu = "tofu"


CrossAttention = Annotated[
    bool, typer.Option("--cross-attention", help="Also layers that attend to images.")
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave out bad rows; the store says which.")
]
Format = Annotated[Formats, typer.Option(help="Whose rows they are; auto: by their columns.")]
Task = Annotated[str | None, typer.Option(help="Which of a benchmark's questions.")]


class Accessors(StrEnum):
    """Which C_f enters A."""

    record = "record"
    running = "running"
    mean = "mean"


class Shapes(StrEnum):
    """What A is made of."""

    paper = "paper"
    energy = "energy"
    coherent = "coherent"


Shape = Annotated[
    Shapes,
    typer.Option(help="A: the paper's, energy or coherent; see docs/shapes.md."),
]
Power = Annotated[float, typer.Option(help="P in the sum of max(0, A - T)^P; a multiple of 0.5.")]
Threshold = Annotated[float, typer.Option(help="T in the sum of max(0, A - T)^P.")]
Accessor = Annotated[
    Accessors, typer.Option(help="C_f in A: of each record, their running mean, or their mean.")
]
Until = Annotated[int | None, typer.Option(help="Only the first so many forget records.")]
