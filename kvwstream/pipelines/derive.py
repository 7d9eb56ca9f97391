"""Every number that follows from stores: C_r, C_f, the accessor A and its sum S (Eq. 3 and 4).

The retain sums are one leaf per part, added in record order, the leaves joined in part order; the
forget records are a scan in record order. Dask runs the leaves, the order of additions never
depends on it: `reduce_serial` is the specification and gives the same bits.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain as chain_iterables
from typing import Any, NamedTuple, Protocol

import numpy as np
from tlz import partition_all

from kvwstream.accessor import accessor
from kvwstream.coefficients import CoefficientSums, Float64, Int64, per_vector, token_mean
from kvwstream.pipelines.chain import Chain
from kvwstream.pipelines.retained import Retained
from kvwstream.pipelines.sources import check_on_base
from kvwstream.plan import Progressive
from kvwstream.progress import Advance
from kvwstream.stores.collected import CollectStore, PartData
from kvwstream.stores.statistics import Statistics
from kvwstream.stores.statistics_writer import coordinates

Leaf = tuple[CollectStore, int]
WINDOW = 64
"""Parts per Dask graph: bounds the graph, and with it memory, however many parts there are."""


ROW_DTYPES = {
    "forget_mean": np.float64,
    "forget_running_mean": np.float64,
    "accessor": np.float64,
    "forget_token_count": np.int64,
}
"""Arrays with a row per forget record, in the order of `ForgetRecord`."""


class ForgetRecord(NamedTuple):
    """One row of the forget statistics."""

    mean: Float64
    """C_f of this record (vector,)."""
    running_mean: Float64
    """Token mean over this record and all before it (vector,)."""
    accessor: Float64
    """A of this record (vector,)."""
    counts: Int64
    """(site,) answer positions."""


class Sink(Protocol):
    """Takes the arrays of the statistics: a writer, or an auditor's digests."""

    def put(self, name: str, values: Any) -> None:
        """A whole array."""

    def rows(self, name: str, dtype: Any) -> RowSink:
        """An array that comes one forget record at a time."""
        ...


class RowSink(Protocol):
    """Takes one row per forget record, in order."""

    def add(self, row: Any) -> None:
        """The next record's row."""

    def close(self) -> None:
        """No more records."""


def derive(
    sink: Sink,
    retain: Sequence[CollectStore],
    forget: Sequence[CollectStore],
    previous: Statistics | None = None,
    advance: Advance | None = None,
) -> None:
    """Send every number that follows from the stores to `sink`.

    With `previous`, C_r and the forget records before those of `forget` are taken from there
    instead of from `retain` stores: the same numbers, without reading theirs again.
    """
    if previous:
        retained, sites = Retained.from_statistics(previous), previous.sites
    else:
        check_on_base(retain)
        retained, sites = Retained.from_sums(fold_retain(retain, advance)), retain[0].sites
    sink.put("retain_mean", retained.mean)
    sink.put("retain_standard_error", retained.standard_error)
    sink.put("retain_token_count", retained.tokens)
    names = previous.read("examples").tolist() if previous and previous.num_forget_records else []
    num_before = len(names)
    names += [name for store in forget for name in store.record_names()]
    for name, values in coordinates(sites, names):
        sink.put(name, values)
    if not names:
        return
    rows = {name: sink.rows(name, dtype) for name, dtype in ROW_DTYPES.items()}
    total, scan = np.zeros_like(retained.mean), ForgetScan(retained.widths)
    if previous and num_before:
        scan.resume(previous)
    before = previous.attributes["progressive"] if previous else None
    chain = Chain(forget, retained, num_before, Progressive(**before) if before else None)
    stored = _stored_records(previous, num_before) if previous else iter(())
    records = scan_forget(forget, retained, scan, advance)
    for number, record in enumerate(chain_iterables(stored, records)):
        chain.at(number, total)
        total += record.accessor
        chain.add(record.accessor)
        for name, row in zip(ROW_DTYPES, record, strict=True):
            rows[name].add(row)
    for writer in rows.values():
        writer.close()
    sink.put("exponent", total)
    sink.put("forget_sum", scan.total)


def _stored_records(previous: Statistics, count: int) -> Iterator[ForgetRecord]:
    if not count:
        return
    means, running, rows = (
        previous.rows(name, count) for name in ("forget_mean", "forget_running_mean", "accessor")
    )
    counts = previous.read("forget_token_count")
    yield from map(ForgetRecord, means, running, rows, counts)


