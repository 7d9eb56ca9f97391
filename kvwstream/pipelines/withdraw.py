"""Take examples out of a collected store: what `kvwstream forget-example` does."""

from __future__ import annotations

from collections.abc import Sequence

from kvwstream.errors import DataError, StorageError
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.revisions import Revision, write_revision


def withdraw(url: str, ids: Sequence[str]) -> Revision:
    """Write a revision of the store at `url` that leaves the examples `ids` out.

    Raises `DataError` for an id that the store does not hold or that is withdrawn already, and
    where an example shares its record with others: their sum cannot be taken apart, and the message
    says which records would have to be collected again.
    """
    store = CollectStore.open(Location(url))
    store.require_sealed()
    if store.plan.progressive:
        raise DataError(
            f"{url}: progressive: later records were measured on the model as weakened by this "
            "one; remove the example from the data and collect a new store"
        )
    before = store.revision
    position_of = {name: position for position, name in enumerate(store.examples.ids)}
    unknown = [name for name in ids if name not in position_of]
    if unknown:
        raise DataError(f"{url}: holds no example {', '.join(map(repr, unknown))}")
    positions = {position_of[name] for name in ids}
    again = sorted(positions.intersection(before.removed))
    if again:
        names = ", ".join(repr(store.examples.ids[position]) for position in again)
        raise DataError(f"{url}: already withdrawn: {names}")
    _check_alone(store, positions)
    removed = tuple(sorted(positions.union(before.removed)))
    revision = Revision(
        store.plan.digest,
        before.number + 1,
        removed,
        tuple(store.examples.digests[position] for position in removed),
        before.digest if before.number else None,
    )
    if not write_revision(store.location, revision):
        raise StorageError(f"{url}: another command withdrew examples just now; run this one again")
    return revision


def _check_alone(store: CollectStore, positions: set[int]) -> None:
    """`DataError` unless every record that holds one of the examples holds nothing else."""
    mixed = []
    for record in sorted({position // store.plan.batch_size for position in positions}):
        others = [p for p in store.plan.examples_of(record) if p not in positions]
        if others:
            names = ", ".join(store.examples.ids[position] for position in others)
            mixed.append(f"record {record}, with {names}")
    if mixed:
        raise DataError(
            f"{store.location.url}: a record is the sum of {store.plan.batch_size} examples and "
            "cannot be taken apart; remove the example from the data and collect a new store, or "
            "use --batch-size 1 from the start. These records must be collected again:\n  "
            + "\n  ".join(mixed)
        )
