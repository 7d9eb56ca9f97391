"""The Forget Knowledge Accessor A, the exponent S and the gates (Eq. 4-6). NumPy only.

A says how much stronger a knowledge vector speaks on the forget data than on the retain data, S is
the sum of A over the forget records replayed so far, and exp(-gamma * S) is what a knowledge vector
is multiplied by. Everything is float64, without units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvwstream.coefficients import Float64
from kvwstream.errors import OptionError
from kvwstream.plan import Site
from kvwstream.reproducible import exp_negative, log

EPSILON = 1e-12
LARGEST_ENERGY = 1024.0
"""Where E is cut off: far above what leaves anything of a vector, far from overflow."""


def accessor(forget_mean: Float64, retain_mean: Float64, covered: npt.NDArray[np.bool_]) -> Float64:
    """A = max(0, log(C_f + eps) - log(C_r + eps)), Eq. 4.

    `forget_mean` (..., vector), `retain_mean` (vector,), both means of non-negative coefficients;
    `covered` (vector,) is False where the retain data had no token: there A is 0 (gate 1).
    """
    return accessor_above(forget_mean, log_mean(retain_mean), covered)


def log_mean(mean: Float64) -> Float64:
    """log(C + eps) of a mean of non-negative coefficients."""
    return log(mean + EPSILON)


def accessor_above(
    forget_mean: Float64, log_retain: Float64, covered: npt.NDArray[np.bool_]
) -> Float64:
    """`accessor`, with `log_mean` of C_r taken once for all forget records."""
    ratio = log_mean(forget_mean) - log_retain
    return np.where(covered, np.maximum(ratio, 0.0), 0.0)


def energy(
    forget_mean: Float64,
    signed_mean: Float64,
    retain_mean: Float64,
    square_mean: Float64,
    covered: npt.NDArray[np.bool_],
) -> Float64:
    """E^2 where C_f > C_r, E = (signed mean of the forget record)^2 / (mean square of retain).

    E compares the energy that a record puts through a knowledge vector in one direction with all
    energy that the retain data put through it. `forget_mean`, `signed_mean` (..., vector),
    `retain_mean`, `square_mean`, `covered` (vector,). Not in the paper; see `docs/shapes.md`.
    """
    ratio = np.minimum(signed_mean * signed_mean / (square_mean + EPSILON), LARGEST_ENERGY)
    return np.where(covered & (forget_mean > retain_mean), ratio * ratio, 0.0)


def coherent(accessors: Float64, forget_mean: Float64, signed_mean: Float64) -> Float64:
    """A^2 |m| / C_f: the paper's A squared, by how far a record's coefficients point one way.

    `accessors` (..., vector) of the records, `forget_mean` C_f and `signed_mean` m alike. The share
    is 1 where all coefficients have one sign, and 0 where they cancel or where there are none. Not
    in the paper; see `docs/shapes.md`.
    """
    agreeing = np.minimum(np.abs(signed_mean), forget_mean)
    share = np.divide(agreeing, forget_mean, out=np.zeros_like(agreeing), where=forget_mean > 0)
    return accessors * accessors * share


def exponent(accessors: npt.ArrayLike) -> Float64:
    """S after the records `accessors` (record, vector): a left fold in record order."""
    rows = np.asarray(accessors, dtype=np.float64)
    total = np.zeros(rows.shape[1:])
    for row in rows:
        total += row
    return total


def gates(exponents: Float64, gamma: float) -> Float64:
    """exp(-gamma * S) (Eq. 5), in (0, 1]; `OptionError` unless gamma is finite and not negative."""
    return exp_negative(log_gates(exponents, gamma))


def log_gates(exponents: Float64, gamma: float) -> Float64:
    """-gamma * S, not positive; `OptionError` unless gamma is finite and not negative."""
    values: Float64 = 0.0 - check_gamma(gamma) * exponents  # no gate is a negative zero
    return values


def check_gamma(gamma: float) -> float:
    """`gamma` itself; `OptionError` unless it is finite and not negative."""
    if not math.isfinite(gamma) or gamma < 0:
        raise OptionError(f"gamma must be a finite number of at least 0, got {gamma}")
    return gamma


class LayerRange(NamedTuple):
    """Decoder layers `start <= layer <= stop`, zero-based and inclusive as in the paper."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """`"1:25"` or `"7"`; `OptionError` for anything else, reversed or negative."""
        first, colon, last = text.partition(":")
        try:
            layers = cls(int(first), int(last) if colon else int(first))
        except ValueError:
            raise OptionError(f"layers must be like 1:25 (first:last), got {text!r}") from None
        if layers.start < 0 or layers.stop < layers.start:
            raise OptionError(
                f"layers {text}: must not be negative, and the first not beyond the last"
            )
        return layers

    def check(self, num_layers: int) -> None:
        """`OptionError` if the range goes beyond a model of `num_layers` layers."""
        if self.stop >= num_layers:
            raise OptionError(
                f"layers {self}: the model has layers 0 to {num_layers - 1}; choose within them"
            )

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer <= self.stop

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


def vector_gates(
    sites: Sequence[Site], exponents: Float64, gamma: float, layers: LayerRange
) -> Float64:
    """(vector,) gates: exp(-gamma * S) within `layers`, 1 outside.

    Raises what `sites_within` does.
    """
    values = np.ones_like(exponents)
    for site in sites_within(sites, layers):
        values[site.vectors] = gates(exponents[site.vectors], gamma)
    return values


def sites_within(sites: Sequence[Site], layers: LayerRange) -> list[Site]:
    """Sites of the layers; `OptionError` if there are none, or layers beyond the last site's."""
    layers.check(1 + max(site.layer for site in sites))
    chosen = [site for site in sites if site.layer in layers]
    if not chosen:
        raise OptionError(f"layers {layers}: none of them has a value projection to weaken")
    return chosen
