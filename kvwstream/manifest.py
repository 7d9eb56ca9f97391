"""`kvwstream.json`: what a result of `apply` was made from and what it holds, in every shape.

A manifest is a plain JSON object. Its last field is the SHA-256 of all the others.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import safetensors

import kvwstream
from kvwstream.canonical import digest_of
from kvwstream.errors import DamageError
from kvwstream.plan import ARITHMETICS
from kvwstream.strength import Strength

MANIFEST_VERSION = 3
STRENGTH_FIELDS = tuple(field.name for field in dataclasses.fields(Strength))
COMMON = (
    *("environment", "base", "statistics", *STRENGTH_FIELDS),
    *("schedule", "arithmetic", "as_frozen", "warning", "num_forget_records", "sha256"),
)
FIELDS = {
    "checkpoint": ("digest", "headers", "files", "weakened", "kept"),
    "adapter": ("gates", "files"),
    "gates": ("gates",),
}
"""By kind of result, what its manifest must say beside what all say."""


def environment() -> dict[str, str]:
    """Versions of what makes a result; other versions may give it, too."""
    return {
        "kvwstream": kvwstream.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }


def finish(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the digest that closes it."""
    return {**manifest, "sha256": digest_of(manifest)}


def dump(manifest: dict[str, Any]) -> str:
    """As it stands in a file."""
    return json.dumps(manifest, indent=2) + "\n"


def parse(text: str, place: str) -> dict[str, Any]:
    """Inverse of `dump`; `DamageError` unless everything is there and of its kind."""
    try:
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["manifest_version"]
        if version != MANIFEST_VERSION:
            raise DamageError(f"{place}: manifest version {version}, expected {MANIFEST_VERSION}")
        fields = (*COMMON, *FIELDS[manifest["kind"]])
        missing = [field for field in fields if field not in manifest]
        if missing:
            raise DamageError(f"{place}: damaged: no {', '.join(missing)}")
        if not all(isinstance(digest, str) for digest in _digests(manifest)):
            raise TypeError("a digest is not text")
        if manifest["arithmetic"] not in ARITHMETICS:
            raise ValueError(f"arithmetic {manifest['arithmetic']!r}")
        layers = strength_of(manifest).layers
        for path, gate in manifest.get("gates", {}).items():
            if gate["layer"] not in layers or gate["axis"] not in (0, 1) or gate["width"] < 1:
                raise ValueError(f"layer, axis or width of {path}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamageError):
            raise
        raise DamageError(f"{place}: damaged: {error}") from error
    return manifest


def check_seal(manifest: dict[str, Any], place: str) -> None:
    """`DamageError` if a field was changed and the digest at the end was not."""
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    if digest_of(fields) != manifest["sha256"]:
        raise DamageError(f"{place}: changed since `apply` wrote it, its sha256 is of other fields")


def strength_of(manifest: dict[str, Any]) -> Strength:
    """How the statistics became gates."""
    return Strength.from_dict({field: manifest[field] for field in STRENGTH_FIELDS})


def _digests(manifest: dict[str, Any]) -> list[Any]:
    found = [manifest["sha256"], *(manifest[field]["digest"] for field in ("base", "statistics"))]
    found += manifest.get("kept", {}).values()
    found += [
        d[when] for d in manifest.get("weakened", {}).values() for when in ("before", "after")
    ]
    found += [gate["sha256"] for gate in manifest.get("gates", {}).values()]
    found += [
        digest for field in ("files", "headers") for digest in manifest.get(field, {}).values()
    ]
    return [*found, manifest.get("digest", "")]
