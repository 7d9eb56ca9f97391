"""The audit of what `collect` writes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np

from kvwstream.coefficients import per_vector
from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.examples import BadRow
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.stability import find_ending
from kvwstream.plan import Site
from kvwstream.stores.arrays import check_group, read_table
from kvwstream.stores.collected import CollectStore, sealed_among
from kvwstream.stores.ending import FOLDER as ENDING
from kvwstream.stores.environment import FOLDER as ENVIRONMENT
from kvwstream.stores.environment import read_environment
from kvwstream.stores.location import Location
from kvwstream.stores.revisions import FOLDER as REVISIONS
from kvwstream.stores.running import is_note
from kvwstream.stores.sealed_part import COUNT, PartData
from kvwstream.stores.tables import COLUMNS, SKIPPED


def audit_store(result: Audit, location: Location) -> StoreAudit | None:
    """Check a collect store, its parts apart; None unless plan and tables are sound."""
    try:
        store = CollectStore.open(location)
    except KvwstreamError as error:
        result.findings.append(str(error))
        return None
    url, names = location.url, location.listing()
    tables: dict[str, tuple[str, ...]] = {"sites": Site._fields, "examples": COLUMNS}
    if any(name.startswith(f"{SKIPPED}/") for name in names):
        tables[SKIPPED] = BadRow._fields
        result.attempt(partial(_check_skipped, location))
    sealed = sealed_among(names)
    ended = {ENDING: ()} if store.ending else {}
    groups: dict[str, tuple[str, ...]] = {"": (), "parts": (), **tables, **ended}
    groups |= {ENVIRONMENT: ()} if sealed or f"{ENVIRONMENT}/zarr.json" in names else {}
    if any(name.startswith(f"{REVISIONS}/") for name in names):
        numbers = range(1, store.revision.number + 1)
        groups |= dict.fromkeys((REVISIONS, *(f"{REVISIONS}/{n:06d}" for n in numbers)), ())
        if not numbers:
            result.notes.append(
                f"{url}: no example is withdrawn, but a `kvwstream forget-example` was begun; ask "
                "its author whether it was cut off or its revision is lost, and run it again"
            )
    _check_names(result, store, {name for name in names if not is_note(name)}, groups)
    for group, arrays in groups.items():
        place = location.at(group) if group else location
        if place.read("zarr.json") is not None:
            result.attempt(partial(check_group, place, arrays))

    if sealed:
        result.attempt(partial(_check_environment, store))
    return StoreAudit(store, sealed)


class BadPartError(Exception):
    """A part is not as it should be; its `StoreAudit` knows why."""


class StoreAudit:
    """The audit of a store whose plan and tables are sound; its parts are read once.

    Those that `read` gives are checked on the way, `finish` checks the others.
    """

    def __init__(self, store: CollectStore, sealed: Collection[int]) -> None:
        self.store = store
        self.wanted = [index for index in sorted(sealed) if index < store.num_parts]
        self.problems: dict[int, str | None] = {}

    def read(self, index: int) -> PartData:
        """A part, all its records and moments; `BadPartError` unless it is as it should be."""
        try:
            data = _checked_part(self.store, index)
        except KvwstreamError as error:
            self.problems[index] = str(error)
            raise BadPartError from error
        self.problems[index] = None
        return data

    def finish(self, result: Audit) -> None:
        """Check the parts that nobody has read, and say what was found of all."""
        store, url = self.store, self.store.location.url

        def check(index: int) -> None:
            with suppress(BadPartError):
                self.read(index)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(check, [i for i in self.wanted if i not in self.problems]))
        found = [self.problems[index] for index in self.wanted]
        problems = [problem for problem in found if problem]
        result.findings += problems
        if not problems and len(self.wanted) == store.num_parts:
            result.verified.append(
                f"{url}: {store.num_parts} parts as sealed, {store.num_records} records of "
                f"{store.num_examples} examples, {store.num_positions} positions"
            )
            if store.plan.until_stable is not None:
                result.attempt(partial(_check_ending, store))
        if not problems:
            result.notes += _environments(store, self.wanted)
        if store.revision.removed:
            gone = ", ".join(store.examples.ids[position] for position in store.revision.removed)
            result.notes.append(f"{url}: revision {store.revision.number} leaves out {gone}")


def _check_ending(store: CollectStore) -> str:
    """Decide anew where C_r was stable."""
    found, url = find_ending(store), store.location.url
    if found != store.ending:
        raise DamageError(
            f"{url}/{ENDING}: says {store.ending and store.ending.to_dict()}, the parts say "
            f"{found and found.to_dict()}"
        )
    if found is None:
        return f"{url}: C_r was stable at no checkpoint before the last part"
    return f"{url}: C_r was stable at {found.num_records} records, and at no checkpoint before"


def _check_names(
    result: Audit, store: CollectStore, names: set[str], groups: Mapping[str, Sequence[str]]
) -> None:
    """Every object that must be there and no other; of unsealed parts, nothing must."""
    url, expected = store.location.url, set(_expected_names(store, groups))
    sealed = sealed_among(names)
    for name in sorted(expected - names):
        part = name.split("/")[1] if name.startswith("parts/") else ""
        if part.isdecimal() and name == f"parts/{part}/zarr.json":
            result.findings.append(
                f"{url}/parts/{part}: missing seal; run `kvwstream collect` again"
            )
        elif not part.isdecimal() or int(part) in sealed:
            result.findings.append(f"{url}/{name}: missing")
    result.findings += [f"{url}/{name}: extra" for name in sorted(names - expected)]


def _check_environment(store: CollectStore) -> None:
    read_environment(store.location)


def _environments(store: CollectStore, parts: Sequence[int]) -> list[str]:
    """A note where the parts were made by unlike versions or on unlike devices."""
    made: dict[str, list[int]] = {}
    for index in parts:
        environment = store.read_seal(index)["environment"]
        made.setdefault(" ".join(f"{k} {v}" for k, v in environment.items()), []).append(index)
    if len(made) < 2:
        return []
    lines = (f"{len(indices)} by {what} (first: {indices[0]})" for what, indices in made.items())
    return [f"{store.location.url}: parts made in unlike environments: " + "; ".join(lines)]


def _checked_part(store: CollectStore, index: int) -> PartData:
    document = store.read_document(index)
    data = store.read_part(index, document=document)
    name = f"{store.location.url}/parts/{data.part.name}"
    if store.read_seal(index).get("num_tokens") != data.counts.max(axis=1).sum():
        raise DamageError(f"{name}: its seal says another number of tokens than {COUNT}")
    positions = store.examples.num_positions
    for row, record in enumerate(range(data.part.start, data.part.stop)):
        expected = sum(int(positions[i]) for i in store.plan.examples_of(record))
        if np.any(data.counts[row] != expected):
            raise DamageError(
                f"{name}: record {record} counts {data.counts[row].tolist()[:3]}… tokens, its "
                f"examples have {expected}"
            )
    for moment, sums in data.sums.items():
        if not np.isfinite(sums).all():
            raise DamageError(f"{name}/{moment}_sum: holds values that are not finite")
        silent = per_vector(data.counts == 0, store.widths)
        if (moment != "signed" and sums.min() < 0) or np.any(sums[silent] != 0):
            raise DamageError(f"{name}/{moment}_sum: holds values that no coefficients give")
    arrays = (*(f"{moment}_sum" for moment in data.sums), COUNT)
    check_group(store.location.at("parts", data.part.name), arrays, document)
    return data


def _check_skipped(location: Location) -> str:
    skipped = read_table(location, SKIPPED, BadRow._fields)
    return f"{location.url}: says which {len(skipped['place'])} rows were left out"


def _expected_names(store: CollectStore, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for group, columns in groups.items():
        yield f"{group}/zarr.json".lstrip("/")
        for column in columns:
            yield f"{group}/{column}/zarr.json"
            yield f"{group}/{column}/c/0" + ("/0" if column == "digest" else "")
    for part in store.parts:
        yield f"parts/{part.name}/zarr.json"
        for array in (*(f"{moment}_sum" for moment in store.plan.moments), COUNT):
            yield f"parts/{part.name}/{array}/zarr.json"
            yield f"parts/{part.name}/{array}/c/0/0"
