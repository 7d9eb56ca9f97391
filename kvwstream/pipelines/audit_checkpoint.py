"""The audit of what `apply` writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvwstream.accessor import LayerRange, check_gamma
from kvwstream.checkpoint import MANIFEST, Checkpoint, file_digests
from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.pipelines.apply import MANIFEST_VERSION, scalings_for
from kvwstream.pipelines.audit_report import Audit
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.weakening import scaled_blocks

FIELDS = (
    "base",
    "statistics",
    "gamma",
    "layers",
    "schedule",
    "arithmetic",
    "num_forget_records",
    "digest",
    "headers",
    "files",
    "weakened",
    "kept",
)
"""What a manifest must say."""


def audit_checkpoint(
    result: Audit, folder: Path, base: Path | None, statistics: str | None
) -> None:
    """Check a weakened checkpoint against its manifest and, if given, its base and statistics."""
    try:
        manifest = _read_manifest(folder)
        checkpoint = Checkpoint.open(folder)
    except KvwstreamError as error:
        result.findings.append(str(error))
        return
    expected = {n: d["after"] for n, d in manifest["weakened"].items()} | manifest["kept"]
    if _compare(result, f"{folder}: tensor", expected, checkpoint.tensor_digests):
        result.attempt(lambda: _check_digest(manifest, checkpoint))
    _compare(result, f"{folder}: header of", manifest["headers"], checkpoint.header_digests)
    others = file_digests(folder, checkpoint.other_files())
    _compare(result, f"{folder}: file", manifest["files"], others)
    if base is None:
        result.notes.append(f"{folder}: not compared with its base; give --base MODEL")
        return
    try:
        original = Checkpoint.open(base)
    except KvwstreamError as error:
        result.findings.append(str(error))
        return
    if not result.attempt(lambda: _check_base(manifest, original)):
        return
    before = {n: d["before"] for n, d in manifest["weakened"].items()} | manifest["kept"]
    _compare(result, f"{base}: tensor", before, original.tensor_digests)
    _compare(result, f"{base}: header of", manifest["headers"], original.header_digests)
    copied = file_digests(base, original.side_files())
    _compare(result, f"{base}: file", manifest["files"], copied)
    if statistics is None:
        result.notes.append(f"{folder}: weights not made anew; give --statistics S")
        return
    result.attempt(lambda: _make_anew(manifest, original, checkpoint, statistics))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DamageError(f"{folder}: no store, no statistics, and no {MANIFEST} of `apply` there")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        version = manifest["manifest_version"]
        if version != MANIFEST_VERSION:
            raise DamageError(f"{path}: manifest version {version}, expected {MANIFEST_VERSION}")
        missing = [field for field in FIELDS if field not in manifest]
        if missing:
            raise DamageError(f"{path}: damaged: no {', '.join(missing)}")
        digests = [manifest["digest"], *manifest["kept"].values()]
        digests += [manifest[field]["digest"] for field in ("base", "statistics")]
        digests += [d[when] for d in manifest["weakened"].values() for when in ("before", "after")]
        if not all(isinstance(digest, str) for digest in digests):
            raise TypeError("a digest is not text")
        check_gamma(manifest["gamma"])
        LayerRange.parse(manifest["layers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamageError):
            raise
        raise DamageError(f"{path}: damaged: {error}") from error
    return manifest


def _check_digest(manifest: dict[str, Any], checkpoint: Checkpoint) -> str:
    """The digest of the whole knows dtypes and shapes too."""
    if checkpoint.digest != manifest["digest"]:
        raise DamageError(
            f"{checkpoint.folder}: a dtype, a shape or the digest in {MANIFEST} is changed: the "
            f"weights are {checkpoint.digest[:12]}…, it says {manifest['digest'][:12]}…"
        )
    return f"{checkpoint.folder}: {len(checkpoint.tensors)} tensors as in {MANIFEST}"


def _check_base(manifest: dict[str, Any], original: Checkpoint) -> str:
    expected = manifest["base"]["digest"]
    if original.digest != expected:
        raise DamageError(
            f"{original.folder}: is not the base: its weights are {original.digest[:12]}…, the "
            f"manifest says {expected[:12]}…"
        )
    return f"{original.folder}: is the base that the manifest names"


def _make_anew(
    manifest: dict[str, Any], original: Checkpoint, weakened: Checkpoint, statistics: str
) -> str:
    stored = Statistics.open(Location(statistics))
    if stored.digest != manifest["statistics"]["digest"]:
        raise DamageError(
            f"{statistics}: is not what the weights were made from: {stored.digest[:12]}…, the "
            f"manifest says {manifest['statistics']['digest'][:12]}…"
        )
    facts = {
        "num_forget_records": stored.num_forget_records,
        "schedule": stored.attributes["model"]["schedule"],
        "arithmetic": "exact",
    }
    for field, value in facts.items():
        if manifest[field] != value:
            raise DamageError(
                f"{weakened.folder}: {MANIFEST} says {field} {manifest[field]!r}, not {value!r}"
            )
    layers = LayerRange.parse(manifest["layers"])
    scalings = scalings_for(original, stored, manifest["gamma"], layers)
    if scalings.keys() != manifest["weakened"].keys():
        wrong = sorted(scalings.keys() ^ manifest["weakened"].keys())
        raise DamageError(f"{weakened.folder}: layers {layers} and the manifest disagree: {wrong}")
    wrong = []
    for name, scaling in scalings.items():
        digest = hashlib.sha256()
        for _, made in scaled_blocks(original, original.tensors[name], scaling):
            digest.update(made)
        if digest.hexdigest() != weakened.tensor_digests.get(name):
            wrong.append(name)
    if wrong:
        raise DamageError(
            f"{weakened.folder}: {len(wrong)} weakened tensors are not base times gate: "
            + ", ".join(wrong)
        )
    return f"{weakened.folder}: {len(scalings)} weakened tensors made anew, bit for bit"


def _compare(result: Audit, what: str, expected: dict[str, str], found: dict[str, str]) -> bool:
    names = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    for name in names:
        kind = "missing" if name not in found else "extra" if name not in expected else "changed"
        result.findings.append(f"{what} {name}: {kind}")
    return not names
