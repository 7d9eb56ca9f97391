"""Gates as a file: log-gates of every weakened site, and the manifest, in one safetensors file.

A tensor per site, named by its module path: -gamma * S, float64 (width,). Sites outside the layers
are not stored; their log-gate is 0. The manifest stands in the header's metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kvwstream.checkpoint import MANIFEST
from kvwstream.coefficients import Float64
from kvwstream.errors import DamageError
from kvwstream.manifest import check_seal, dump, parse
from kvwstream.plan import Site

Array = npt.NDArray[Any]


class GatesFile(NamedTuple):
    """The log-gates of each site, and the manifest."""

    log_gates: dict[str, Float64]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> GatesFile:
        """Inverse of `write_gates`; `DamageError` for another file. `check` asks if it is whole."""
        metadata, tensors = read_tensors(path)
        if MANIFEST not in metadata:
            raise DamageError(f"{path}: holds no gates that `kvwstream apply --as gates` wrote")
        return cls(tensors, parse(metadata[MANIFEST], str(path)))

    def check(self, place: str) -> None:
        """`DamageError` unless everything is as it was written."""
        check_seal(self.manifest, place)
        self.check_gates(place)

    def check_gates(self, place: str) -> None:
        """`DamageError` with a line for each site whose log-gates are not those of the manifest."""
        check_gates(self.manifest["gates"], self.log_gates, place, np.float64)

    @property
    def sites(self) -> list[Site]:
        """Sites in layer order, one after the other on a vector axis of their own."""
        sites: list[Site] = []
        entries = self.manifest["gates"].items()
        for path, gate in sorted(entries, key=lambda entry: (entry[1]["layer"], entry[0])):
            offset = sites[-1].vectors.stop if sites else 0
            sites.append(Site(path, "", gate["axis"], gate["layer"], -1, gate["width"], offset))
        return sites


def write_gates(path: Path, log_gates: Mapping[str, Float64], manifest: dict[str, Any]) -> None:
    """Write the file; the manifest names the same sites."""
    path.write_bytes(save(dict(log_gates), {MANIFEST: dump(manifest)}))


def describe_gates(sites: list[Site], gates: Mapping[str, Array]) -> dict[str, Any]:
    """What a manifest says of each site's gates."""
    return {
        site.path: {
            "layer": site.layer,
            "axis": site.axis,
            "width": site.width,
            "sha256": hashlib.sha256(gates[site.path].tobytes()).hexdigest(),
        }
        for site in sites
    }


def check_gates(
    expected: Mapping[str, Any],
    found: Mapping[str, Array],
    place: str,
    dtype: type[np.floating[Any]],
) -> None:
    """`DamageError` with a line for each site whose gates are missing, extra or changed."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found or path not in expected:
            lines.append(f"{place}: gates of {path}: {'extra' if path in found else 'missing'}")
            continue
        values, entry = found[path], expected[path]
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        same = values.dtype == dtype and values.size == entry["width"]
        if not same or digest != entry["sha256"]:
            lines.append(f"{place}: gates of {path}: changed")
    if lines:
        raise DamageError("\n".join(lines))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Metadata and tensors of a safetensors file; `DamageError` if it is none."""
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"{path}: not a whole safetensors file of numbers: {error}") from error
