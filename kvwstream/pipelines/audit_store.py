"""The audit of what `collect` and `reduce` write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kvwstream.coefficients import per_vector
from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.examples import BadRow
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.derive import derive
from kvwstream.pipelines.sources import check_compatible, describe
from kvwstream.pipelines.stability import find_ending
from kvwstream.plan import Site
from kvwstream.stores.arrays import Array, ArrayDigest, check_group, digest_array, read_table
from kvwstream.stores.collected import COUNT, CollectStore
from kvwstream.stores.ending import FOLDER as ENDING
from kvwstream.stores.environment import FOLDER as ENVIRONMENT
from kvwstream.stores.environment import read_environment
from kvwstream.stores.location import Location
from kvwstream.stores.revisions import FOLDER as REVISIONS
from kvwstream.stores.running import is_note
from kvwstream.stores.statistics import DIMS, FORGET, Statistics
from kvwstream.stores.tables import COLUMNS, SKIPPED


def audit_store(result: Audit, location: Location) -> list[CollectStore]:
    """Check a collect store; returns it (in a list) if plan and tables are sound."""
    try:
        store = CollectStore.open(location)
    except KvwstreamError as error:
        result.findings.append(str(error))
        return []
    url, plan, names = location.url, store.plan, location.listing()
    tables: dict[str, tuple[str, ...]] = {"sites": Site._fields, "examples": COLUMNS}
    if any(name.startswith(f"{SKIPPED}/") for name in names):
        tables[SKIPPED] = BadRow._fields
        result.attempt(partial(_check_skipped, location))
    sealed = store.sealed()
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
    wanted = [index for index in sorted(sealed) if index < store.num_parts]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(partial(_problem, store), wanted) if problem]
    result.findings += problems
    if not problems and len(wanted) == store.num_parts:
        result.verified.append(
            f"{url}: {store.num_parts} parts as sealed, {store.num_records} records of "
            f"{store.num_examples} examples, {store.num_positions} positions"
        )
        if plan.until_stable is not None:
            result.attempt(partial(_check_ending, store))
    if not problems:
        result.notes += _environments(store, wanted)
    if store.revision.removed:
        gone = ", ".join(store.examples.ids[position] for position in store.revision.removed)
        result.notes.append(f"{url}: revision {store.revision.number} leaves out {gone}")
    return [store]


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
    url, expected, sealed = store.location.url, set(_expected_names(store, groups)), store.sealed()
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


def audit_statistics(result: Audit, location: Location, stores: Sequence[CollectStore]) -> None:
    """Check every array against its digest, then derive all of them anew from the stores."""
    try:
        stored = Statistics.open(location)
    except KvwstreamError as error:
        result.findings.append(str(error))
        return
    url, recorded = location.url, stored.attributes["sha256"]
    known = {f"{name}/" for name in recorded}
    names = location.listing()
    extra = [n for n in names if n != "zarr.json" and n.split("/")[0] + "/" not in known]
    result.findings += [f"{url}/{name}: extra" for name in extra]
    needed = [name for name in DIMS if stored.num_forget_records or name not in FORGET]
    result.findings += [f"{url}: the digest of {n} is missing" for n in needed if n not in recorded]
    sound = [result.attempt(partial(_check_array, stored, name)) for name in recorded]
    if all(sound):
        result.verified.append(f"{url}: {len(recorded)} arrays as digested")
        result.attempt(partial(check_group, location, recorded))

    if not result.passed:
        result.notes.append(f"{url}: not derived anew as long as something is wrong")
        return
    by_digest = {old.digest(): old for store in stores for old in store.revisions()}
    wanted = stored.attributes["sources"]
    absent = [source["name"] for source in wanted if source["digest"] not in by_digest]
    given = {store.location.name: store.location.url for store in by_digest.values()}
    stale = [name for name in absent if name in given]
    if stale:
        result.findings += [
            f"{url}: made from another {name} than {given[name]}; run `kvwstream reduce` again"
            for name in stale
        ]
    elif absent:
        result.notes.append(
            f"{url}: not derived anew, that needs the stores it came from; missing or changed: "
            + ", ".join(absent)
        )
    if absent:
        return
    sources = {
        role: [by_digest[s["digest"]] for s in wanted if s["role"] == role]
        for role in ("retain", "forget")
    }
    result.attempt(lambda: _derive_anew(stored, sources["retain"], sources["forget"]))


def _problem(store: CollectStore, index: int) -> str | None:
    """What is wrong with a part, if anything."""
    try:
        _check_part(store, index)
    except KvwstreamError as error:
        return str(error)
    return None


def _check_part(store: CollectStore, index: int) -> None:
    data = store.read_part(index)
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
    check_group(store.location.at("parts", data.part.name), arrays)


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


def _check_array(stored: Statistics, name: str) -> None:
    stored.read(name)


class _Digests:
    """Takes derived arrays and keeps their digests alone."""

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        self.shapes, self.found = shapes, dict[str, str]()

    def put(self, name: str, values: Array) -> None:
        self.found[name] = digest_array(values)

    def rows(self, name: str, dtype: Any) -> _RowDigest:
        return _RowDigest(self, name, ArrayDigest(dtype, self.shapes[name]))


@dataclass
class _RowDigest:
    parent: _Digests
    name: str
    digest: ArrayDigest

    def add(self, rows: Array) -> None:
        self.digest.update(rows)

    def close(self) -> None:
        self.parent.found[self.name] = self.digest.hexdigest()


def _derive_anew(
    stored: Statistics, retain: Sequence[CollectStore], forget: Sequence[CollectStore]
) -> str:
    if not retain:
        raise DamageError(f"{stored.location.url}: damaged: none of its sources is to retain")
    check_compatible([*retain, *forget])
    sizes = {"vector": retain[0].plan.num_vectors, "site": retain[0].plan.num_sites}
    records = stored.num_forget_records
    shapes = {n: (records, sizes[d[1]]) for n, d in DIMS.items() if len(d) == 2}
    digests = _Digests(shapes)
    derive(digests, retain, forget)
    recorded = stored.attributes["sha256"]
    changed = [name for name, digest in digests.found.items() if recorded.get(name) != digest]
    changed += [name for name in recorded if name not in digests.found]
    expected, found = describe(retain, forget), stored.attributes
    # A store may have been renamed since.
    expected["sources"], sources = map(_without_names, (expected["sources"], found["sources"]))
    found = {**found, "sources": sources, "num_forget_records": records}
    expected["num_forget_records"] = sum(len(store.records) for store in forget)
    changed += [key for key in expected if found.get(key) != expected[key]]
    if changed:
        raise DamageError(
            f"{stored.location.url}: derived anew from the stores, these differ: "
            + ", ".join(changed)
        )
    return (
        f"{stored.location.url}: derived anew from {len(retain) + len(forget)} stores, bit for bit"
    )


def _without_names(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in source.items() if k != "name"} for source in sources]
