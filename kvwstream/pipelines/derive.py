"""Every number that follows from stores: C_r, C_f, the accessor A and its sum S (Eq. 3 and 4).

The retain sums are one leaf per part, added in record order, the leaves joined in part order; the
forget records are a scan in record order. Threads read, check and decompress the next parts while
one is added, strips of the vector axis are computed side by side, and each array goes to its sink
in a thread of its own. The order of additions never depends on it: `reduce_serial` is the
specification and gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain as chain_iterables
from typing import Any, NamedTuple, Protocol

import numpy as np

from kvwstream.accessor import accessor, accessor_above, log_mean
from kvwstream.coefficients import (
    CoefficientSums,
    Float64,
    Int64,
    add_leaf,
    mean_over,
    per_vector,
    site_index,
    strips,
    token_mean,
)
from kvwstream.pipelines.chain import Chain
from kvwstream.pipelines.read_ahead import Reader, moments_of, read_ahead, read_moments
from kvwstream.pipelines.retained import Retained
from kvwstream.pipelines.sources import check_on_base
from kvwstream.plan import FURTHER_MOMENTS, Progressive
from kvwstream.progress import Advance
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.statistics import CHUNK_BYTES, OF_FURTHER_MOMENTS, Statistics
from kvwstream.stores.statistics_writer import coordinates

ROW_DTYPES = {
    "forget_mean": np.float64,
    "forget_running_mean": np.float64,
    "accessor": np.float64,
    "forget_token_count": np.int64,
    "forget_signed_mean": np.float64,
}
"""Arrays with a row per forget record, in the order of `ForgetBlock`; the last is optional."""


class ForgetBlock(NamedTuple):
    """Some rows of the forget statistics, of one record each."""

    mean: Float64
    """C_f (record, vector)."""
    running_mean: Float64
    """Token mean over this record and all before it (record, vector)."""
    accessor: Float64
    """A (record, vector)."""
    counts: Int64
    """(record, site) answer positions."""
    signed_mean: Float64 | None = None
    """Token mean of the signed coefficients (record, vector), where they were collected."""


class Sink(Protocol):
    """Takes the arrays of the statistics: a writer, or an auditor's digests."""

    def put(self, name: str, values: Any) -> None:
        """A whole array."""

    def rows(self, name: str, dtype: Any) -> RowSink:
        """An array that comes some forget records at a time."""
        ...


class RowSink(Protocol):
    """Takes a row per forget record, in order."""

    def add(self, rows: Any) -> None:
        """The next records' rows, which nobody will change; not always in the same thread."""

    def close(self) -> None:
        """No more records."""


def derive(
    sink: Sink,
    retain: Sequence[CollectStore],
    forget: Sequence[CollectStore],
    previous: Statistics | None = None,
    advance: Advance | None = None,
    read: Reader = read_moments,
) -> None:
    """Send every number that follows from the stores to `sink`.

    With `previous`, C_r and the forget records before those of `forget` are taken from there
    instead of from `retain` stores: the same numbers, without reading theirs again.
    """
    if previous:
        retained, sites = Retained.from_statistics(previous), previous.sites
    else:
        check_on_base(retain)
        retained = Retained.from_sums(*fold_retain(retain, advance, read))
        sites = retain[0].sites
    sink.put("retain_mean", retained.mean)
    sink.put("retain_standard_error", retained.standard_error)
    sink.put("retain_token_count", retained.tokens)
    if retained.square_mean is not None:
        sink.put("retain_square_mean", retained.square_mean)
    names = previous.read("examples").tolist() if previous and previous.num_forget_records else []
    num_before = len(names)
    names += [name for store in forget for name in store.record_names()]
    for name, values in coordinates(sites, names):
        sink.put(name, values)
    if not names:
        return
    total, scan = np.zeros_like(retained.mean), ForgetScan(retained)
    if previous and num_before:
        scan.resume(previous)
    before = previous.attributes["progressive"] if previous else None
    chain = Chain(forget, retained, num_before, Progressive(**before) if before else None)
    stored = _stored_blocks(previous, num_before) if previous else iter(())
    names_of_rows = [
        n for n in ROW_DTYPES if n not in OF_FURTHER_MOMENTS or retained.square_mean is not None
    ]
    rows = {name: sink.rows(name, ROW_DTYPES[name]) for name in names_of_rows}
    number, sent = 0, list[Future[None]]()
    with ThreadPoolExecutor(len(rows)) as lanes:
        for block in chain_iterables(stored, scan_forget(forget, scan, advance, read)):
            for row in block.accessor:
                chain.at(number, total)
                total += row
                chain.add(row)
                number += 1
            _settle(sent)
            sent = [
                lanes.submit(row.add, values)
                for row, values in zip(rows.values(), block, strict=False)
            ]
        _settle(sent)
        _settle([lanes.submit(writer.close) for writer in rows.values()])
    sink.put("exponent", total)
    sink.put("forget_sum", scan.total)


