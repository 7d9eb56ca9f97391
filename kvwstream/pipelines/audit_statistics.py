"""The audit of what `reduce` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.audit_store import BadPartError, StoreAudit
from kvwstream.pipelines.derive import derive
from kvwstream.pipelines.read_ahead import Reader
from kvwstream.pipelines.sources import check_compatible, describe
from kvwstream.stores.arrays import Array, ArrayDigest, check_group, digest_array
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.statistics import DIMS, Statistics


def audit_statistics(
    result: Audit, location: Location, audits: Sequence[StoreAudit], *, sound: bool
) -> None:
    """Check every array against its digest, then derive all of them anew from the stores.

    The parts of the stores are checked as they are read for that. `sound` is False where something
    else was found wrong already: then nothing is derived.
    """
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
    missing = [name for name in stored.array_names if name not in recorded]
    result.findings += [f"{url}: the digest of {name} is missing" for name in missing]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = {name: pool.submit(stored.check, name) for name in recorded}
    sound_arrays = [result.attempt(checks[name].result) for name in recorded]
    if all(sound_arrays):
        result.verified.append(f"{url}: {len(recorded)} arrays as digested")
        result.attempt(partial(check_group, location, recorded))

    wrong = f"{url}: not derived anew as long as something is wrong"
    if not (sound and result.passed):
        result.notes.append(wrong)
        return
    try:
        by_digest = {old.digest(): old for audit in audits for old in audit.store.revisions()}
    except DamageError:  # of a seal, which will be a finding of its part
        result.notes.append(wrong)
        return
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
    checkers = {audit.store.location.url: audit for audit in audits}

    def read(store: CollectStore, index: int, moments: Sequence[str]) -> PartData:
        return store.without_withdrawn(checkers[store.location.url].read(index))

    try:
        result.attempt(lambda: _derive_anew(stored, sources["retain"], sources["forget"], read))
    except BadPartError:
        result.notes.append(wrong)


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
    stored: Statistics, retain: Sequence[CollectStore], forget: Sequence[CollectStore], read: Reader
) -> str:
    if not retain:
        raise DamageError(f"{stored.location.url}: damaged: none of its sources is to retain")
    check_compatible([*retain, *forget])
    sizes = {"vector": retain[0].plan.num_vectors, "site": retain[0].plan.num_sites}
    records = stored.num_forget_records
    shapes = {n: (records, sizes[d[1]]) for n, d in DIMS.items() if len(d) == 2}
    digests = _Digests(shapes)
    derive(digests, retain, forget, read=read)
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
