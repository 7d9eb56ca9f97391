"""What is known of the data to retain: C_r, its standard error, the tokens behind it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kvwstream.canonical import digest_of
from kvwstream.coefficients import CoefficientSums, Float64, Int64, per_vector, token_mean
from kvwstream.stores.arrays import digest_array
from kvwstream.stores.statistics import Statistics


@dataclass(frozen=True)
class Retained:
    """The retain half of the statistics."""

    widths: Int64
    """(site,) knowledge vectors."""
    mean: Float64
    """C_r (vector,)."""
    standard_error: Float64
    """(vector,)."""
    tokens: Int64
    """(site,) answer positions."""
    square_mean: Float64 | None = None
    """Token mean of the squares (vector,), where signed and square moments were collected."""

    @classmethod
    def from_sums(cls, sums: CoefficientSums, squares: Float64 | None = None) -> Retained:
        """Of the sums over all retain records, and those of the squares (vector,)."""
        square_mean = None if squares is None else token_mean(squares, sums.tokens, sums.widths)
        return cls(sums.widths, sums.mean(), sums.standard_error(), sums.tokens, square_mean)

    @classmethod
    def from_statistics(cls, stored: Statistics) -> Retained:
        """As `reduce` wrote it."""
        widths = np.array([site.width for site in stored.sites], np.int64)
        names = ["retain_mean", "retain_standard_error", "retain_token_count"]
        names += ["retain_square_mean"] * stored.has_moments
        return cls(widths, *map(stored.read, names))

    @cached_property
    def covered(self) -> npt.NDArray[np.bool_]:
        """(vector,) False where no retain token reached the site."""
        return per_vector(self.tokens > 0, self.widths)

    @property
    def digest(self) -> str:
        """Names C_r and the tokens; what the plan of a progressive collection holds."""
        return digest_of([digest_array(self.mean), digest_array(self.tokens)])