def _settle(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.result()


def _stored_blocks(previous: Statistics, count: int) -> Iterator[ForgetBlock]:
    if not count:
        return
    counts, number = previous.read("forget_token_count"), 0
    names = ["forget_mean", "forget_running_mean", "accessor"]
    names += ["forget_signed_mean"] * previous.has_moments
    for blocks in zip(*(previous.blocks(name, count) for name in names), strict=True):
        mean, running_mean, rows, *signed = blocks
        yield ForgetBlock(mean, running_mean, rows, counts[number : number + len(rows)], *signed)
        number += len(rows)


def fold_retain(
    stores: Sequence[CollectStore], advance: Advance | None = None, read: Reader = read_moments
) -> tuple[CoefficientSums, Float64 | None]:
    """The sums over all retain records, and those of the squares (vector,) if collected."""
    total, moments = CoefficientSums.empty(stores[0].widths), moments_of(stores, "square")
    squares = np.zeros_like(total.total) if "square" in moments else None
    for data in read_ahead(stores, moments, read):
        total.add_leaf(data.sums["abs"], data.counts)
        if squares is not None:
            add_leaf(squares, data.sums["square"])
        if advance:
            advance(1)
    return total, squares


def scan_forget(
    stores: Sequence[CollectStore],
    scan: ForgetScan,
    advance: Advance | None = None,
    read: Reader = read_moments,
) -> Iterator[ForgetBlock]:
    """The forget records in order, some at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for data in read_ahead(stores, moments_of(stores, "signed"), read) if stores else ():
            yield from scan.add(data, pool)
            if advance:
                advance(1)


class ForgetScan:
    """The running sums of the forget records, and the rows that they become."""

    def __init__(self, retained: Retained) -> None:
        self.log_retain, self.covered = log_mean(retained.mean), retained.covered
        self.sites = site_index(retained.widths)
        self.has_moments = retained.square_mean is not None
        self.total = np.zeros_like(retained.mean)
        self.tokens = np.zeros(len(retained.widths), np.int64)
        self.step = max(1, CHUNK_BYTES // self.total.nbytes)
        self.number = 0

    def resume(self, previous: Statistics) -> None:
        """Go on where the forget records of `previous` ended."""
        self.total += previous.read("forget_sum")
        counts = previous.read("forget_token_count")
        self.tokens += counts.sum(axis=0)
        self.number = len(counts)

    def add(self, data: PartData, pool: ThreadPoolExecutor) -> Iterator[ForgetBlock]:
        """The next part, in blocks that end where chunks of the statistics end."""
        sums, signed, start = data.sums["abs"], data.sums.get("signed"), 0
        while start < len(sums):
            stop = min(len(sums), start + self.step - self.number % self.step)
            counts = data.counts[start:stop]
            block = self._block(sums[start:stop], counts, pool)
            if self.has_moments and signed is not None:
                mean = mean_over(signed[start:stop].astype(np.float64), counts[:, self.sites])
                block = block._replace(signed_mean=mean)
            yield block
            self.number += stop - start
            start = stop

    def _block(self, sums: Any, counts: Int64, pool: ThreadPoolExecutor) -> ForgetBlock:
        mean, running, rows = (np.empty(sums.shape) for _ in range(3))
        tokens = self.tokens + counts.cumsum(axis=0)

        def fill(strip: slice) -> None:
            values, sites = sums[:, strip].astype(np.float64), self.sites[strip]
            mean[:, strip] = of_record = mean_over(values, counts[:, sites])
            rows[:, strip] = accessor_above(of_record, self.log_retain[strip], self.covered[strip])
            for row in values:
                self.total[strip] += row
                row[:] = self.total[strip]
            running[:, strip] = mean_over(values, tokens[:, sites])

        _settle([pool.submit(fill, strip) for strip in strips(len(self.total), len(sums))])
        self.tokens = tokens[-1]
        return ForgetBlock(mean, running, rows, counts)


def reduce_serial(
    retain: Iterable[PartData], forget: Iterable[PartData], widths: Int64
) -> dict[str, Any]:
    """The specification of `reduce`: every number it writes, part after part, in memory."""
    sums = CoefficientSums.empty(widths)
    squares, signed = np.zeros_like(sums.total), list[Any]()
    for data in retain:
        if data.sums.keys() >= FURTHER_MOMENTS:
            squares = squares + sum(data.sums["square"].astype(np.float64), np.zeros_like(squares))
        leaf = CoefficientSums.empty(widths)
        for row, counts in zip(data.sums["abs"], data.counts, strict=True):
            leaf.add(row, counts)
        sums = sums + leaf
    mean, mask = sums.mean(), per_vector(sums.coverage(), widths)
    before, total = np.zeros((2, len(mean)))
    tokens = np.zeros(len(widths), np.int64)
    means, running, rows, counts = (list[Any]() for _ in range(4))
    for data in forget:
        if data.sums.keys() >= FURTHER_MOMENTS:
            signed += list(token_mean(data.sums["signed"], data.counts, widths))
        for row, count in zip(data.sums["abs"], data.counts, strict=True):
            before, tokens = before + row, tokens + count
            means.append(token_mean(row, count, widths))
            running.append(token_mean(before, tokens, widths))
            rows.append(accessor(means[-1], mean, mask))
            total = total + rows[-1]
            counts.append(count)
    return {
        "retain_mean": mean,
        "retain_standard_error": sums.standard_error(),
        "retain_token_count": sums.tokens,
        "forget_mean": np.array(means),
        "forget_running_mean": np.array(running),
        "accessor": np.array(rows),
        "forget_token_count": np.array(counts),
        "exponent": total,
        "forget_sum": before,
    } | (
        {
            "retain_square_mean": token_mean(squares, sums.tokens, widths),
            "forget_signed_mean": np.array(signed),
        }
        if signed
        else {}
    )
