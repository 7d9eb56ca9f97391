"""KVW, the paper's method, by the library: collect, reduce, gates from the stored statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.methods.manu import MOMENTS
from kvwstream.accessor import vector_gates
from kvwstream.coefficients import Float64
from kvwstream.examples import Example
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import Site
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength


def collect_both(
    model: Path,
    forget: Sequence[Example],
    retain: Sequence[Example],
    folder: Path,
    *,
    dtype: str = "auto",
    tokens: str = "answer",
) -> Path:
    """`folder` with retain.zarr, forget.zarr and statistics.zarr; what is there is not made again.

    Retain records hold four examples, forget records one: each is a weakening step.
    """
    stores = {kind: str(folder / f"{kind}.zarr") for kind in ("retain", "forget")}
    statistics = folder / "statistics.zarr"
    if not statistics.exists():
        for kind, examples, size in (("retain", retain, 4), ("forget", forget, 1)):
            prepared = prepare(
                str(model), examples, batch_size=size, tokens=tokens, moments=MOMENTS, dtype=dtype
            )
            collect(prepared, stores[kind])
        reduce([stores["retain"]], str(statistics), [stores["forget"]])
    return folder


def gamma_taking(share: float, total: Float64) -> float:
    """The gamma at which the mean of 1 - exp(-gamma S) over the vectors of S is `share`.

    A gamma means something else for every shape and number of forget records; this does not. Where
    fewer vectors than that have an S above 0, gamma is so large that it takes these whole.
    """
    low, high = -60.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        taken = float(np.mean(-np.expm1(-math.exp(middle) * total)))
        low, high = (low, middle) if taken > share else (middle, high)
    return math.exp(high)


def permuted(total: Float64, sites: Sequence[Site]) -> Float64:
    """The control: S dealt out anew within each layer, as many vectors as strongly, but others."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(total[site.vectors]) for site in sites])


def gates(statistics: Path, strength: Strength) -> Float64:
    """(vector,) gates of a frozen replay."""
    stored = Statistics.open(Location(str(statistics)))
    total = strength.exponent(stored)
    return vector_gates(stored.sites, total, strength.gamma, strength.layers)
