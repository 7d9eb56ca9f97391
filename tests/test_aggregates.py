"""What is made of many scores: hand-computed cases and laws."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import log, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwstream.aggregates import (
    TruthRatio,
    area_under_curve,
    forgotten_truth,
    harmonic_mean,
    kept_truth,
    kolmogorov_smirnov,
    normalised_probability,
)

VALUES = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=8)


def test_truth_ratio_by_hand():
    # The right answer has 1/2 a token, the wrong ones 1/4 and 1/16.
    ratio = TruthRatio.of(log(2), [log(4), log(16)])
    assert ratio.arithmetic == pytest.approx((1 / 4 + 1 / 16) / 2 / (1 / 2))
    assert ratio.geometric == pytest.approx(sqrt(1 / 4 * 1 / 16) / (1 / 2))
    assert normalised_probability(log(2), [log(4), log(16)]) == pytest.approx(8 / 13)


def test_truth_on_either_side_by_hand():
    assert forgotten_truth([0.5, 2.0, 1.0]) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert kept_truth([0.25, 2.0, 1.0]) == pytest.approx(0.25)
    assert forgotten_truth([0.0]) == 0


def test_utility_by_hand():
    assert harmonic_mean([0.5, 1.0, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.9, 0.0]) == 0


def test_auc_by_hand():
    # Pairs: (1,2) (1,3) won, (3,3) half, (3,2) lost.
    assert area_under_curve([1.0, 3.0], [2.0, 3.0]) == pytest.approx(2.5 / 4)


@given(VALUES, VALUES)
def test_auc_counts_pairs_and_turns_round(members, others):
    wins = [(m < o) + (m == o) / 2 for m in members for o in others]
    assert area_under_curve(members, others) == pytest.approx(sum(wins) / len(wins))
    turned = area_under_curve(others, members)
    assert area_under_curve(members, others) + turned == pytest.approx(1)


def test_kolmogorov_smirnov_by_hand():
    # Of the 20 orders of three and three values only the two that part them are as far.
    assert kolmogorov_smirnov([1, 2, 3], [4, 5, 6]) == (1, 2 / 20)
    assert kolmogorov_smirnov([1, 2, 3], [1, 2, 3]) == (0, 1)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 7))
def test_the_p_value_is_the_share_of_divisions_that_are_as_far(values, size):
    first, second = values[:size], values[size:]

    def distance(one: set[int]) -> Fraction:
        two = set(range(8)) - one
        return max(
            abs(
                Fraction(sum(x <= v for x in one), len(one))
                - Fraction(sum(y <= v for y in two), len(two))
            )
            for v in range(8)
        )

    found = kolmogorov_smirnov([float(v) for v in first], [float(v) for v in second])
    divisions = [distance(set(one)) for one in combinations(range(8), size)]
    here = distance(set(first))
    assert found.statistic == float(here)
    assert found.p_value == sum(d >= here for d in divisions) / len(divisions)


def test_the_p_value_of_large_samples_is_not_rounded_to_zero():
    far = kolmogorov_smirnov([float(n) for n in range(200)], [n + 1000.0 for n in range(200)])
    assert 0 < far.p_value < 1e-100
    near = kolmogorov_smirnov([float(n) for n in range(200)], [n + 0.5 for n in range(200)])
    assert near.p_value > 0.99


def test_no_distance_without_values():
    with pytest.raises(ValueError, match="got 0 and 1 values"):
        kolmogorov_smirnov([], [1.0])
