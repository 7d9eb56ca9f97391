"""Accessor, exponent, gates and layer ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvwstream.accessor import LayerRange, accessor, exponent, gates, vector_gates
from kvwstream.errors import OptionError
from kvwstream.plan import Site

means = arrays(np.float64, 4, elements=st.floats(0, 1e6))
ALL = np.ones(4, bool)
SITES = [Site(f"layers.{n}", f"layers.{n}.weight", 1, n, -1, 2, 2 * n) for n in range(3)]


@given(means, means)
def test_accessor_is_equation_4(forget, retain):
    values = accessor(forget, retain, ALL)
    expected = [
        max(0.0, math.log(f + 1e-12) - math.log(r + 1e-12))
        for f, r in zip(forget, retain, strict=True)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)
    assert np.isfinite(values).all()


def test_a_vector_that_no_retain_token_reached_is_left_alone():
    covered = np.array([True, False])
    values = accessor(np.array([1.0, 1.0]), np.array([0.0, 0.0]), covered)
    assert values[0] > 27
    assert values[1] == 0


@given(st.lists(means, min_size=1, max_size=6), st.floats(0, 0.1))
def test_gates_of_a_sum_are_the_product_of_gates(rows, gamma):
    rows = [row / 1e5 for row in rows]
    product = np.prod([gates(row, gamma) for row in rows], axis=0)
    np.testing.assert_allclose(gates(exponent(rows), gamma), product, rtol=1e-9)


@given(means, st.floats(0, 1))
def test_gates_lie_in_the_unit_interval(exponents, gamma):
    values = gates(exponents / 1e4, gamma)
    assert (values > 0).all()
    assert (values <= 1).all()


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_gamma_must_be_a_strength(gamma):
    with pytest.raises(OptionError, match="gamma must be a finite number of at least 0, got"):
        gates(np.zeros(1), gamma)


def test_layers_outside_the_range_keep_gate_one():
    values = vector_gates(SITES, np.full(6, 2.0), 0.5, LayerRange(1, 1))
    np.testing.assert_allclose(values, [1, 1, math.exp(-1), math.exp(-1), 1, 1])


@pytest.mark.parametrize(("text", "expected"), [("1:25", (1, 25)), ("7", (7, 7)), ("0:0", (0, 0))])
def test_layer_ranges_parse(text, expected):
    assert LayerRange.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a:b", "25:1", "-1:4", "1:2:3", "1:", "1.5:2"])
def test_nonsense_layers_are_refused_by_name(text):
    with pytest.raises(OptionError, match=r"layers"):
        LayerRange.parse(text)


def test_layers_beyond_the_model_are_refused():
    with pytest.raises(OptionError, match=r"layers 1:3: the model has layers 0 to 2"):
        vector_gates(SITES, np.zeros(6), 0.1, LayerRange(1, 3))
