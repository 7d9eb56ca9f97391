"""Stores -> statistics: the numbers of `derive`, written as one Zarr group."""

from __future__ import annotations

from collections.abc import Sequence

from kvwstream.errors import OptionError
from kvwstream.pipelines.derive import derive
from kvwstream.pipelines.sources import (
    check_compatible,
    check_measured_alike,
    check_unseen,
    describe,
)
from kvwstream.progress import Progress, Silent
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.stores.statistics_writer import StatisticsWriter, room_for


def reduce(
    retain: Sequence[str],
    out: str,
    forget: Sequence[str] = (),
    *,
    after: str | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Reduce complete stores into the new statistics group `out`.

    Several stores of one kind count as one, in the order given. With `after`, the statistics of the
    requests before, C_r and their forget records are taken from there, and `retain` is empty.

    Raises `IncompleteError` listing unsealed parts, `PlanMismatchError` if the stores do not belong
    together, `DataError` if two of them share an example, `StorageError` if `out` exists. What is
    there is whole: on a local path it is written beside and moved, in a bucket its group document
    comes last.
    """
    progress = progress or Silent()
    retain_stores = open_stores(retain)
    forget_stores = open_stores(forget)
    stores = [*retain_stores, *forget_stores]
    previous = Statistics.open(Location(after)) if after else None
    if bool(retain) == bool(previous) or not stores:
        raise OptionError(
            "C_r comes from stores (--retain) or from the statistics of the requests before "
            "(--after, with --forget): give one of the two"
        )
    check_compatible(stores)
    if previous:
        check_measured_alike(previous, stores[0].plan)
        for store in forget_stores:
            check_unseen(previous, store.plan)
    place = Location(out)
    num_parts = sum(store.num_parts for store in stores)
    num_records = sum(len(store.records) for store in forget_stores)
    num_records += previous.num_forget_records if previous else 0
    with room_for(place) as draft:
        writer = StatisticsWriter(draft, stores[0].sites, num_records)
        with progress.task("reduce", num_parts, "parts") as advance:
            derive(writer, retain_stores, forget_stores, previous, advance)
        writer.finish(describe(retain_stores, forget_stores, previous))
    return Statistics.open(place)


def open_stores(urls: Sequence[str]) -> list[CollectStore]:
    """Complete stores; `IncompleteError` lists the parts without a seal."""
    stores = [CollectStore.open(Location(url)) for url in urls]
    for store in stores:
        store.require_sealed()
    return stores
