"""Going on from an earlier state of a replay instead of from the base, where that is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvwstream.canonical import differences
from kvwstream.checkpoint import MANIFEST, Checkpoint, file_digests
from kvwstream.errors import DamageError, OptionError, PlanMismatchError
from kvwstream.manifest import check_seal
from kvwstream.pipelines.audit_manifest import read_manifest
from kvwstream.pipelines.recipe import Recipe
from kvwstream.weakening import TensorDigests

MOVING = ("until", "num_forget_records")
"""What may differ between an earlier state and a later one."""


def read_earlier(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The manifest of the weakened checkpoint `folder`, from which `recipe` can go on.

    Multiplying in place, record after record, can be interrupted anywhere; exact arithmetic rounds
    once, so it always begins at the base. Raises `OptionError` where going on would not be exact,
    `PlanMismatchError` with a line per difference if `folder` was made otherwise, `DamageError` if
    its manifest was changed.
    """
    if recipe.arithmetic != "in-place" or recipe.strength.accessor == "mean":
        raise OptionError(
            f"{folder}: going on from there is exact with in-place arithmetic and a row of A per "
            "record alone; leave --from out, the base gives the same in one pass"
        )
    manifest = read_manifest(folder)
    check_seal(manifest, str(folder / MANIFEST))
    if manifest["kind"] != "checkpoint":
        raise OptionError(f"{folder}: is no weakened checkpoint but of kind {manifest['kind']}")
    facts = {
        **recipe.facts(),
        "statistics": recipe.stored.digest,
        "base": recipe.stored.model_digest,
    }
    found = {**manifest, **{name: manifest[name]["digest"] for name in ("statistics", "base")}}
    wrong = differences(found, facts, [name for name in facts if name not in MOVING])
    if wrong:
        raise PlanMismatchError(f"{folder}: was made otherwise:\n  " + "\n  ".join(wrong))
    done, wanted = manifest["num_forget_records"], facts["num_forget_records"]
    if done > wanted:
        raise OptionError(
            f"{folder}: {done} records are applied there already, {wanted} are wanted; what was "
            "rounded cannot be taken back, leave --from out"
        )
    return manifest


def from_base(
    folder: Path, manifest: dict[str, Any], digests: dict[str, TensorDigests]
) -> dict[str, TensorDigests]:
    """Digests of the base's tensors and of the new ones, once those of `folder` were read.

    `DamageError` if a tensor of `folder` is not what its manifest says.
    """
    before = {name: d["before"] for name, d in manifest["weakened"].items()} | manifest["kept"]
    after = {name: d["after"] for name, d in manifest["weakened"].items()} | manifest["kept"]
    changed = sorted(n for n in digests.keys() | after.keys() if _read(digests, n) != after.get(n))
    if changed:
        raise DamageError(f"{folder}: changed since it was written: {', '.join(changed[:3])}")
    return {name: TensorDigests(before[name], d.after) for name, d in digests.items()}


def open_earlier(folder: Path, base: Checkpoint) -> Checkpoint:
    """The weakened checkpoint; `DamageError` if its headers or other files are not the base's."""
    earlier = Checkpoint.open(folder)
    if earlier.header_digests != base.header_digests:
        raise DamageError(f"{folder}: its shards or headers are not those of {base.folder}")
    files, copies = (file_digests(place.folder, place.side_files()) for place in (base, earlier))
    unlike = sorted(n for n in files.keys() | copies.keys() if files.get(n) != copies.get(n))
    if unlike:
        raise DamageError(
            f"{folder}: not the files of {base.folder}, that it was made from: {', '.join(unlike)}"
        )
    return earlier


def _read(digests: dict[str, TensorDigests], name: str) -> str | None:
    return digests[name].before if name in digests else None
