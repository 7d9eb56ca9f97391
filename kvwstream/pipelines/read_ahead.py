"""The parts of stores in order; threads read, check and decompress the next ones meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from kvwstream.plan import FURTHER_MOMENTS
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.sealed_part import PartData

READ_AHEAD = 128 << 20
"""Bytes of parts that are read ahead, at least two parts: bounds the memory."""
MOST_AHEAD = 16
"""Parts read at once, however small they are."""

Reader = Callable[[CollectStore, int, Sequence[str]], PartData]
"""Gives the records that count of a part, of these moments at least."""


def read_moments(store: CollectStore, index: int, moments: Sequence[str]) -> PartData:
    """No more than is needed."""
    return store.read_records(index, moments)


def moments_of(stores: Sequence[CollectStore], further: str) -> list[str]:
    """The moments that are read: the absolute one, and `further` where all have been collected."""
    return ["abs"] + [further] * (set(stores[0].plan.moments) >= FURTHER_MOMENTS)


def read_ahead(
    stores: Sequence[CollectStore], moments: Sequence[str], read: Reader
) -> Iterator[PartData]:
    """Every part in order; the next ones are read and checked meanwhile, in threads."""
    leaves = ((store, index) for store in stores for index in range(store.num_parts))
    pending: deque[Future[PartData]] = deque()
    pool = ThreadPoolExecutor(MOST_AHEAD)
    try:
        for store, index in leaves:
            records = store.plan.part(index).num_records
            size = 4 * store.plan.num_vectors * records * len(moments)
            pending.append(pool.submit(read, store, index, moments))
            if len(pending) > min(MOST_AHEAD, max(2, READ_AHEAD // size)):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
