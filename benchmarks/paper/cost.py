"""Figure 3: FLOPs of a batch, wall clock of the whole unlearning, peak memory, method by method.

Wall clock: the methods take turns, round after round, in one process; the median round counts. Of a
gradient method a round runs a few steps, which are scaled to all of them. KVW and MANU run whole
(planning, forward passes, sealing, reducing, gates), given C_r, which is collected once and has a
row of its own. FLOPs are counted by `torch.utils.flop_counter` with eager attention, since it does
not know the CPU's fused kernel. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import reset_peak, resident_peak
from benchmarks.methods import gradient, kvw, manu, mmu, oracle
from benchmarks.methods.training import (
    Pairs,
    Settings,
    draw_pairs,
    label,
    lora,
    train,
)
from benchmarks.paper.beds import capitals
from benchmarks.paper.cases import Case
from benchmarks.paper.settings import Values
from kvwstream.accessor import LayerRange
from kvwstream.batches import Batch
from kvwstream.collector import record_sums
from kvwstream.models import inference
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.sites import find_sites
from kvwstream.strength import Strength

STEPS = 4  # as many as MMU's mask has batches
ROUNDS = 3
ALL_STEPS = 10
RATE = 1e-4
FORWARD = "plain forward"
RETAIN = "C_r, once"
FREE = ("KVW", "MANU")
ROWS = (FORWARD, RETAIN, *FREE, "oracle", *gradient.METHODS)
QUICK_ROWS = (FORWARD, RETAIN, "KVW", "GD")
WHAT = {
    FORWARD: "the forget set once, batches of 1",
    RETAIN: "collect and reduce the retain set, three moments",
    "KVW": "one request: collect (three moments) and reduce the forget set, gates",
    "MANU": "one request: collect (three moments), scores, gates",
    "oracle": "one epoch over the retain set",
}


class Timed(list[Any]):
    """Pairs that note when the first of them is asked for: what comes before is preparation."""

    start = 0.0

    def __iter__(self) -> Iterator[Any]:
        self.start = time.perf_counter()
        return super().__iter__()


class Costs:
    """Every method on one case, ready to be run and counted."""

    def __init__(self, case: Case, home: Path) -> None:
        self.case, self.home = case, home
        self.model = case.loaded.model
        self.settings = Settings(RATE, steps=STEPS)
        self.pairs = Timed(draw_pairs(case.encoder, case.forget, case.retain, self.settings))

    def seconds(self, row: str) -> float:
        """One round of a row, scaled to the whole unlearning."""
        start = time.perf_counter()
        if row == FORWARD:
            for example in self.case.forget:
                self._forward(label(self.case.encoder, [example]))
        elif row == RETAIN:
            self._collect("retain", 4)
            reduce([str(self.home / "retain.zarr")], str(self.home / "retain-statistics.zarr"))
        elif row in FREE:
            self._request(row)
        else:
            self._trained(row, self.pairs)
            end, first = time.perf_counter(), self.pairs.start
            return first - start + (end - first) * self._all_steps(row) / STEPS
        return time.perf_counter() - start

    def flops(self, row: str) -> int:
        """Of one batch: of the forget set, with one of the retain set where a method takes one.

        MMU's mask is made once and not counted.
        """
        if row == RETAIN:
            row = "KVW"
        total = count_flops(lambda: self._batch(row))
        return total - (count_flops(lambda: self._mask(row)) if row.startswith("MMU") else 0)

    def _batch(self, row: str) -> None:
        if row == FORWARD:
            self._forward(self.pairs[0][0])
        elif row in FREE:
            examples = list(self.case.forget[: self.settings.batch_size])
            spans = [self.case.encoder.locate(example) for example in examples]
            batch = self.case.encoder.batch(examples, spans, "answer")
            with inference(self.model):
                record_sums(self.model, find_sites(self.model), batch, ("abs",))
        else:
            self._trained(row, self.pairs[:1])

    def _all_steps(self, row: str) -> int:
        # The oracle learns everything that may stay: one epoch over the retain set.
        size = self.settings.batch_size
        return -(-len(self.case.retain) // size) if row == "oracle" else ALL_STEPS

    def _forward(self, batch: Batch) -> None:
        with inference(self.model):
            self.model(**batch.inputs, use_cache=False)

    def _trained(self, row: str, pairs: Pairs) -> None:
        if row == "oracle":
            with lora(self.model, oracle.RANK, 0) as wrapped:
                train(wrapped, oracle.make_step(wrapped), pairs, self.settings)
        else:
            with gradient.unlearned(row, self.model, pairs, self.settings):
                pass

    def _mask(self, row: str) -> None:
        if row == "MMU*":
            with lora(self.model, self.settings.rank, 0) as wrapped:
                mmu.make_mask(wrapped, self.pairs[:1])
        else:
            self.model.requires_grad_(True)
            mmu.make_mask(self.model, self.pairs[:1])
            self.model.requires_grad_(False)

    def _collect(self, kind: str, size: int) -> None:
        examples = self.case.retain if kind == "retain" else self.case.forget
        store = self.home / f"{kind}.zarr"
        shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(self.home / f"{kind}-statistics.zarr", ignore_errors=True)
        prepared = prepare(
            str(self.case.folder), examples, batch_size=size, moments=manu.MOMENTS, dtype="bfloat16"
        )
        collect(prepared, str(store))

    def _request(self, row: str) -> None:
        """What one request to forget costs where C_r is there."""
        self._collect("forget", 1)
        if row == "MANU":
            sums = [manu.Sums.read(str(self.home / f"{k}.zarr")) for k in ("forget", "retain")]
            manu.gates(sums[0].store.sites, manu.score(*sums), 0.02, LayerRange(0, 29))
            return
        statistics = self.home / "forget-statistics.zarr"
        before = str(self.home / "retain-statistics.zarr")
        reduce([], str(statistics), [str(self.home / "forget.zarr")], after=before)
        kvw.gates(statistics, Strength(0.02, LayerRange(1, 27)))


def count_flops(run: Callable[[], None]) -> int:
    """Floating-point operations of matrix products and attention in `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def peak_megabytes(row: str, home: Path) -> float:
    """Peak resident memory of a process while it does one batch of a row."""
    command = [sys.executable, "-m", "benchmarks.paper", "cost", "--one", row, "--work", str(home)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def run_one(row: str, home: Path) -> None:
    """In a process of its own: one batch of a row, then its peak memory in MB.

    The model is in memory; what loading it took at most is left out, being everyone's.
    """
    costs = Costs(capitals(), home)
    reset_peak()
    costs._batch("KVW" if row == RETAIN else row)
    print(resident_peak())


def measure(home: Path, *, quick: bool = False) -> Values:
    """Every row on SmolLM2's capitals; C_r comes first, since requests build on it.

    `quick` sees that it runs: one round, a few examples, some rows.
    """
    rounds, rows = (1, QUICK_ROWS) if quick else (ROUNDS, ROWS)
    home.mkdir(parents=True, exist_ok=True)
    case = capitals()
    costs = Costs(case.shortened(4) if quick else case, home)
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(rounds):
        for row in rows:
            if row != RETAIN or number == 0:
                seconds[row].append(costs.seconds(row))
                print(f"round {number + 1}: {row} {seconds[row][-1]:.1f} s", flush=True)
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "rounds": rounds,
        "rows": [
            {
                "method": row,
                "gflops_per_batch": costs.flops(row) / 1e9,
                "seconds": median(seconds[row]),
                "peak_megabytes": peak_megabytes(row, home),
                "what": WHAT.get(row, f"{ALL_STEPS} steps of 4 + 4 examples"),
            }
            for row in rows
        ],
    }
