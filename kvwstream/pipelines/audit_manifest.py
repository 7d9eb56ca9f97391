"""What the audits of all results share: the manifest, the base and the statistics it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvwstream.checkpoint import MANIFEST, Checkpoint
from kvwstream.errors import DamageError, KvwstreamError
from kvwstream.manifest import check_seal, parse, strength_of
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.recipe import Recipe
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint or an adapter; `DamageError` if it is not there or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DamageError(f"{folder}: no store, no statistics, and no {MANIFEST} of `apply` there")
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise DamageError(f"{path}: damaged: {error}") from error
    return parse(text, str(path))


def check_manifest(result: Audit, manifest: dict[str, Any], place: Path) -> None:
    """Its fields are those that its own digest closes."""
    result.attempt(lambda: check_seal(manifest, str(place)))


def open_base(result: Audit, manifest: dict[str, Any], base: Path) -> Checkpoint | None:
    """The checkpoint if it is the base that was weakened, else a finding and None."""
    try:
        original = Checkpoint.open(base)
        expected = manifest["base"]["digest"]
        if original.digest != expected:
            raise DamageError(
                f"{base}: is not the base: its weights are {original.digest[:12]}…, the manifest "
                f"says {expected[:12]}…"
            )
    except KvwstreamError as error:
        result.findings.append(str(error))
        return None
    result.verified.append(f"{base}: is the base that the manifest names")
    return original


def open_recipe(manifest: dict[str, Any], statistics: str, place: Path) -> Recipe:
    """What the result was made from; `DamageError` if the manifest says something else."""
    stored = Statistics.open(Location(statistics))
    if stored.digest != manifest["statistics"]["digest"]:
        raise DamageError(
            f"{statistics}: is not what the weights were made from: {stored.digest[:12]}…, the "
            f"manifest says {manifest['statistics']['digest'][:12]}…"
        )
    if stored.model_digest != manifest["base"]["digest"]:
        raise DamageError(
            f"{place}: its manifest names another base than {statistics} was measured on"
        )
    try:
        recipe = Recipe(
            stored, strength_of(manifest), manifest["arithmetic"], manifest["as_frozen"]
        )
    except KvwstreamError as error:
        raise DamageError(f"{place}: its manifest does not fit {statistics}: {error}") from error
    for field, value in recipe.facts().items():
        if manifest[field] != value:
            raise DamageError(
                f"{place}: {MANIFEST} says {field} {manifest[field]!r}, not {value!r}"
            )
    return recipe


def compare(
    result: Audit, what: str, expected: Mapping[str, str], found: Mapping[str, str]
) -> bool:
    """Whether both say the same; a finding for each name that is missing, extra or changed."""
    names = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    for name in names:
        kind = "missing" if name not in found else "extra" if name not in expected else "changed"
        result.findings.append(f"{what} {name}: {kind}")
    return not names
