"""`kvwstream collect`."""

from __future__ import annotations

from typing import Annotated

import typer

from kvwstream.commands.shown import quiet_transformers, show_table
from kvwstream.errors import OptionError
from kvwstream.options import (
    Arithmetic,
    Config,
    CrossAttention,
    Data,
    Device,
    DeviceMap,
    Dtype,
    Format,
    Formats,
    LogJson,
    Model,
    SkipBadRows,
    Split,
    Store,
    Task,
    Tokens,
)

FROZEN = (None, None, None, None, 1, "exact")
"""What the options of a progressive collection are in a frozen one."""


def collect(
    model: Model,
    data: Data,
    store: Store,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per record.")] = 1,
    part_size: Annotated[int, typer.Option(min=1, help="Records per part.")] = 64,
    pass_tokens: Annotated[
        int, typer.Option(min=1, help="Positions in a forward pass at most.")
    ] = 2048,
    sharing: Annotated[
        bool, typer.Option("--sharing/--no-sharing", help="Run common beginnings once.")
    ] = True,
    until_stable: Annotated[
        float | None,
        typer.Option(
            metavar="EPS", help="Retain data: end when no accessor moves by more than EPS."
        ),
    ] = None,
    tokens: Annotated[Tokens, typer.Option(help="Positions that count.")] = Tokens.answer,
    moments: Annotated[str, typer.Option(help="Of abs,signed,square.")] = "abs",
    dtype: Dtype = "auto",
    device: Device = "auto",
    device_map: DeviceMap = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of a cluster here, a model in each.")
    ] = None,
    gpus_per_worker: Annotated[int, typer.Option(min=1, help="With --workers.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler: tcp://..., or a scheduler file.")
    ] = None,
    parts: Annotated[
        str | None, typer.Option(metavar="i/n", help="Share i of n, for array jobs.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads; default the store's, else all, 1 each with several workers."
        ),
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Go on with other versions or devices.")
    ] = False,
    progressive: Annotated[
        bool, typer.Option("--progressive", help="Each record on the model as weakened so far.")
    ] = False,
    retain_statistics: Annotated[
        str | None, typer.Option(help="C_r, with --progressive; or --after.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Statistics of the requests before, with --progressive.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength, with --progressive.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, with --progressive.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="With --progressive.")] = 1,
    arithmetic: Annotated[Arithmetic, typer.Option(help="With --progressive.")] = Arithmetic.exact,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many examples.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the examples.")] = 0,
    cross_attention: CrossAttention = False,
    config: Config = None,
    split: Split = "train",
    format: Format = Formats.auto,
    task: Task = None,
    skip_bad_rows: SkipBadRows = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--explain", help="Plan and examples only.")
    ] = False,
    log_json: LogJson = False,
) -> None:
    """Run forward passes over DATA and keep the coefficient sums of every record in STORE.

    The same command again goes on where an earlier one was stopped.
    """
    from kvwstream.pipelines import collect as pipeline
    from kvwstream.pipelines.cluster import Cluster
    from kvwstream.pipelines.prepare import default_threads, prepare
    from kvwstream.pipelines.progressive import Beginning
    from kvwstream.pipelines.stability import check_until_stable
    from kvwstream.pipelines.worker import Job
    from kvwstream.plan import canonical_moments
    from kvwstream.preview import print_examples, summary
    from kvwstream.progress import progress_for
    from kvwstream.readers import Source

    quiet_transformers()
    share = pipeline.Share.parse(parts) if parts else pipeline.ALL
    cluster = Cluster.chosen(workers, scheduler, gpus_per_worker, share=parts)
    beginning = how = None
    if progressive:
        beginning = Beginning.chosen(retain_statistics, after)
        how = beginning.plan(gamma, layers, arithmetic.value, epochs)
    elif (retain_statistics, after, gamma, layers, epochs, arithmetic.value) != FROZEN:
        raise OptionError(
            "--retain-statistics, --after, --gamma, --layers, --epochs and --arithmetic belong to "
            "--progressive; a frozen collection needs none of them"
        )
    source = Source(data, format.value, task, config, split, seed, skip_bad_rows)
    examples, bad = source.read()
    prepared = prepare(
        model,
        examples,
        on_bad_row=bad.append if skip_bad_rows else None,
        batch_size=batch_size,
        part_size=part_size,
        pass_tokens=pass_tokens,
        sharing=sharing,
        until_stable=until_stable,
        tokens=tokens.value,
        moments=canonical_moments(moments.split(",")),
        dtype=dtype,
        device=device,
        threads=threads or default_threads(store, alone=cluster is None and not parts),
        limit=limit,
        seed=seed,
        cross_attention=cross_attention,
        progressive=how,
    )
    progress = progress_for(log_json=log_json)
    for row in bad:
        progress.tell(f"left out: {row.place}: {row.reason}", **row._asdict())
    pipeline.check_beginning(prepared, beginning, one_by_one=cluster is None and not parts)
    check_until_stable(prepared.plan, whole=not parts)
    if dry_run:
        show_table(summary(prepared))
        print_examples(prepared, 3)
        return
    plan = "\n".join(f"{name:>9}  {value}" for name, value in summary(prepared))
    progress.tell(plan, plan=prepared.plan.to_dict())
    written = pipeline.collect(
        prepared,
        store,
        skipped=bad,
        cluster=cluster,
        job=Job(store, model, source, device, device_map, cross_attention, allow_mixed).absolute(),
        share=share,
        beginning=beginning,
        device_map=device_map,
        allow_mixed=allow_mixed,
        progress=progress,
    )
    sealed, num_parts = len(written.sealed()), written.num_parts
    typer.echo(
        f"{store}: {written.num_records} records, {written.num_positions} positions measured, "
        f"every part sealed ({num_parts})"
        if sealed == num_parts
        else f"{store}: {sealed} of {num_parts} parts sealed, those of share {parts} among them"
    )