def fold_retain(stores: Sequence[CollectStore], advance: Advance | None = None) -> CoefficientSums:
    """The sums over all retain records, by Dask."""
    import dask

    total = CoefficientSums.empty(stores[0].widths)
    for window in partition_all(WINDOW, _leaves(stores)):
        acc: Any = dask.delayed(total)
        for leaf in window:
            acc = dask.delayed(operator.add)(acc, dask.delayed(_sum_part, pure=False)(leaf))
        (total,) = dask.compute(acc, scheduler="threads", num_workers=os.cpu_count())
        if advance:
            advance(len(window))
    return total


def scan_forget(
    stores: Sequence[CollectStore],
    retained: Retained,
    scan: ForgetScan,
    advance: Advance | None = None,
) -> Iterator[ForgetRecord]:
    """The forget records in order; Dask reads, checks and takes logarithms ahead of the scan."""
    import dask

    for window in partition_all(os.cpu_count() or 1, _leaves(stores)):
        tasks = [
            dask.delayed(_measure_part, pure=False, traverse=False)(
                leaf, retained.mean, retained.covered
            )
            for leaf in window
        ]
        measured = dask.compute(*tasks, scheduler="threads", num_workers=os.cpu_count())
        for data, means, accessors in measured:
            yield from scan.add(data, means, accessors)
            if advance:
                advance(1)


class ForgetScan:
    """The part of the scan that depends on the records before: sums so far."""

    def __init__(self, widths: Int64) -> None:
        self.widths = widths
        self.total = np.zeros(int(widths.sum()))
        self.tokens = np.zeros(len(widths), np.int64)

    def resume(self, previous: Statistics) -> None:
        """Go on where the forget records of `previous` ended."""
        self.total += previous.read("forget_sum")
        self.tokens += previous.read("forget_token_count").sum(axis=0)

    def add(self, data: PartData, means: Float64, accessors: Float64) -> Iterator[ForgetRecord]:
        """Records of the next part."""
        rows = zip(data.sums["abs"], data.counts, means, accessors, strict=True)
        for sums, counts, mean, values in rows:
            self.total += sums
            self.tokens += counts
            running = token_mean(self.total, self.tokens, self.widths)
            yield ForgetRecord(mean, running, values, counts)


def reduce_serial(
    retain: Iterable[PartData], forget: Iterable[PartData], widths: Int64
) -> dict[str, Any]:
    """The specification of `reduce`: every number it writes, part after part, in memory."""
    sums = CoefficientSums.empty(widths)
    for data in retain:
        leaf = CoefficientSums.empty(widths)
        for row, counts in zip(data.sums["abs"], data.counts, strict=True):
            leaf.add(row, counts)
        sums = sums + leaf
    mean, scan, records = sums.mean(), ForgetScan(widths), list[ForgetRecord]()
    mask = per_vector(sums.coverage(), widths)
    for data in forget:
        means = token_mean(data.sums["abs"], data.counts, widths)
        records += scan.add(data, means, accessor(means, mean, mask))
    total = np.zeros_like(mean)
    for record in records:
        total = total + record.accessor
    return {
        "retain_mean": mean,
        "retain_standard_error": sums.standard_error(),
        "retain_token_count": sums.tokens,
        "forget_mean": np.array([record.mean for record in records]),
        "forget_running_mean": np.array([record.running_mean for record in records]),
        "accessor": np.array([record.accessor for record in records]),
        "forget_token_count": np.array([record.counts for record in records]),
        "exponent": total,
        "forget_sum": scan.total,
    }


def _leaves(stores: Sequence[CollectStore]) -> Iterator[Leaf]:
    return ((store, index) for store in stores for index in range(store.num_parts))


def _sum_part(leaf: Leaf) -> CoefficientSums:
    store, index = leaf
    data = store.read_records(index, ["abs"])
    sums = CoefficientSums.empty(store.widths)
    for row, counts in zip(data.sums["abs"], data.counts, strict=True):
        sums.add(row, counts)
    return sums


def _measure_part(leaf: Leaf, retain_mean: Float64, mask: Any) -> tuple[PartData, Float64, Float64]:
    store, index = leaf
    data = store.read_records(index, ["abs"])
    means = token_mean(data.sums["abs"], data.counts, store.widths)
    return data, means, accessor(means, retain_mean, mask)
