"""Token sums of coefficients over records, and the means they become. NumPy only.

State is sums and counts; division happens here and nowhere else. Names of axes: `vector` is the
flat axis of all knowledge vectors, `site` the axis of value projections, `record` the batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
STRIP = 1 << 16
"""Numbers at a time: what is computed of them stays in the processor's cache."""


@dataclass
class CoefficientSums:
    """Running sums over records: grows by `add`, joins by `+`, ends in `mean` (Eq. 3).

    Everything is float64 or int64. `add` is a left fold in record order; `+` joins two runs and
    changes neither. The shape of the tree of additions decides the last bits, so a reducer fixes it
    (one leaf per part, joined in part order).
    """

    widths: Int64
    """(site,) knowledge vectors per site; `sum(widths)` is the length of the vector axis."""
    total: Float64
    """(vector,) sum over records of the coefficient sums."""
    square: Float64
    """(vector,) sum over records of the squared coefficient sums."""
    cross: Float64
    """(vector,) sum over records of coefficient sum times token count."""
    tokens: Int64
    """(site,) answer positions seen."""
    tokens_square: Int64
    """(site,) sum over records of the squared token counts."""
    num_records: int = 0

    @classmethod
    def empty(cls, widths: npt.ArrayLike) -> Self:
        """No records: the identity of `+`."""
        widths = np.asarray(widths, dtype=np.int64)
        vectors, sites = int(widths.sum()), widths.shape[0]
        total, square, cross = np.zeros((3, vectors))
        tokens, tokens_square = np.zeros((2, sites), np.int64)
        return cls(widths, total, square, cross, tokens, tokens_square)

    def add(self, sums: Float32 | Float64, counts: Int64) -> None:
        """Take in one record: `sums` (vector,), `counts` (site,) int64."""
        self._add(sums.astype(np.float64), per_vector(counts, self.widths))
        self.tokens += counts
        self.tokens_square += counts * counts
        self.num_records += 1

    def _add(self, row: Float64, tokens: Int64) -> None:
        self.total += row
        self.cross += row * tokens
        self.square += np.square(row, out=row)

    def add_leaf(self, sums: Float32, counts: Int64) -> None:
        """`+` of the run of these records, `sums` (record, vector) and `counts` (record, site).

        Strip after strip of the vector axis: the same bits, without a second run in memory.
        """
        sites = site_index(self.widths)
        for strip in strips(len(self.total)):
            leaf = type(self).empty([len(self.total[strip])])
            for row, tokens in zip(sums[:, strip], counts, strict=True):
                leaf._add(row.astype(np.float64), tokens[sites[strip]])
            self.total[strip] += leaf.total
            self.square[strip] += leaf.square
            self.cross[strip] += leaf.cross
        self.tokens += counts.sum(axis=0)
        self.tokens_square += (counts * counts).sum(axis=0)
        self.num_records += len(counts)

    def __add__(self, other: Self) -> Self:
        if not np.array_equal(self.widths, other.widths):
            raise ValueError("the two runs are of models with different sites")
        return type(self)(
            self.widths,
            self.total + other.total,
            self.square + other.square,
            self.cross + other.cross,
            self.tokens + other.tokens,
            self.tokens_square + other.tokens_square,
            self.num_records + other.num_records,
        )

    def mean(self) -> Float64:
        """(vector,) token mean (Eq. 3); 0 at sites without tokens, which `coverage` tells apart."""
        return token_mean(self.total, self.tokens, self.widths)

    def coverage(self) -> npt.NDArray[np.bool_]:
        """(site,) whether the site saw any answer position."""
        return self.tokens > 0

    def standard_error(self) -> Float64:
        """(vector,) standard error of `mean` over records.

        The mean is a ratio of two sums over records, so its variance is the usual linearised one,
        R / (R - 1) * sum_r (s_r - mean * n_r)^2 / (sum_r n_r)^2 (Cochran, Sampling Techniques,
        section 6.4). NaN-free: infinite where fewer than two records make it unknown.
        """
        if self.num_records < 2:
            return np.full(self.total.shape, np.inf)
        mean = self.mean()
        tokens = per_vector(self.tokens, self.widths).astype(np.float64)
        tokens_square = per_vector(self.tokens_square, self.widths)
        # Rounding can leave a spread of exactly nothing slightly negative.
        spread = np.maximum(self.square - 2 * mean * self.cross + mean**2 * tokens_square, 0.0)
        factor = self.num_records / (self.num_records - 1)
        error = np.full(mean.shape, np.inf)
        np.divide(np.sqrt(factor * spread), tokens, out=error, where=tokens > 0)
        return error


def add_leaf(total: Float64, sums: Float32) -> None:
    """Add one leaf, the left fold of rows (record, vector), to `total` (vector,)."""
    for strip in strips(len(total)):
        leaf = np.zeros_like(total[strip])
        for row in sums[:, strip]:
            leaf += row
        total[strip] += leaf


def per_vector(per_site: npt.NDArray[Scalar], widths: Int64) -> npt.NDArray[Scalar]:
    """Values (..., site) repeated along the vector axis, (..., vector)."""
    return np.repeat(per_site, widths, axis=-1)


def site_index(widths: Int64) -> Int64:
    """(vector,) number of the site of each knowledge vector."""
    return per_vector(np.arange(len(widths)), widths)


def strips(num_vectors: int, records: int = 1) -> Iterator[slice]:
    """The vector axis in runs of `STRIP` numbers of so many records."""
    step = max(1, STRIP // records)
    return (slice(start, start + step) for start in range(0, num_vectors, step))


def token_mean(sums: npt.ArrayLike, counts: Int64, widths: Int64) -> Float64:
    """Mean per token, float64: sums (..., vector) over counts (..., site); 0 over 0 is 0."""
    return mean_over(np.asarray(sums, dtype=np.float64), per_vector(counts, widths))


def mean_over(sums: Float64, tokens: Int64) -> Float64:
    """`sums` over as many `tokens`, of one shape; 0 over 0 is 0."""
    if tokens.all():  # all but the experts that no token reached
        return sums / tokens
    mean: Float64 = np.zeros(sums.shape)
    np.divide(sums, tokens, out=mean, where=tokens > 0)
    return mean
