"""A base model and the gates that weaken it: as hooks, or written for a while."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kvwstream.accessor import vector_gates
from kvwstream.adapter import CONFIG, read_vectors
from kvwstream.checkpoint import MANIFEST, Checkpoint, match_tensors
from kvwstream.coefficients import Float64
from kvwstream.errors import DamageError, OptionError, PlanMismatchError
from kvwstream.gates import gated
from kvwstream.gates_file import GatesFile, check_gates
from kvwstream.manifest import check_seal, parse
from kvwstream.pipelines.recipe import Recipe, check_base, collected_arithmetic
from kvwstream.plan import Site
from kvwstream.reproducible import exp_negative
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from kvwstream.weakening import Exact, copy_scaled


@dataclass(frozen=True)
class Weakening:
    """Gates for a base model: `values` (vector,) float64 over `sites`."""

    sites: list[Site]
    values: Float64
    facts: dict[str, Any]
    """What they were made from, as plain JSON values."""

    @classmethod
    def of_statistics(cls, statistics: str, strength: Strength, model: Path) -> Weakening:
        """Stored A at a strength; `PlanMismatchError` if `model` is another than was measured.

        `OptionError` for a progressive collection at another strength than its own, or in place.
        """
        stored = Statistics.open(Location(statistics))
        if Recipe(stored, strength, collected_arithmetic(stored)).arithmetic != "exact":
            raise OptionError(
                f"{statistics}: in-place arithmetic depends on each weight, so that no gates tell "
                "it; `apply` it and evaluate the checkpoint"
            )
        check_base(stored, Checkpoint.open(model).digest, model)
        total = strength.exponent(stored)
        values = vector_gates(stored.sites, total, strength.gamma, strength.layers)
        return cls(stored.sites, values, {"statistics": stored.digest, **strength.to_dict()})

    @classmethod
    def of_file(cls, path: Path, model: Path) -> Weakening:
        """A gates file or an adapter that `apply` wrote, whole and for this very base."""
        manifest, gates = _read_adapter(path) if path.is_dir() else _read_gates(path)
        measured, digest = manifest["base"]["digest"], Checkpoint.open(model).digest
        if measured != digest:
            raise PlanMismatchError(
                f"{path}: made for weights {measured[:12]}…, but {model} has {digest[:12]}…; gates "
                "fit the very weights that were measured"
            )
        sites = GatesFile({}, manifest).sites
        values = np.concatenate([gates[site.path].reshape(-1) for site in sites])
        return cls(sites, values.astype(np.float64), {"gates": manifest["sha256"]})

    def on(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gates on the coefficients of `model` while the context is open."""
        return gated(model, self.sites, self.values)

    def write(self, base: Path, out: Path) -> None:
        """The weakened checkpoint, as `apply` writes it, into the empty folder `out`."""
        checkpoint = Checkpoint.open(base)
        sites = match_tensors(self.sites, checkpoint)
        scalings = {s.tensor: Exact(s.axis, self.values[s.vectors]) for s in sites}
        copy_scaled(checkpoint, out, list(scalings), [scalings])


def gates_on(model: nn.Module, weakening: Weakening | None) -> AbstractContextManager[None]:
    """The model as weakened, or as it is."""
    return weakening.on(model) if weakening else nullcontext()


def choose_weakening(
    model: Path, statistics: str | None, strength: Strength | None, gates: Path | None
) -> Weakening | None:
    """What the options of a command say; `OptionError` if they do not belong together."""
    if (statistics is None) != (strength is None):
        raise OptionError("statistics and a strength belong together: give both or none")
    if gates and statistics:
        raise OptionError("give statistics with a strength, or gates, not both")
    if statistics is not None and strength is not None:
        return Weakening.of_statistics(statistics, strength, model)
    return Weakening.of_file(gates, model) if gates else None


def _read_gates(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    file = GatesFile.read(path)
    file.check(str(path))
    return file.manifest, {name: exp_negative(v) for name, v in file.log_gates.items()}


def _read_adapter(folder: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    if not (folder / CONFIG).is_file() or not (folder / MANIFEST).is_file():
        raise DamageError(
            f"{folder}: holds no adapter that `kvwstream apply --as adapter` wrote; a weakened "
            "checkpoint is evaluated as MODEL"
        )
    manifest = parse((folder / MANIFEST).read_text(), str(folder / MANIFEST))
    check_seal(manifest, str(folder / MANIFEST))
    vectors = read_vectors(folder)
    check_gates(manifest["gates"], vectors, str(folder), np.float32)
    return manifest, vectors
