"""How stored A becomes gates: one frozen value that `apply`, `evaluate` and `audit` share (Eq. 5).

    S = sum over the first `until` forget records of max(0, A - T)^P,   gate = exp(-gamma * S)

With P = 1, T = 0 and the shape `paper` of A this is the paper. NumPy only; rows come one by one,
memory holds one of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvwstream.accessor import LayerRange, accessor, check_gamma, coherent, energy
from kvwstream.coefficients import Float64, per_vector
from kvwstream.errors import OptionError
from kvwstream.plan import Site

ACCESSORS = ("record", "running", "mean")
SHAPES = ("paper", "energy", "coherent")
SHAPE = {
    **{"power": 1.0, "threshold": 0.0, "accessor": "record", "until": None},
    "shape": "paper",
}
"""The paper's: what a `Strength` is without more than gamma and layers."""
LARGEST_POWER = 8.0
"""A is below 120, so that S stays far from overflow."""


class Stored(Protocol):
    """What statistics hold, as `stores.statistics.Statistics` reads it."""

    @property
    def num_forget_records(self) -> int:
        """Rows of A."""
        ...

    @property
    def has_moments(self) -> bool:
        """Whether there is what the shapes `energy` and `coherent` need."""
        ...

    @property
    def sites(self) -> Sequence[Site]:
        """The value projections, in order of the vector axis."""
        ...

    def read(self, name: str) -> Any:
        """A whole array."""

    def rows(self, name: str, count: int) -> Iterator[Float64]:
        """The first `count` rows of an array (record, vector)."""
        ...

    def exponent(self) -> Float64:
        """The sum of all rows of A; `OptionError` where there are none."""
        ...


@dataclass(frozen=True)
class Strength:
    """Everything that turns stored statistics into gates. `OptionError` for what makes no sense."""

    gamma: float
    """Scales S; 0 changes nothing."""
    layers: LayerRange
    """Decoder layers that are weakened, inclusive."""
    power: float = 1.0
    """P, a multiple of 0.5: made of multiplications and square roots, the same bits everywhere."""
    threshold: float = 0.0
    """T: what A must exceed to count."""
    accessor: str = "record"
    """Which C_f enters A: that of each `record`, the `running` mean over each record and all before
    it, or the `mean` over all records replayed, which makes one row that counts once."""
    until: int | None = None
    """Forget records replayed, from the first on; None is all of them."""
    shape: str = "paper"
    """What A is: the `paper`'s log-ratio of means (Eq. 4), `energy` or `coherent`
    (`docs/shapes.md`)."""

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if not 0 < self.power <= LARGEST_POWER or self.power * 2 % 1:
            raise OptionError(
                f"power must be a multiple of 0.5, from 0.5 to {LARGEST_POWER:g}, got {self.power}"
            )
        if not math.isfinite(self.threshold) or self.threshold < 0:
            raise OptionError(
                f"threshold must be a finite number of at least 0, got {self.threshold}"
            )
        if self.accessor not in ACCESSORS:
            raise OptionError(
                f"accessor must be one of {', '.join(ACCESSORS)}, got {self.accessor}"
            )
        if self.shape not in SHAPES:
            raise OptionError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape}")
        if self.shape != "paper" and self.accessor != "record":
            raise OptionError(
                f"shape {self.shape} is made record by record, got accessor {self.accessor}; leave "
                "it at record"
            )
        if self.until is not None and (not isinstance(self.until, int) or self.until < 0):
            raise OptionError(f"until must be a whole number of at least 0, got {self.until}")

    @classmethod
    def parse(
        cls, statistics: str | None, gamma: float | None, layers: str | None, **shape: Any
    ) -> Strength | None:
        """Options of a command that may do without; `OptionError` if only some are given."""
        if (statistics, gamma, layers) == (None, None, None) and shape == SHAPE:
            return None
        if statistics is None or gamma is None or layers is None:
            raise OptionError(
                "--statistics, --gamma and --layers belong together: give all or none"
            )
        return cls(gamma, LayerRange.parse(layers), **shape)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Strength:
        """Inverse of `to_dict`."""
        return cls(**{**values, "layers": LayerRange.parse(values["layers"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "layers": str(self.layers)}

    def check_fits(self, stored: Stored) -> None:
        """`OptionError` if the statistics do not hold what this takes."""
        self.num_records(stored)
        if self.shape != "paper" and not stored.has_moments:
            raise OptionError(
                f"shape {self.shape} needs the signed and square moments, which these statistics "
                "do not hold: collect both data sets with --moments abs,signed,square, or take "
                "shape paper"
            )

    def num_records(self, stored: Stored) -> int:
        """Forget records replayed; `OptionError` if `until` is beyond the last."""
        if self.until is None:
            return stored.num_forget_records
        if self.until > stored.num_forget_records:
            raise OptionError(
                f"until {self.until}: the statistics hold {stored.num_forget_records} forget "
                "records; choose within them"
            )
        return self.until

    def exponent(self, stored: Stored) -> Float64:
        """S (vector,): the rows that count, added from left to right."""
        self.check_fits(stored)
        total = stored.exponent()
        if self == Strength(self.gamma, self.layers):  # that very sum is stored
            return total
        total = np.zeros_like(total)
        for row in self.rows(stored):
            total += row
        return total

    def rows(self, stored: Stored) -> Iterator[Float64]:
        """max(0, A - T)^P (vector,), a row per weakening step."""
        self.check_fits(stored)
        count = self.num_records(stored)
        return (self._shaped(row) for row in self._accessors(stored, count))

    def num_rows(self, stored: Stored) -> int:
        """How many `rows` there are."""
        count = self.num_records(stored)
        return min(count, 1) if self.accessor == "mean" else count

    def _accessors(self, stored: Stored, count: int) -> Iterator[Float64]:
        if (self.shape, self.accessor) == ("paper", "record"):
            yield from stored.rows("accessor", count)
            return
        if self.shape == "coherent":
            names = ("accessor", "forget_mean", "forget_signed_mean")
            yield from map(coherent, *(stored.rows(name, count) for name in names))
            return
        retain = stored.read("retain_mean")
        widths = np.array([site.width for site in stored.sites], np.int64)
        covered = per_vector(stored.read("retain_token_count") > 0, widths)
        if self.shape == "energy":
            squares = stored.read("retain_square_mean")
            rows = (stored.rows(f"forget_{name}", count) for name in ("mean", "signed_mean"))
            for mean, signed in zip(*rows, strict=True):
                yield energy(mean, signed, retain, squares, covered)
            return
        means = stored.rows("forget_running_mean", count)
        for mean in means if self.accessor == "running" else deque(means, maxlen=1):
            yield accessor(mean, retain, covered)

    def _shaped(self, row: Float64) -> Float64:
        """x^P as x * x * ... from left to right, a square root last."""
        excess = np.maximum(row - self.threshold, 0.0)
        whole, half = divmod(self.power, 1)
        factors = [excess] * int(whole) + [np.sqrt(excess)] * bool(half)
        result = factors[0]
        for factor in factors[1:]:
            result = result * factor
        return result
