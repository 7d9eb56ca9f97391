"""The command line: options, one library call, one summary. Imports wait for their command."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvwstream import __version__
from kvwstream.apply_command import apply
from kvwstream.errors import KvwstreamError, OptionError, Stop
from kvwstream.options import (
    Accessor,
    Accessors,
    Artefacts,
    Config,
    CrossAttention,
    Data,
    Device,
    Dtype,
    Format,
    Formats,
    LogJson,
    Model,
    Power,
    SkipBadRows,
    Split,
    Store,
    Task,
    Threshold,
    Tokens,
    Until,
)

app = typer.Typer(
    help="Training-free unlearning by Knowledge Vector Weakening: collect coefficient statistics, "
    "reduce them, apply them to a checkpoint, audit all three.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


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
    store: Store,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per record.")] = 1,
    part_size: Annotated[int, typer.Option(min=1, help="Records per part.")] = 64,
    tokens: Annotated[Tokens, typer.Option(help="Positions that count.")] = Tokens.answer,
    moments: Annotated[str, typer.Option(help="Of abs,signed,square.")] = "abs",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the examples.")] = 0,
    cross_attention: CrossAttention = False,
    config: Config = None,
    split: Split = "train",
    format: Format = Formats.auto,
    task: Task = None,
    skip_bad_rows: SkipBadRows = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and examples only.")] = False,
    log_json: LogJson = False,
) -> None:
    """Run forward passes over DATA and keep the coefficient sums of every record in STORE.

    The same command again goes on where an earlier one was stopped.
    """
    from kvwstream.examples import BadRow
    from kvwstream.pipelines import collect as pipeline
    from kvwstream.plan import canonical_moments
    from kvwstream.preview import print_examples
    from kvwstream.progress import progress_for
    from kvwstream.readers import read_examples

    _quiet_transformers()
    bad: list[BadRow] = []
    on_bad_row = bad.append if skip_bad_rows else None
    examples = read_examples(
        data,
        format=format.value,
        task=task,
        config=config,
        split=split,
        seed=seed,
        on_bad_row=on_bad_row,
    )
    prepared = pipeline.prepare(
        model,
        examples,
        on_bad_row=on_bad_row,
        batch_size=batch_size,
        part_size=part_size,
        tokens=tokens.value,
        moments=canonical_moments(moments.split(",")),
        dtype=dtype,
        device=device,
        threads=threads,
        limit=limit,
        seed=seed,
        cross_attention=cross_attention,
    )
    progress = progress_for(log_json=log_json)
    for row in bad:
        progress.tell(f"left out: {row.place}: {row.reason}", **row._asdict())
    if dry_run:
        _table(prepared.summary())
        print_examples(prepared, 3)
        return
    plan = "\n".join(f"{name:>9}  {value}" for name, value in prepared.summary())
    progress.tell(plan, plan=prepared.plan.to_dict())
    written = pipeline.collect(prepared, store, skipped=bad, progress=progress)
    positions = int(written.examples.num_positions.sum())
    typer.echo(
        f"{store}: {written.plan.num_records} records, {positions} positions measured, "
        f"every part sealed ({written.plan.num_parts})"
    )


@app.command()
def reduce(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Statistics to write; must not exist.")],
    retain: Annotated[list[str], typer.Option(help="Store of data to retain; repeatable.")],
    forget: Annotated[list[str] | None, typer.Option(help="To forget; repeatable.")] = None,
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


app.command()(apply)


@app.command()
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


@app.command()
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

    _quiet_transformers()
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
    _table(
        [
            ("examples", str(len(result.judgements))),
            ("accuracy", f"{result.accuracy:.3f}"),
            ("ROUGE-L", f"{result.rouge_l:.3f} (F-measure), {result.rouge_l_recall:.3f} (recall)"),
        ]
    )
    if out:
        result.write(out)


@app.command()
def models(
    model: Model,
) -> None:
    """Show the value projections that MODEL would be measured and weakened at."""
    from kvwstream.checkpoint import resolve_model
    from kvwstream.preview import describe_sites

    for line in describe_sites(resolve_model(model)):
        typer.echo(line)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="New folder for results.")] = Path("demo-output"),
    cache: Annotated[Path | None, typer.Option(help="Where the base model is kept.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each kind.")] = None,
) -> None:
    """Let SmolLM2 forget forty capitals: collect, reduce, apply, evaluate, and a table."""
    from kvwstream.pipelines import demo as pipeline
    from kvwstream.progress import progress_for

    _quiet_transformers()
    pipeline.demo(out, cache=cache, gamma=gamma, limit=limit, progress=progress_for())


def main() -> None:
    """Run the command line; a domain error is one line on standard error and exit code 1 or 2."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of writes cut off by a stop
    try:
        app()
    except Stop as stop:
        print(f"kvwstream: {stop}; nothing half-written counts, run it again", file=sys.stderr)
        sys.exit(1)
    except (KvwstreamError, OSError) as error:
        print(f"kvwstream: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, OptionError) else 1)


def _stop(number: int, frame: object) -> None:
    raise Stop(f"stopped by {signal.Signals(number).name}")


def _table(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        typer.echo(f"{name:>9}  {value}")


def _quiet_transformers() -> None:
    """One progress bar is enough, and it is ours."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
