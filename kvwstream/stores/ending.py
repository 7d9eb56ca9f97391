"""Where a collection ended before its last part, since C_r was known well enough.

STORE.zarr/ending/zarr.json     the checkpoint, the bound that held there; written once
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvwstream.errors import DamageError
from kvwstream.plan import CollectPlan, Part
from kvwstream.stores.arrays import group_document, read_attributes
from kvwstream.stores.location import Location

FOLDER = "ending"


@dataclass(frozen=True)
class Ending:
    """The seal of a collection that ended early."""

    plan: str
    """Digest of the plan."""
    num_parts: int
    """Parts that belong to the store: the first so many of the plan."""
    num_records: int
    """Records in them."""
    bound: float
    """How far log C_r may still move, for 99 % of the vectors."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def last_part(plan: CollectPlan, ending: Ending | None) -> Part:
    """The last part that belongs to a store of the plan."""
    return plan.part((ending.num_parts if ending else plan.num_parts) - 1)


def write_ending(location: Location, ending: Ending) -> None:
    """Written once; another process that found the same leaves it as it is."""
    location.at(FOLDER).create("zarr.json", group_document({"ending": ending.to_dict()}))
    location.sync()


def read_ending(location: Location, plan: CollectPlan) -> Ending | None:
    """The ending of the store at `location`; `DamageError` if it is not one of this plan."""
    place = location.at(FOLDER)
    if plan.until_stable is None or place.read("zarr.json") is None:
        return None
    try:
        ending = Ending(**read_attributes(place)["ending"])
        last = plan.part(ending.num_parts - 1)
        sound = ending.plan == plan.digest and ending.num_records == last.stop
    except (KeyError, TypeError, IndexError) as error:
        raise DamageError(f"{place.url}: is unreadable: {error}") from error
    if not sound:
        raise DamageError(f"{place.url}: {ending.to_dict()} does not fit the plan {plan.digest}")
    return ending
