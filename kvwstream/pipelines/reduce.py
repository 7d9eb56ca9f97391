"""Stores -> statistics: the numbers of `derive`, written as one Zarr group."""

from __future__ import annotations

from collections.abc import Sequence

from kvwstream.errors import StorageError
from kvwstream.pipelines.derive import check_compatible, derive, describe
from kvwstream.progress import Progress, Silent
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics, StatisticsWriter


def reduce(
    retain: Sequence[str],
    out: str,
    forget: Sequence[str] = (),
    *,
    progress: Progress | None = None,
) -> Statistics:
    """Reduce complete stores into the new statistics group `out`.

    Several stores of one kind count as one, in the order given. Raises `IncompleteError` listing
    unsealed parts, `PlanMismatchError` if the stores do not belong together, `DataError` if two of
    them share an example, `StorageError` if `out` exists. Written beside its place and moved:
    what has the final name is whole.
    """
    progress = progress or Silent()
    retain_stores = open_stores(retain)
    forget_stores = open_stores(forget)
    stores = [*retain_stores, *forget_stores]
    check_compatible(stores)
    place = Location(out)
    if place.exists():
        raise StorageError(f"{out}: exists already; choose another name or remove it")
    draft = place.beside(f".{place.name}.partial")
    draft.remove()

    num_parts = sum(store.plan.num_parts for store in stores)
    num_records = sum(len(store.records) for store in forget_stores)
    writer = StatisticsWriter(draft, stores[0].sites, num_records)
    try:
        with progress.task("reduce", num_parts, "parts") as advance:
            derive(writer, retain_stores, forget_stores, advance)
        writer.finish(describe(retain_stores, forget_stores))
        draft.move(place, last="zarr.json")
    finally:
        draft.remove()
    return Statistics.open(place)


def open_stores(urls: Sequence[str]) -> list[CollectStore]:
    """Complete stores; `IncompleteError` lists the parts without a seal."""
    stores = [CollectStore.open(Location(url)) for url in urls]
    for store in stores:
        store.require_sealed()
    return stores
