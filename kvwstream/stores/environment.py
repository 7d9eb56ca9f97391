"""What made the parts of a store: the first worker writes it down, the others compare.

STORE.zarr/environment/zarr.json     group; attributes `environment` and its `sha256`
"""

from __future__ import annotations

from collections.abc import Mapping

from kvwstream.canonical import differences, digest_of
from kvwstream.errors import DamageError, PlanMismatchError
from kvwstream.stores.arrays import group_document, read_attributes
from kvwstream.stores.location import Location

FOLDER = "environment"


def claim(store: Location, environment: Mapping[str, str], *, allow_mixed: bool = False) -> None:
    """Make `environment` that of the store, if it has none; `PlanMismatchError` if another.

    Parts made with other versions or on another kind of device would not have the same bits.
    """
    place, mine = store.at(FOLDER), dict(environment)
    document = group_document({"environment": mine, "sha256": digest_of(mine)})
    if place.create("zarr.json", document):
        place.sync()
        return
    first = read_environment(store)
    unlike = differences(first, mine, sorted(first.keys() | mine.keys()))
    if unlike and not allow_mixed:
        raise PlanMismatchError(
            f"{store.url}: its parts are made in another environment, the bits would differ; "
            "collect there, in another store, or with --allow-mixed:\n  " + "\n  ".join(unlike)
        )


def read_environment(store: Location) -> dict[str, str]:
    """What the first worker had; `DamageError` if it is not as it was written."""
    place = store.at(FOLDER)
    attributes = read_attributes(place)
    first = attributes.get("environment")
    if not isinstance(first, dict) or digest_of(first) != attributes.get("sha256"):
        raise DamageError(f"{place.url}: changed, not as digested")
    return first
