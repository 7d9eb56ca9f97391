"""Ways to pass over a data set, each in a process of its own, for `benchmarks.collect`.

The baselines are given ready-made inputs, what kvwstream does is whole: tokenising and pictures,
passes, fetching the sums, compressing and sealing them. Planning and loading come before the clock.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.collect_sets import DataSet, make_set
from benchmarks.measuring import reset_peak, resident_peak
from kvwstream.collector import site_inputs
from kvwstream.models import inference, load_model
from kvwstream.pipelines.collect import run_here
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.stability import waves
from kvwstream.pipelines.worker import Receipt, Worker
from kvwstream.progress import Silent
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location

PLAIN, HOOKS, NO_SHARING, SHARING, EARLY_END = (
    "plain forward",
    "hooks on every token, full logits",
    "kvwstream, no sharing",
    "kvwstream",
    "kvwstream, early end",
)
NEEDED = "what must be run"
BATCH = 8
"""Of the baselines, in the order of the file; padded."""
PLANS: dict[str, dict[str, Any]] = {
    NO_SHARING: {"sharing": False},
    SHARING: {},
    EARLY_END: {"part_size": 16},
    NEEDED: {"pass_tokens": 1},
}
"""Options of `prepare`. With passes of one record nothing is padded."""


class Run(NamedTuple):
    """What one pass over the data took."""

    seconds: float
    peak: float
    """Resident megabytes, the model included."""
    written: int
    """Bytes."""
    records: int


class Way:
    """A way with its model in memory, ready to run."""

    def __init__(self, how: str, data: DataSet, folder: Path) -> None:
        self.how, self.folder = how, folder / "store"
        options = dict(PLANS.get(how, {}))
        if how == EARLY_END:
            options["until_stable"] = data.until_stable
        self.prepared = prepare(str(data.model), data.examples, **options)
        self.loaded = load_model(self.prepared.folder, self.prepared.plan.dtype)
        self.worker: Worker | None = None
        self.batches = self._batches(data) if how in (PLAIN, HOOKS) else []

    def _batches(self, data: DataSet) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Inputs of the baselines, and which positions are of an answer."""
        encoder = self.prepared.encoder
        made = []
        for start in range(0, len(data.examples), BATCH):
            chosen = data.examples[start : start + BATCH]
            batch = encoder.batch(chosen, [encoder.locate(example) for example in chosen], "answer")
            mask = torch.zeros(batch.inputs["input_ids"].numel(), dtype=torch.bool)
            mask[batch.rows] = True
            made.append((batch.inputs, mask.reshape(batch.inputs["input_ids"].shape)))
        return made

    def __call__(self) -> int:
        """Pass over all data; the number of records."""
        if self.batches:
            return self._forward()
        assert self.worker
        silent, store = Silent(), self.worker.store
        parts = list(store.parts)
        early = self.prepared.plan.until_stable is not None
        todo = waves(store, parts, silent) if early else [parts]
        records = 0
        for receipt in run_here(self.worker, todo, lambda units, tokens=0: None, silent):
            assert isinstance(receipt, Receipt), receipt
            records += receipt.records
        return records

    def _forward(self) -> int:
        model, sites = self.loaded.model, self.prepared.sites
        with inference(model, self.prepared.plan.threads):
            for inputs, mask in self.batches:
                hooked = site_inputs(model, sites, partial(masked_sum, mask))
                with hooked if self.how == HOOKS else nullcontext():
                    model(**inputs)
        return len(self.prepared.examples)

    @contextmanager
    def _new_store(self) -> Iterator[None]:
        """An empty store to collect into, removed afterwards."""
        if self.batches:
            yield
            return
        made = self.prepared
        store = CollectStore.create(Location(str(self.folder)), made.plan, made.sites, made.table)
        self.worker = Worker(made, store, self.loaded, allow_mixed=False)
        yield
        shutil.rmtree(self.folder)

    def warm_up(self) -> None:
        """What the first run pays for: a batch of a baseline, all of what kvwstream does."""
        batches = self.batches
        self.batches = batches[:1]
        self.measured()
        self.batches = batches

    def measured(self) -> Run:
        """One pass with the clock running; what it wrote is counted and removed."""
        with self._new_store():
            reset_peak()
            start = time.perf_counter()
            records = self()
            spent = time.perf_counter() - start
            peak = resident_peak()
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            return Run(spent, peak, sum(path.stat().st_size for path in files), records)

    def flops(self) -> int:
        """Of one pass; attention is run so that the counter knows it."""
        self.loaded.model.set_attn_implementation("eager")
        with self._new_store(), FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()

    def rate(self) -> float:
        """FLOPs per second of the largest products of the model's MLP, the best of several."""
        weight = self.loaded.model.get_submodule(self.prepared.sites[0].path).weight
        rows = torch.randn(2048, weight.shape[1]).to(weight.dtype)
        best = float("inf")
        with inference(self.loaded.model, self.prepared.plan.threads):
            for _ in range(20):
                start = time.perf_counter()
                linear(rows, weight)
                best = min(best, time.perf_counter() - start)
        return 2 * len(rows) * weight.numel() / best


def masked_sum(mask: Tensor, number: int, coefficients: Tensor) -> None:
    """The common way: all positions cast, copied and masked, summed, fetched layer by layer."""
    absolute = coefficients.detach().float().abs()
    total = (absolute * mask[..., None]).sum(dim=(0, 1))
    mean = total / mask.sum().item()
    mean.cpu().numpy()


_way: Way | None = None


def open_process(how: str, name: str, beds: Path, folder: Path) -> ProcessPoolExecutor:
    """A process of its own for a way over the data set of that name."""
    folder.mkdir(parents=True)
    context = get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(how, name, beds, folder))


def call(process: ProcessPoolExecutor, method: str) -> Any:
    """What that method of the process's way returns."""
    return process.submit(_call, method).result()


def _begin(how: str, name: str, beds: Path, folder: Path) -> None:
    global _way
    _way = Way(how, make_set(name, beds), folder)


def _call(method: str) -> Any:
    return getattr(_way, method)()
