"""Check any artefact offline: stores, statistics, results of `apply`. No model code, no GPU.

Every check either holds or becomes a finding that names what is missing, extra or changed. What
cannot be checked with what was given is said too, as a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvwstream.checkpoint import MANIFEST
from kvwstream.errors import DamageError
from kvwstream.pipelines.audit_checkpoint import audit_checkpoint
from kvwstream.pipelines.audit_gates import audit_adapter, audit_gates_file
from kvwstream.pipelines.audit_manifest import read_manifest
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.audit_statistics import audit_statistics
from kvwstream.pipelines.audit_store import StoreAudit, audit_store
from kvwstream.stores.arrays import read_attributes
from kvwstream.stores.location import Location


def audit(
    paths: Sequence[str], *, base: Path | None = None, statistics: str | None = None
) -> Audit:
    """Check every path by what it is; statistics are re-derived from the stores among `paths`.

    With `base` and `statistics`, each weakened tensor of a checkpoint, and the gates of an adapter
    or a gates file, are made anew and compared bit for bit. Raises only for options that make no
    sense; whatever is wrong is a finding.
    """
    result = Audit()
    stores: list[tuple[Audit, StoreAudit | None]] = []
    later: list[str] = []
    for path in paths:
        location = Location(path)
        if location.is_local and location.path.is_file():
            audit_gates_file(result, location.path, base, statistics)
        elif not location.exists():
            result.findings.append(f"{path}: missing, nothing is there")
        elif location.is_local and _is_result(location):
            _audit_result(result, location.path, base, statistics)
        elif _kind(location) == "collect":
            found = Audit()
            stores.append((found, audit_store(found, location)))
        else:
            later.append(path)
    derived, sound = Audit(), result.passed and all(found.passed for found, _ in stores)
    for path in later:
        opened = [store for _, store in stores if store]
        audit_statistics(derived, Location(path), opened, sound=sound)
    for found, store in stores:
        if store:
            store.finish(found)
        result.add(found)
    result.add(derived)
    return result


def _is_result(location: Location) -> bool:
    return (location.path / MANIFEST).is_file() or location.read("zarr.json") is None


def _audit_result(result: Audit, folder: Path, base: Path | None, statistics: str | None) -> None:
    try:
        manifest = read_manifest(folder)
    except DamageError as error:
        result.findings.append(str(error))
        return
    audit_it = {"checkpoint": audit_checkpoint, "adapter": audit_adapter}.get(manifest["kind"])
    if audit_it is None:
        result.findings.append(
            f"{folder}: its manifest says {manifest['kind']}, but it is a folder"
        )
    else:
        audit_it(result, folder, manifest, base, statistics)


def _kind(location: Location) -> str | None:
    try:
        kind = read_attributes(location).get("kind")
    except DamageError:
        return None
    return str(kind)
