"""`kvwstream status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from kvwstream.options import Store

if TYPE_CHECKING:
    from rich.console import Group

    from kvwstream.pipelines.status import Status

SECONDS_BETWEEN_LOOKS = 2.0


def status(
    store: Store,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again until it is complete.")
    ] = False,
) -> None:
    """Tell how far STORE is: parts sealed, running and missing, rates, workers, time left."""
    from rich.console import Console
    from rich.live import Live

    from kvwstream.pipelines.status import status as look

    console, seen = Console(highlight=False), look(store)
    if not watch:
        console.print(_shown(store, seen), soft_wrap=True)
        return
    with Live(_shown(store, seen), console=console, auto_refresh=False) as live:
        while len(seen.sealed) < seen.num_parts:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            seen = look(store)
            live.update(_shown(store, seen), refresh=True)


def _shown(store: str, seen: Status) -> Group:
    from rich.console import Group
    from rich.table import Table

    from kvwstream.progress import duration

    left = seen.seconds_left
    lines = [
        f"{store}: {len(seen.sealed):,} of {seen.num_parts:,} parts sealed, "
        f"{len(seen.running):,} running, {seen.missing:,} missing",
        f"{seen.sealed_records:,} of {seen.num_records:,} records sealed"
        + (", which is where C_r was stable" if seen.ending else "")
        + (f", {seen.records_per_second:.1f} records/s" if seen.records_per_second else "")
        + (f", {duration(left)} left" if left else "")
        + ("" if left is not None else "; nobody is at work, run the same `kvwstream collect`"),
    ]
    if not seen.workers:
        return Group(*lines)
    table = Table(box=None, pad_edge=False)
    table.add_column("worker")
    for name in ("part", "records of it", "records/s", "last sign"):
        table.add_column(name, justify="right")
    for worker in seen.workers:
        note, ago = worker.note, f"{duration(worker.age)} ago"
        table.add_row(
            note.worker,
            str(note.part),
            f"{note.records}/{seen.plan.part(note.part).num_records}",
            f"{note.records_per_second:.1f}",
            f"{ago}, silent" if worker.is_silent else ago,
        )
    return Group(*lines, table)
