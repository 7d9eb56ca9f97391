"""Revisions of a store: which examples have been withdrawn since it was collected.

    STORE.zarr/revisions/000001/zarr.json     group; attribute `revision`

A part is never written again. A revision says which examples no longer count, all of them and not
only the new ones; the one before stays, and what was made from it can still be audited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvwstream.canonical import digest_of
from kvwstream.errors import DamageError
from kvwstream.plan import CollectPlan
from kvwstream.stores.arrays import group_document, read_attributes
from kvwstream.stores.location import Location

FOLDER = "revisions"
NAME = re.compile(r"(\d{6,})/zarr\.json")


@dataclass(frozen=True)
class Revision:
    """The examples that are withdrawn from a store of the plan `plan`."""

    plan: str
    """Digest of the plan."""
    number: int = 0
    removed: tuple[int, ...] = ()
    """Positions in plan order, ascending."""
    digests: tuple[str, ...] = ()
    """SHA-256 of the content of each."""
    previous: str | None = None
    """Digest of the revision before; None for the first one."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of the above."""
        return digest_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "removed": list(self.removed), "digests": list(self.digests)}


def read_revisions(location: Location, plan: CollectPlan, digests: Sequence[str]) -> list[Revision]:
    """Every revision of a store of the examples `digests`, the empty one first; one listing.

    `DamageError` if one is missing or not as written.
    """
    found = [Revision(plan.digest)]
    names = location.at(FOLDER).listing()
    last = max((int(match[1]) for match in map(NAME.fullmatch, names) if match), default=0)
    for number in range(1, last + 1):
        place = _place(location, number)
        values = read_attributes(place).get("revision")
        found.append(_parse(place, values, found[-1], plan, digests))
    return found


def write_revision(location: Location, revision: Revision) -> bool:
    """Put the next revision; False if another command has put one of this number just now."""
    location.write(f"{FOLDER}/zarr.json", group_document({}))
    document = group_document({"revision": revision.to_dict()})
    won = _place(location, revision.number).create("zarr.json", document)
    location.at(FOLDER).sync()
    return won


def _place(location: Location, number: int) -> Location:
    return location.at(FOLDER, f"{number:06d}")


def _parse(
    place: Location, values: Any, before: Revision, plan: CollectPlan, digests: Sequence[str]
) -> Revision:
    try:
        revision = Revision(
            **{**values, "removed": tuple(values["removed"]), "digests": tuple(values["digests"])}
        )
        removed = revision.removed
        records = {position // plan.batch_size for position in removed}
        sound = (
            revision.plan == plan.digest
            and revision.number == before.number + 1
            and revision.previous == (before.digest if before.number else None)
            and all(position >= 0 for position in removed)
            and list(removed) == sorted({p for r in records for p in plan.examples_of(r)})
            and list(revision.digests) == [digests[position] for position in removed]
            and set(before.removed) <= set(removed)
        )
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise DamageError(f"{place.url}: not a revision: {error}") from error
    if not sound:
        raise DamageError(
            f"{place.url}: damaged: it does not follow from the store and the revision before it"
        )
    return revision
