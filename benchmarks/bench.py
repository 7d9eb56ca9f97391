"""Ratios measured in one run: `make bench`. Medians of interleaved repetitions, with their range.

Absolute seconds depend on the machine and mean little; every row compares two things done in turn.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import zarr
from rich.console import Console
from rich.table import Table

from benchmarks.made_up import seconds
from kvwstream.accessor import LayerRange
from kvwstream.models import inference, load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.cost import cost_ratios
from kvwstream.pipelines.demo import facts
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.strength import Strength

RESULTS = Path(__file__).parent / "results"
LAYERS = LayerRange(1, 27)


class Row(NamedTuple):
    """One comparison: `values` are ratios, or megabytes where the name says so."""

    name: str
    target: str
    values: list[float]


def interleaved(
    ours: Callable[[Path], object], theirs: Callable[[Path], object], folder: Path, repeats: int
) -> list[float]:
    """Ratios of seconds, ours over theirs, in turn, each into a fresh place; one warm-up."""
    ratios = []
    for turn in range(repeats + 1):
        places = [folder / f"{turn}-{who}" for who in ("ours", "theirs")]
        times = [
            seconds(lambda w=w, p=p: w(p)) for w, p in zip((ours, theirs), places, strict=True)
        ]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        if turn:
            ratios.append(times[0] / times[1])
    return ratios


def copy_and_sync(model: Path, out: Path) -> None:
    """What copying costs when the copy must survive a power cut, as a weakened one does."""
    subprocess.run(["cp", "-r", model, out], check=True)
    subprocess.run(["sync", *out.iterdir()], check=True)


def peak_megabytes(*arguments: str) -> float:
    """Peak resident memory of this module run with arguments, as it prints it last."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


APPLY = """
import sys
from pathlib import Path
from kvwstream.accessor import LayerRange
from kvwstream.pipelines.apply import apply
from kvwstream.strength import Strength
model, statistics, out = sys.argv[1:]
apply(Path(model), statistics, Path(out), Strength(0.02, LayerRange(1, 27)))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def apply_peak(model: Path, statistics: str, folder: Path) -> float:
    """Peak resident megabytes of a process that does nothing but apply."""
    out = folder / "peak"
    command = [sys.executable, "-c", APPLY, model, statistics, out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    return float(done.stdout) / 1000


def forwards(model: str, how: str) -> None:
    """Twenty batches, plain or collected; prints the peak since the model was loaded."""
    prepared = prepare(model, facts("retain"), batch_size=4, part_size=20, limit=80)
    loaded = load_model(Path(model))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    if how == "collect":
        with tempfile.TemporaryDirectory() as folder:
            collect(prepared, f"{folder}/s.zarr")
    else:
        with inference(loaded.model):
            for record in range(prepared.plan.num_records):
                loaded.model(**prepared.record_batch(record).inputs)
    print(resident_peak())


def resident_peak() -> float:
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1000


def read_bytes(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def read_zarr(folder: Path) -> None:
    group = zarr.open_group(folder / "parts", mode="r")
    for _, part in group.groups():
        for _, array in part.arrays():
            array[...]


def measure(model: Path, folder: Path) -> list[Row]:
    prepared = prepare(str(model), facts("retain"))
    stores = {kind: str(folder / f"{kind}.zarr") for kind in ("retain", "forget")}
    for kind, store in stores.items():
        collect(prepare(str(model), facts(kind)), store)
    statistics = str(folder / "statistics.zarr")
    reduce([stores["retain"]], statistics, [stores["forget"]])
    big = folder / "big.zarr"
    collect(prepare(str(model), facts("retain"), moments=("abs", "signed", "square")), str(big))

    def weaken(out: Path) -> None:
        apply(model, statistics, out, Strength(0.02, LAYERS))

    def reduce_retain(out: Path) -> None:
        reduce([stores["retain"]], str(out))

    ratios = cost_ratios(load_model(model), prepared, prepared.plan.part(0))
    rows = [Row("collect / plain forward, seconds", "<= 0.80", ratios)]
    peaks = [
        peak_megabytes("forwards", str(model), "collect")
        / peak_megabytes("forwards", str(model), "plain")
        for _ in range(3)
    ]
    rows.append(Row("collect / plain forward, peak memory", "<= 1.05", peaks))
    synced = interleaved(weaken, lambda out: copy_and_sync(model, out), folder, 5)
    rows.append(Row("apply / cp and sync, seconds", "<= 1.5", synced))
    cached = interleaved(
        weaken, lambda out: subprocess.run(["cp", "-r", model, out], check=True), folder, 5
    )
    rows.append(Row("apply (synced) / cp (page cache), seconds", "", cached))
    rows.append(Row("apply, peak megabytes", "< 300", [apply_peak(model, statistics, folder)]))
    store = Path(stores["retain"])
    once = interleaved(reduce_retain, lambda _: read_bytes(store), folder, 5)
    rows.append(Row("reduce / reading the store's bytes, seconds", "", once))
    decoded = interleaved(reduce_retain, lambda _: read_zarr(store), folder, 5)
    rows.append(Row("reduce / reading the store with zarr, seconds", "", decoded))
    return rows


def show(rows: list[Row]) -> None:
    table = Table(title="kvwstream on SmolLM2-135M, ratios measured in one run")
    for name in ("what", "median", "range", "target"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        span = f"{min(row.values):.2f} - {max(row.values):.2f}"
        table.add_row(row.name, f"{median(row.values):.2f}", span, row.target)
    Console(width=100).print(table)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(smollm2_checkpoint(), Path(folder))
    show(rows)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    RESULTS.mkdir(exist_ok=True)
    document = {"machine": machine, "rows": [row._asdict() for row in rows]}
    (RESULTS / "main-job.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["forwards", model, how]:
            forwards(model, how)
        case _:
            main()
