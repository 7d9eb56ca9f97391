"""The store that `collect` writes: a plan, two tables, and parts that are sealed one by one.

    STORE.zarr/zarr.json            the plan, written first
    STORE.zarr/sites/...            table of value projections
    STORE.zarr/examples/...         table of examples, in plan order
    STORE.zarr/skipped/...          table of rows that were left out, if any were
    STORE.zarr/environment/...      versions and device that the first worker had
    STORE.zarr/ending/...           where the collection ended early, if it did
    STORE.zarr/parts/000000/...     arrays of a part; its own zarr.json, written last, is the seal

A part without its `zarr.json` is no Zarr group: plain `zarr` does not see it either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from kvwstream.canonical import digest_of
from kvwstream.coefficients import Int64
from kvwstream.errors import DamageError, IncompleteError, PlanMismatchError, StorageError
from kvwstream.examples import BadRow
from kvwstream.plan import CollectPlan, Part, Site
from kvwstream.stores.arrays import (
    Array,
    digest_array,
    group_document,
    parse_group,
    read_attributes,
)
from kvwstream.stores.ending import Ending, last_part, read_ending
from kvwstream.stores.location import Location
from kvwstream.stores.parts import read_part_array
from kvwstream.stores.revisions import Revision, read_revisions
from kvwstream.stores.running import is_note
from kvwstream.stores.sealed_part import COUNT, PartData, seal_part
from kvwstream.stores.tables import ExampleTable, read_examples, read_sites, write_tables

SEAL_NAME = re.compile(r"parts/(\d{6,})/zarr\.json")


@dataclass(frozen=True)
class CollectStore:
    """A store with its plan and tables; parts are read and written one at a time."""

    location: Location
    plan: CollectPlan
    sites: list[Site]
    examples: ExampleTable
    revision: Revision
    _seals: dict[int, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    """Those that were read and are the plan's: a seal never changes."""

    @classmethod
    def create(
        cls,
        location: Location,
        plan: CollectPlan,
        sites: list[Site],
        examples: ExampleTable,
        skipped: Sequence[BadRow] = (),
    ) -> CollectStore:
        """Begin a store, or go on with one of the same plan.

        `PlanMismatchError` with a line per difference where the place holds another plan.
        """
        document = group_document({"kind": "collect", "plan": plan.to_dict()})
        if location.listing() and location.read("zarr.json") is None:
            raise StorageError(f"{location.url}: holds other files; choose another place")
        if not location.create("zarr.json", document):
            differences = read_plan(location).differences(plan)
            if differences:
                raise PlanMismatchError(
                    f"{location.url}: holds a store with another plan; use its options or another "
                    "place:\n  " + "\n  ".join(differences)
                )
        store = cls(location, plan, sites, examples, Revision(plan.digest))
        if not store._has_tables():
            write_tables(location, sites, examples, skipped)
            location.sync()
        return store

    @classmethod
    def open(cls, location: Location) -> CollectStore:
        """An existing store at its newest revision.

        `DamageError` if plan or tables are not as the plan's digests say.
        """
        plan = read_plan(location)
        sites, examples = read_sites(location, plan), read_examples(location, plan)
        return cls(
            location, plan, sites, examples, read_revisions(location, plan, examples.digests)[-1]
        )

    def revisions(self) -> list[CollectStore]:
        """The same store at every revision, from the one without withdrawals on."""
        found = read_revisions(self.location, self.plan, self.examples.digests)
        return [replace(self, revision=revision) for revision in found]

    @cached_property
    def ending(self) -> Ending | None:
        """Where the collection ended early; None if it did not, or not yet."""
        return read_ending(self.location, self.plan)

    @property
    def num_parts(self) -> int:
        """Parts that make the store whole."""
        return last_part(self.plan, self.ending).number + 1

    @property
    def num_records(self) -> int:
        """Records in them, withdrawn ones included."""
        return last_part(self.plan, self.ending).stop

    @property
    def parts(self) -> Iterable[Part]:
        """Those parts, in record order."""
        return (self.plan.part(index) for index in range(self.num_parts))

    @property
    def num_examples(self) -> int:
        """Examples that are measured."""
        return self.plan.examples_of(self.num_records - 1).stop

    @property
    def num_positions(self) -> int:
        """Positions that are measured, in all epochs."""
        epochs = self.plan.epoch_of(self.num_records - 1) + 1
        return int(self.examples.num_positions[: self.num_examples].sum()) * epochs

    @cached_property
    def widths(self) -> Int64:
        """(site,) knowledge vectors per site."""
        return np.array([site.width for site in self.sites], np.int64)

    @cached_property
    def records(self) -> Int64:
        """Indices of the records that count: all but the withdrawn ones."""
        removed = np.array(self.revision.removed, np.int64) // self.plan.batch_size
        return np.setdiff1d(np.arange(self.num_records), removed)

    def record_names(self) -> list[str]:
        """Ids of the examples of each record that counts, joined by commas."""
        ids, plan = self.examples.ids, self.plan
        return [
            ", ".join(ids[index] for index in plan.examples_of(record)) for record in self.records
        ]

    def sealed(self) -> set[int]:
        """Indices of the parts that have a seal; one listing."""
        return sealed_among(self.location.listing())

    def require_sealed(self) -> None:
        """`IncompleteError` listing every part without a seal, `DamageError` every extra one."""
        planned, sealed = set(range(self.num_parts)), self.sealed()
        missing, extra = sorted(planned - sealed), sorted(sealed - planned)
        if extra:
            raise DamageError(
                f"{self.location.url}: holds parts beyond its plan ({', '.join(map(str, extra))}); "
                "see `kvwstream audit`"
            )
        if missing:
            raise IncompleteError(
                f"{self.location.url}: {len(missing)} of {self.num_parts} parts have no seal "
                f"({', '.join(map(str, missing))}); run the same `kvwstream collect` again"
            )

    def write_part(
        self, data: PartData, environment: Mapping[str, str], exponent: str | None = None
    ) -> None:
        """Write the arrays of a part, make them durable, then seal it.

        `environment` names what made it (torch, device, ...), `exponent` the digest of S at the
        beginning of the part in a progressive collection. A part that already has a seal is
        left as it is: whoever was first wrote the same bytes.
        """
        place = self.location.at("parts", data.part.name)
        if place.read("zarr.json") is not None:
            return
        try:
            seal_part(place, self.plan, self.widths, data, environment, exponent)
        except StorageError:
            # Another worker may have sealed it in the meantime, and cleared away our drafts.
            if place.read("zarr.json") is None:
                raise

    def tidy(self) -> None:
        """Clear away what workers left behind, once every part is sealed and nobody is needed."""
        if self.sealed() == set(range(self.num_parts)):
            self.location.delete(filter(is_note, self.location.listing()))
            self.location.clean()

    def read_seal(self, index: int) -> dict[str, Any]:
        """The seal of a part; `DamageError` if it is missing, unreadable or of another plan."""
        if index not in self._seals:
            self._parse_seal(index, self.read_document(index))
        return self._seals[index]

    def read_document(self, index: int) -> bytes | None:
        """What seals a part, as bytes: its group's document."""
        return self.location.at("parts", self.plan.part(index).name).read("zarr.json")

    def _parse_seal(self, index: int, document: bytes | None) -> tuple[dict[str, Any], ...]:
        part = self.plan.part(index)
        name = f"{self.location.url}/parts/{part.name}"
        try:
            attributes, metadata = parse_group(self.location.at("parts", part.name), document)
            seal = attributes.get("seal")
        except DamageError:
            seal = None
        if not isinstance(seal, dict) or not isinstance(seal.get("sha256"), dict):
            raise DamageError(f"{name}: its seal is missing or unreadable")
        for key, value in {"plan": self.plan.digest, **part._asdict()}.items():
            if seal.get(key) != value:
                raise DamageError(
                    f"{name}: its seal says {key} {seal.get(key)!r}, the plan says {value!r}"
                )
        self._seals[index] = seal
        return seal, metadata

    def read_part(
        self, index: int, moments: Sequence[str] | None = None, document: bytes | None = None
    ) -> PartData:
        """A part, checked against its seal; `DamageError` naming the array that is not as sealed.

        `moments` (default: all of the plan) selects which sums are read. The `document` that seals
        it is read unless it is given; each object is read once.
        """
        seal, metadata = self._parse_seal(index, document or self.read_document(index))
        part = self.plan.part(index)
        place = self.location.at("parts", part.name)
        shapes = {
            f"{moment}_sum": (part.num_records, self.plan.num_vectors)
            for moment in moments or self.plan.moments
        }
        shapes[COUNT] = (part.num_records, self.plan.num_sites)
        arrays: dict[str, Array] = {}
        for name, shape in shapes.items():
            arrays[name] = values = read_part_array(place, name, metadata.get(name, {}))
            if values.shape != shape or digest_array(values) != seal["sha256"].get(name):
                raise DamageError(
                    f"{place.url}/{name}: is not what the seal says; restore the part, or delete "
                    f"{place.url} and run the same `kvwstream collect` again"
                )
        counts = arrays.pop(COUNT)
        return PartData(part, {name.removesuffix("_sum"): a for name, a in arrays.items()}, counts)

    def read_records(self, index: int, moments: Sequence[str] | None = None) -> PartData:
        """`read_part` without the records that are withdrawn."""
        return self.without_withdrawn(self.read_part(index, moments))

    def without_withdrawn(self, data: PartData) -> PartData:
        """The records of a part that count."""
        if not self.revision.removed:
            return data
        kept = np.isin(np.arange(data.part.start, data.part.stop), self.records)
        sums = {moment: values[kept] for moment, values in data.sums.items()}
        return PartData(data.part, sums, data.counts[kept])

    def digest(self) -> str:
        """SHA-256 of plan, seals and revision: names the content of a complete store."""
        seals = [self.read_seal(index)["sha256"] for index in range(self.num_parts)]
        content = [self.plan.to_dict(), seals]
        if self.ending:
            content.append(self.ending.to_dict())
        return digest_of([*content, self.revision.digest] if self.revision.number else content)

    def _has_tables(self) -> bool:
        """Whether the tables are whole; the group of the parts is written after them."""
        try:
            self.open(self.location)
        except (DamageError, StorageError):
            return False
        return self.location.read("parts/zarr.json") is not None


def sealed_among(names: Iterable[str]) -> set[int]:
    """The parts whose seals are among the names of a store's objects."""
    found = map(SEAL_NAME.fullmatch, names)
    return {int(match[1]) for match in found if match}


def read_plan(location: Location) -> CollectPlan:
    """The plan at a store's root; `DamageError` if there is none or it is unreadable."""
    attributes = read_attributes(location)
    if attributes.get("kind") != "collect" or not isinstance(attributes.get("plan"), dict):
        raise DamageError(f"{location.url}: not a store that `kvwstream collect` wrote")
    try:
        return CollectPlan.from_dict(attributes["plan"])
    except DamageError as error:
        raise DamageError(f"{location.url}: {error}") from error
