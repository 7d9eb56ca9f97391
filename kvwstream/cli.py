"""The command line: options, one library call, one summary. Imports wait for their command."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kvwstream import __version__
from kvwstream.errors import KvwstreamError, OptionError

app = typer.Typer(
    help="Training-free unlearning by Knowledge Vector Weakening: collect coefficient statistics, "
    "reduce them, apply them to a checkpoint, audit all three.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="Local folder of a checkpoint, or a hub id.")]
Data = Annotated[
    str, typer.Argument(help="JSON-lines file, local `datasets` folder, or hub data set.")
]
Split = Annotated[str, typer.Option(help="Split of a data set.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a data set.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Progress as JSON lines.")]


class Tokens(StrEnum):
    """Which positions count."""

    answer = "answer"
    all = "all"


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Training-free unlearning by Knowledge Vector Weakening."""
    if version:
        typer.echo(__version__)


@app.command()
def collect(
    model: Model,
    data: Data,
    store: Annotated[str, typer.Argument(help="Zarr store to begin, or to go on with.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per record.")] = 1,
    part_size: Annotated[int, typer.Option(min=1, help="Records per part.")] = 64,
    tokens: Annotated[Tokens, typer.Option(help="Positions that count.")] = Tokens.answer,
    moments: Annotated[str, typer.Option(help="Of abs,signed,square.")] = "abs",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the examples.")] = 0,
    config: Config = None,
    split: Split = "train",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and examples only.")] = False,
    log_json: LogJson = False,
) -> None:
    """Run forward passes over DATA and keep the coefficient sums of every record in STORE.

    The same command again goes on where an earlier one was stopped.
    """
    from kvwstream.pipelines import collect as pipeline
    from kvwstream.preview import print_examples
    from kvwstream.progress import progress_for
    from kvwstream.readers import read_examples

    _quiet_transformers()
    prepared = pipeline.prepare(
        model,
        read_examples(data, config=config, split=split),
        batch_size=batch_size,
        part_size=part_size,
        tokens=tokens.value,
        moments=tuple(moments.split(",")),
        dtype=dtype,
        device=device,
        threads=threads,
        limit=limit,
        seed=seed,
    )
    progress = progress_for(log_json=log_json)
    if dry_run:
        _table(prepared.summary())
        print_examples(prepared, 3)
        return
    for name, value in prepared.summary():
        progress.tell(f"{name:>9}  {value}", **{name: value})
    written = pipeline.collect(prepared, store, progress=progress)
    plan = written.plan
    typer.echo(
        f"{store}: {plan.num_records} records in {plan.num_parts} sealed parts, "
        f"{int(written.examples.num_positions.sum())} {plan.tokens} positions"
    )


@app.command()
def reduce(
    out: Annotated[str, typer.Argument(help="Statistics group to write; must not exist.")],
    retain: Annotated[list[str], typer.Option(help="Store of data to retain; repeatable.")],
    forget: Annotated[list[str] | None, typer.Option(help="Store of data to forget.")] = None,
    log_json: LogJson = False,
) -> None:
    """Turn stores into C_r, C_f, the Forget Knowledge Accessor and its sum."""
    from kvwstream.pipelines import reduce as pipeline
    from kvwstream.progress import progress_for

    stored = pipeline.reduce(retain, out, forget or [], progress=progress_for(log_json=log_json))
    typer.echo(
        f"{out}: {stored.attributes['num_retain_records']} retain records, "
        f"{stored.num_forget_records} forget records, {len(stored.sites)} sites"
    )
    unseen = stored.unseen_sites()
    if unseen:
        typer.echo(f"{len(unseen)} sites saw no retain token and keep gate 1: {', '.join(unseen)}")


@app.command()
def apply(
    model: Model,
    statistics: Annotated[str, typer.Argument(help="What `reduce` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
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


@app.command()
def audit(
    paths: Annotated[list[str], typer.Argument(help="Stores, statistics, weakened checkpoints.")],
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


@app.command()
def evaluate(
    model: Model,
    data: Data,
    out: Annotated[Path | None, typer.Option(help="JSON lines, one per example.")] = None,
    statistics: Annotated[str | None, typer.Option(help="Try gates: statistics,")] = None,
    gamma: Annotated[float | None, typer.Option(help="their strength")] = None,
    layers: Annotated[str | None, typer.Option(help="and layers.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 50,
    dtype: Dtype = "auto",
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    config: Config = None,
    split: Split = "train",
    log_json: LogJson = False,
) -> None:
    """Ask MODEL the questions of DATA; with --statistics, as if it were weakened already."""
    given = [value is not None for value in (statistics, gamma, layers)]
    if any(given) and not all(given):
        raise OptionError("--statistics, --gamma and --layers belong together: give all or none")
    from kvwstream.accessor import LayerRange
    from kvwstream.checkpoint import resolve_model
    from kvwstream.pipelines import evaluate as pipeline
    from kvwstream.progress import progress_for
    from kvwstream.readers import read_examples

    _quiet_transformers()
    strength = None
    if statistics is not None and gamma is not None and layers is not None:
        strength = pipeline.Strength(statistics, gamma, LayerRange.parse(layers))
    result = pipeline.evaluate(
        resolve_model(model),
        read_examples(data, config=config, split=split)[:limit],
        strength=strength,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        progress=progress_for(log_json=log_json),
    )
    if out:
        result.write(out)
    _table(
        [
            ("examples", str(len(result.judgements))),
            ("accuracy", f"{result.accuracy:.3f}"),
            ("ROUGE-L", f"{result.rouge_l:.3f} (F-measure), {result.rouge_l_recall:.3f} (recall)"),
        ]
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for what it makes; must not exist.")] = Path(
        "demo-output"
    ),
    cache: Annotated[Path | None, typer.Option(help="Folder for the converted base model.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength.")] = None,
) -> None:
    """Let SmolLM2 forget forty capitals: collect, reduce, apply, evaluate, and a table."""
    from kvwstream.pipelines import demo as pipeline
    from kvwstream.progress import progress_for

    _quiet_transformers()
    pipeline.demo(out, cache=cache, gamma=gamma, progress=progress_for())


def main() -> None:
    """Run the command line; a domain error is one line on standard error and exit code 1 or 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except KvwstreamError as error:
        print(f"kvwstream: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, OptionError) else 1)


def _table(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        typer.echo(f"{name:>9}  {value}")


def _quiet_transformers() -> None:
    """One progress bar is enough, and it is ours."""
    from typing import cast

    from transformers.utils import logging

    cast(Any, logging).disable_progress_bar()
