"""The audit of weakened checkpoints."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kvwstream.checkpoint import MANIFEST, Checkpoint, file_digests
from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.pipelines.audit_manifest import check_manifest, compare, open_base, open_recipe
from kvwstream.pipelines.audit_report import Audit
from kvwstream.weakening import Scaling, scaled_blocks


def audit_checkpoint(
    result: Audit, folder: Path, manifest: dict[str, Any], base: Path | None, statistics: str | None
) -> None:
    """Check a weakened checkpoint against its manifest and, if given, its base and statistics."""
    check_manifest(result, manifest, folder / MANIFEST)
    try:
        checkpoint = Checkpoint.open(folder)
    except KvwstreamError as error:
        result.findings.append(str(error))
        return
    expected = {n: d["after"] for n, d in manifest["weakened"].items()} | manifest["kept"]
    if compare(result, f"{folder}: tensor", expected, checkpoint.tensor_digests):
        result.attempt(lambda: _check_digest(manifest, checkpoint))
    compare(result, f"{folder}: header of", manifest["headers"], checkpoint.header_digests)
    others = file_digests(folder, checkpoint.other_files())
    compare(result, f"{folder}: file", manifest["files"], others)
    if base is None:
        result.notes.append(f"{folder}: not compared with its base; give --base MODEL")
        return
    original = open_base(result, manifest, base)
    if original is None:
        return
    before = {n: d["before"] for n, d in manifest["weakened"].items()} | manifest["kept"]
    compare(result, f"{base}: tensor", before, original.tensor_digests)
    compare(result, f"{base}: header of", manifest["headers"], original.header_digests)
    copied = file_digests(base, original.side_files())
    compare(result, f"{base}: file", manifest["files"], copied)
    if statistics is None:
        result.notes.append(f"{folder}: weights not made anew; give --statistics S")
        return
    result.attempt(lambda: _make_anew(manifest, original, checkpoint, statistics))


def _check_digest(manifest: dict[str, Any], checkpoint: Checkpoint) -> str:
    """The digest of the whole knows dtypes and shapes too."""
    if checkpoint.digest != manifest["digest"]:
        raise DamageError(
            f"{checkpoint.folder}: a dtype, a shape or the digest in {MANIFEST} is changed: the "
            f"weights are {checkpoint.digest[:12]}…, it says {manifest['digest'][:12]}…"
        )
    return f"{checkpoint.folder}: {len(checkpoint.tensors)} tensors as in {MANIFEST}"


def _make_anew(
    manifest: dict[str, Any], original: Checkpoint, weakened: Checkpoint, statistics: str
) -> str:
    recipe = open_recipe(manifest, statistics, weakened.folder)
    touched = {site.tensor for site in recipe.sites_in(original)}
    if touched != manifest["weakened"].keys():
        disagree = sorted(touched ^ manifest["weakened"].keys())
        raise DamageError(
            f"{weakened.folder}: layers {recipe.strength.layers} and the manifest disagree: "
            f"{disagree}"
        )

    def made(name: str, scaling: Scaling) -> str:
        digest = hashlib.sha256()
        for _, block in scaled_blocks(original, original.tensors[name], scaling):
            digest.update(block)
        return digest.hexdigest()

    wrong = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in recipe.scalings(original):
            digests = dict(zip(batch, pool.map(made, batch, batch.values()), strict=True))
            wrong += [
                n for n, digest in digests.items() if digest != weakened.tensor_digests.get(n)
            ]
    if wrong:
        raise DamageError(
            f"{weakened.folder}: {len(wrong)} weakened tensors are not base times gate: "
            + ", ".join(wrong)
        )
    return f"{weakened.folder}: {len(touched)} weakened tensors made anew, bit for bit"
