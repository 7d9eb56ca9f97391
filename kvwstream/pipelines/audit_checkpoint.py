"""The audit of what `apply` writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvwstream.accessor import LayerRange
from kvwstream.checkpoint import MANIFEST, Checkpoint
from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.pipelines.apply import MANIFEST_VERSION, scalings_for
from kvwstream.pipelines.audit_report import Audit
from kvwstream.rounding import ITEMSIZE, scale
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics


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
    _compare(result, f"{folder}: tensor", expected, checkpoint.tensor_digests)
    if result.passed:
        result.verified.append(f"{folder}: {len(expected)} tensors as in {MANIFEST}")
    if base is None:
        result.notes.append(f"{folder}: not compared with its base; give --base MODEL")
        return
    original = Checkpoint.open(base)
    if not result.attempt(lambda: _check_base(manifest, original)):
        return
    before = {n: d["before"] for n, d in manifest["weakened"].items()} | manifest["kept"]
    _compare(result, f"{base}: tensor", before, original.tensor_digests)
    _compare(result, f"{folder}: file", _side_digests(original), _side_digests(checkpoint))
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
        _ = manifest["weakened"], manifest["kept"], manifest["base"]["digest"]
        LayerRange.parse(manifest["layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path}: damaged: {error}") from error
    if version != MANIFEST_VERSION:
        raise DamageError(f"{path}: manifest version {version}, expected {MANIFEST_VERSION}")
    return manifest


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
    layers = LayerRange.parse(manifest["layers"])
    scalings = scalings_for(original, stored, manifest["gamma"], layers)
    if scalings.keys() != manifest["weakened"].keys():
        wrong = sorted(scalings.keys() ^ manifest["weakened"].keys())
        raise DamageError(f"{weakened.folder}: layers {layers} and the manifest disagree: {wrong}")
    wrong = []
    for name, scaling in scalings.items():
        tensor = original.tensors[name]
        row_bytes = tensor.shape[1] * ITEMSIZE[tensor.dtype]
        digest, first = hashlib.sha256(), 0
        for block in original.blocks(tensor, tensor.shape[0]):
            made = scale(block, tensor.dtype, tensor.shape[1], *scaling, first_row=first)
            digest.update(made)
            first += len(block) // row_bytes
        if digest.hexdigest() != weakened.tensor_digests.get(name):
            wrong.append(name)
    if wrong:
        raise DamageError(
            f"{weakened.folder}: {len(wrong)} weakened tensors are not base times gate: "
            + ", ".join(wrong)
        )
    return f"{weakened.folder}: {len(scalings)} weakened tensors made anew, bit for bit"


def _compare(
    result: Audit, what: str, expected: dict[str, str], found: dict[str, str]
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            kind = "missing" if name not in found else "extra" if name not in expected else "changed"
            result.findings.append(f"{what} {name}: {kind}")


def _side_digests(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        name.as_posix(): hashlib.sha256((checkpoint.folder / name).read_bytes()).hexdigest()
        for name in checkpoint.side_files()
    }
