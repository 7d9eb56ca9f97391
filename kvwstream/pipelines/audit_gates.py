"""The audit of gates that stand alone: adapters and gates files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvwstream.adapter import BASE_FIELDS, CONFIG, adapter_config, adapter_vectors, read_vectors
from kvwstream.checkpoint import MANIFEST, file_digests
from kvwstream.errors import DamageError
from kvwstream.gates_file import Array, GatesFile, check_gates, describe_gates
from kvwstream.pipelines.audit_manifest import check_manifest, compare, open_base, open_recipe
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.recipe import Recipe


def audit_adapter(
    result: Audit, folder: Path, manifest: dict[str, Any], base: Path | None, statistics: str | None
) -> None:
    """Check an adapter against its manifest and, if given, its base and statistics."""
    check_manifest(result, manifest, folder / MANIFEST)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path for path in names if path != Path(MANIFEST)]
    compare(result, f"{folder}: file", manifest["files"], file_digests(folder, names))
    result.attempt(lambda: _check_config(folder, manifest))

    def check_vectors() -> str:
        vectors = read_vectors(folder)
        check_gates(manifest["gates"], vectors, str(folder), np.float32)
        if not all(np.all((v >= 0) & (v <= 1)) for v in vectors.values()):
            raise DamageError(f"{folder}: holds numbers that no gates are")
        return f"{folder}: gates of {len(vectors)} sites as in {MANIFEST}"

    result.attempt(check_vectors)
    _audit_origin(
        result, folder, manifest, base, statistics, lambda r: adapter_vectors(r.log_gates())
    )


def audit_gates_file(result: Audit, path: Path, base: Path | None, statistics: str | None) -> None:
    """Check a gates file against its own manifest and, if given, its base and statistics."""
    try:
        file = GatesFile.read(path)
    except DamageError as error:
        result.findings.append(str(error))
        return
    check_manifest(result, file.manifest, path)

    def check_log_gates() -> str:
        file.check_gates(str(path))
        if not all(np.all(np.isfinite(v) & (v <= 0)) for v in file.log_gates.values()):
            raise DamageError(f"{path}: holds numbers that no log-gates are")
        return f"{path}: gates of {len(file.log_gates)} sites as in its manifest"

    result.attempt(check_log_gates)
    _audit_origin(result, path, file.manifest, base, statistics, lambda r: r.log_gates())


def _audit_origin(
    result: Audit,
    place: Path,
    manifest: dict[str, Any],
    base: Path | None,
    statistics: str | None,
    make: Callable[[Recipe], Mapping[str, Array]],
) -> None:
    """The base is the one, and the gates follow from the statistics."""
    original = None
    if base is None:
        result.notes.append(f"{place}: not compared with its base; give --base MODEL")
    else:
        original = open_base(result, manifest, base)
        if original is None:
            return
    if statistics is None:
        result.notes.append(f"{place}: gates not made anew; give --statistics S")
        return

    def make_anew() -> str:
        recipe = open_recipe(manifest, statistics, place)
        if original is not None:
            recipe.sites_in(original)
        made, said = describe_gates(recipe.sites, make(recipe)), manifest["gates"]
        wrong = sorted(n for n in made.keys() | said.keys() if made.get(n) != said.get(n))
        if wrong:
            raise DamageError(
                f"{place}: gates of {len(wrong)} sites do not follow from {statistics}: "
                + ", ".join(wrong)
            )
        return f"{place}: gates of {len(made)} sites made anew, bit for bit"

    result.attempt(make_anew)


def _check_config(folder: Path, manifest: dict[str, Any]) -> str | None:
    """PEFT will put the gates where the manifest says, and nowhere else."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        expected = adapter_config({path: g["axis"] for path, g in manifest["gates"].items()})
        expected |= {name: config[name] for name in BASE_FIELDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{folder}/{CONFIG}: missing or damaged: {error!r}") from error
    wrong = sorted(n for n in config.keys() | expected.keys() if config.get(n) != expected.get(n))
    if wrong:
        raise DamageError(f"{folder}/{CONFIG}: does not fit {MANIFEST}: {', '.join(wrong)}")
    return None
