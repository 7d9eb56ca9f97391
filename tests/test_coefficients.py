"""The accumulator's laws, and its estimates against textbook formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvwstream.coefficients import CoefficientSums, per_vector, token_mean
from tests.laws import check_accumulator

WIDTHS = np.array([2, 1, 3])

sums = arrays(np.float32, 6, elements=st.floats(0, 1e4, width=32))
counts = arrays(np.int64, 3, elements=st.integers(0, 500))
records = st.lists(st.tuples(sums, counts), max_size=5)


def fold(items: list[tuple[np.ndarray, np.ndarray]]) -> CoefficientSums:
    state = CoefficientSums.empty(WIDTHS)
    for row, count in items:
        state.add(row, count)
    return state


@given(records)
def test_obeys_the_laws_of_an_accumulator(items):
    check_accumulator(
        lambda: CoefficientSums.empty(WIDTHS), lambda state, item: state.add(*item), items
    )


@given(records)
def test_mean_is_the_token_mean_of_one_big_pass(items):
    state = fold(items)
    total = np.sum([row.astype(float) for row, _ in items], axis=0) if items else np.zeros(6)
    tokens = np.sum([count for _, count in items], axis=0) if items else np.zeros(3)
    seen = np.repeat(tokens, WIDTHS) > 0
    expected = np.zeros(6)
    expected[seen] = total[seen] / np.repeat(tokens, WIDTHS)[seen]
    np.testing.assert_allclose(state.mean(), expected, rtol=1e-12)
    np.testing.assert_array_equal(state.coverage(), tokens > 0)


def test_standard_error_is_that_of_a_mean_when_every_record_has_one_token(rng):
    rows = rng.random((50, 6), dtype=np.float32)
    state = fold([(row, np.ones(3, np.int64)) for row in rows])
    expected = rows.astype(float).std(axis=0, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(state.standard_error(), expected, rtol=1e-6)


def test_standard_error_covers_the_truth_as_often_as_it_should(rng):
    """Ratio estimate with unequal token counts: |error| < 2 SE in about 95 % of repetitions."""
    inside = []
    for _ in range(300):
        tokens = rng.integers(1, 20, 80)
        rows = [rng.gamma(2.0, 1.0, (n, 6)).sum(axis=0).astype(np.float32) for n in tokens]
        state = fold([(r, np.full(3, n)) for r, n in zip(rows, tokens, strict=True)])
        inside.append(np.abs(state.mean() - 2.0) < 2 * state.standard_error())
    assert 0.92 < np.mean(inside) < 0.98


@pytest.mark.parametrize("num_records", [0, 1])
def test_standard_error_is_infinite_while_unknown(num_records):
    state = fold([(np.ones(6, np.float32), np.ones(3, np.int64))] * num_records)
    assert np.isinf(state.standard_error()).all()


def test_runs_of_other_models_do_not_join():
    with pytest.raises(ValueError, match="different sites"):
        CoefficientSums.empty(WIDTHS) + CoefficientSums.empty([6])


def test_counts_stay_exact_where_float32_would_not():
    state = CoefficientSums.empty([1])
    for _ in range(3):
        state.add(np.ones(1, np.float32), np.array([2**24 + 1]))
    assert state.tokens[0] == 3 * (2**24 + 1)


def test_helpers_follow_the_site_widths():
    np.testing.assert_array_equal(per_vector(np.array([7, 8, 9]), WIDTHS), [7, 7, 8, 9, 9, 9])
    means = token_mean(np.ones((2, 6)), np.array([[1, 2, 0], [4, 0, 8]]), WIDTHS)
    expected = [[1, 1, 0.5, 0, 0, 0], [0.25, 0.25, 0, 0.125, 0.125, 0.125]]
    np.testing.assert_array_equal(means, expected)
