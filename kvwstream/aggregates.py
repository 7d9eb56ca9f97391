"""What benchmarks make of many examples' scores. Standard library and NumPy alone.

Truth ratio, forget quality and utility are those of TOFU (Maini et al. 2024), which CLEAR took
over; AUC is that of membership inference.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple


class TruthRatio(NamedTuple):
    """How likely wrong answers are beside the right one, per token; 1 says it is not known.

    The two means differ in the published scripts: `arithmetic` (over probabilities) is the paper's
    definition; `geometric` (over losses) is what forget quality compares.
    """

    arithmetic: float
    geometric: float

    @classmethod
    def of(cls, right: float, wrong: Sequence[float]) -> TruthRatio:
        """From the losses (mean negative log-probability of a token) of the answers.

        `right` is the paraphrased answer's, where there is one; `wrong` the perturbed answers'.
        """
        return cls(fmean(math.exp(right - loss) for loss in wrong), math.exp(right - fmean(wrong)))


def normalised_probability(right: float, wrong: Sequence[float]) -> float:
    """p / (p + sum of the wrong answers' p), p = exp(-loss): where answers are options."""
    return 1 / (1 + sum(math.exp(right - loss) for loss in wrong))


def forgotten_truth(ratios: Sequence[float]) -> float:
    """Mean of min(R, 1 / R) on the forget data: 1 where right and wrong are equally likely."""
    return fmean(min(ratio, 1 / ratio) if ratio else 0.0 for ratio in ratios)


def kept_truth(ratios: Sequence[float]) -> float:
    """Mean of max(0, 1 - R) on data to retain: 1 where wrong answers have no chance."""
    return fmean(max(0.0, 1 - ratio) for ratio in ratios)


def harmonic_mean(values: Sequence[float]) -> float:
    """Model utility: 0 as soon as one of the values is 0."""
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0


class Distance(NamedTuple):
    """A two-sample Kolmogorov-Smirnov test: the largest distance, and how likely one as large is
    where both samples come from one distribution."""

    statistic: float
    p_value: float


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> Distance:
    """Two-sided and exact, for samples of any size; with ties the p-value is an upper bound.

    Forget quality is the p-value of the truth ratios of a model against those of an oracle that
    never saw the forget data.

    The statistic is the largest |i / n - j / m| over the merged samples. Every order of the n + m
    values is equally likely and is a path of steps (1, 0) and (0, 1) from (0, 0) to (n, m), so the
    p-value is the share of paths that come to such a distance somewhere (Hodges 1958). All of it
    in whole numbers: nothing is rounded before the last division.
    """
    n, m = len(first), len(second)
    if not n or not m:
        raise ValueError(f"two samples are compared, got {n} and {m} values")
    ordered, others = sorted(first), sorted(second)
    largest = max(
        abs(m * bisect_right(ordered, value) - n * bisect_right(others, value))
        for value in {*first, *second}
    )
    # inside[j]: paths to (i, j) that were nowhere as far as `largest`.
    inside = [1] + [0] * m
    for j in range(1, m + 1):
        inside[j] = inside[j - 1] if n * j < largest else 0
    for i in range(1, n + 1):
        inside[0] = inside[0] if m * i < largest else 0
        for j in range(1, m + 1):
            inside[j] = inside[j] + inside[j - 1] if abs(m * i - n * j) < largest else 0
    paths = math.comb(n + m, n)
    return Distance(largest / (n * m), (paths - inside[m]) / paths)


def area_under_curve(members: Sequence[float], others: Sequence[float]) -> float:
    """AUC of an attack that takes a low score for membership; 0.5 is a coin, ties count half.

    The share of pairs of a member and another in which the member's score is the lower one.
    """
    ordered = sorted(others)
    wins = sum(
        (len(ordered) - bisect_right(ordered, member))
        + (bisect_right(ordered, member) - bisect_left(ordered, member)) / 2
        for member in members
    )
    return wins / (len(members) * len(ordered))
