"""One multiplication, one rounding, in every dtype, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvwstream.rounding import ITEMSIZE, decode, encode, scale

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# All positive finite bfloat16 values, in order; the last entry stands for overflow.
BFLOAT16 = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


def nearest_bfloat16(value: float) -> float:
    """Round to nearest even by searching the table of all values, with exact fractions."""
    size = abs(value)
    at = int(np.searchsorted(BFLOAT16, size))
    below = BFLOAT16[max(at - 1, 0)]
    above = BFLOAT16[at] if at < len(BFLOAT16) else 2.0**128
    down, up = Fraction(size) - Fraction(below), Fraction(above) - Fraction(size)
    if down < up or (down == up and max(at - 1, 0) % 2 == 0):
        rounded = below
    else:
        rounded = above if above < 2.0**128 else np.inf
    return float(np.copysign(rounded, value))


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e39, max_value=1e39))
def test_bfloat16_is_one_rounding_to_nearest_even(value):
    pattern = encode(np.array([value]), "BF16")
    assert decode(pattern.tobytes(), "BF16")[0] == nearest_bfloat16(value)


@given(st.integers(0, 0x7F7E), st.sampled_from([-1, 0, 1]))
def test_bfloat16_ties_and_their_neighbours(index, ulp):
    tie = (BFLOAT16[index] + BFLOAT16[index + 1]) / 2
    value = {-1: np.nextafter(tie, 0), 0: tie, 1: np.nextafter(tie, np.inf)}[ulp]
    got = decode(encode(np.array([value]), "BF16").tobytes(), "BF16")[0]
    assert got == nearest_bfloat16(value)


def test_a_strip_with_odd_values_rounds_like_its_elements():
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, 1.0, 2.0**-127, 3.3e38])
    whole = encode(odd, "BF16")
    single = np.concatenate([encode(odd[i : i + 1], "BF16") for i in range(len(odd))])
    np.testing.assert_array_equal(whole, single)
    assert np.isnan(decode(encode(np.array([np.nan]), "BF16").tobytes(), "BF16"))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_scaling_is_the_float64_product_rounded_once(dtype, axis, rng):
    weight = torch.from_numpy(rng.normal(size=(70, 33))).to(DTYPES[dtype])
    factors = np.exp(-rng.random(weight.shape[axis]) * 4)
    raw = weight.view(torch.uint8).numpy().tobytes()
    made = scale(raw, dtype, 33, axis, factors, first_row=0)
    exact = weight.double().numpy() * (factors if axis == 1 else factors[:, None])
    np.testing.assert_array_equal(
        np.frombuffer(made, np.uint8), encode(exact, dtype).view(np.uint8).ravel()
    )
    assert len(made) == weight.numel() * ITEMSIZE[dtype]


@st.composite
def halves_and_factors(draw) -> tuple[str, np.ndarray, np.ndarray]:
    """Finite weights of 16 bits and factors, many of which make a tie or what is next to one."""
    dtype = draw(st.sampled_from(["BF16", "F16"]))
    beyond = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    size = draw(st.integers(1, 40))
    first, last = draw(st.sampled_from([(0, beyond - 1), (0x3800, 0x4400)]))
    patterns = st.lists(st.integers(first, last), min_size=size, max_size=size)
    signs = draw(st.lists(st.sampled_from([0, 0x8000]), min_size=size, max_size=size))
    weights = np.array(draw(patterns), np.uint16) | np.array(signs, np.uint16)
    if draw(st.booleans()):
        targets = np.array(draw(patterns), np.uint16).clip(0, beyond - 2)
        low, high = (decode((targets + n).tobytes(), dtype).astype(float) for n in (0, 1))
        values = np.abs(decode(weights.tobytes(), dtype).astype(float))
        factors = np.divide(low / 2 + high / 2, values, out=np.ones(size), where=values > 0)
        units = draw(st.lists(st.integers(-5, 5), min_size=size, max_size=size))
        near = draw(st.sampled_from([2.0**-52, 2.0**-24, 2.0**-23, 2.0**-22]))
        factors = factors * (1 + np.array(units) * near)
    else:
        exponents = st.floats(0, draw(st.sampled_from([0.1, 4.0, 90.0, 700.0])))
        factors = np.exp(-np.array(draw(st.lists(exponents, min_size=size, max_size=size))))
    return dtype, weights, factors


@given(halves_and_factors(), st.integers(1, 3))
def test_halves_are_the_float64_product_rounded_once(drawn, rows):
    """Whatever the way there is: for bfloat16 it leads through float32."""
    dtype, weights, factors = drawn
    raw = np.tile(weights, (rows, 1)).tobytes()
    made = scale(raw, dtype, len(weights), 1, factors, first_row=0)
    product = decode(weights.tobytes(), dtype).astype(float) * factors
    assert made == encode(product, dtype).tobytes() * rows
    across = scale(weights.tobytes(), dtype, 1, 0, factors, first_row=0)
    assert across == made[: len(across)]


def test_no_pattern_rounds_otherwise_whatever_the_factor(rng):
    """All finite bfloat16 numbers times factors of each size."""
    weights = np.arange(0x10000, dtype=np.uint16)
    weights = weights[(weights & 0x7F80) != 0x7F80]
    values = decode(weights.tobytes(), "BF16").astype(float)
    for size in (1e-3, 0.1, 1.0, 4.0, 60.0, 100.0, 700.0):
        factors = np.exp(-size * rng.random(len(weights)))
        made = scale(weights.tobytes(), "BF16", len(weights), 1, factors, first_row=0)
        assert made == encode(values * factors, "BF16").tobytes()


def test_factor_one_changes_no_bit(rng):
    raw = rng.integers(0, 0x7F80, 4000).astype("<u2").tobytes()
    assert scale(raw, "BF16", 40, 1, np.ones(40), first_row=0) == raw


def test_rows_of_a_block_take_their_own_factors(rng):
    weight = rng.normal(size=(10, 4)).astype(np.float32)
    factors = rng.random(10)
    blocks = [
        scale(weight[a:b].tobytes(), "F32", 4, 0, factors, first_row=a)
        for a, b in ((0, 7), (7, 10))
    ]
    assert b"".join(blocks) == scale(weight.tobytes(), "F32", 4, 0, factors, first_row=0)
