"""Logarithm and exponential: right to one unit in the last place, and the same bits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwstream.reproducible import exp_negative, log

SAMPLE = (
    "import hashlib, numpy as np; from kvwstream.reproducible import exp_negative, log\n"
    "rng = np.random.default_rng(0)\n"
    "x = np.ldexp(rng.random(100_000), rng.integers(-40, 9, 100_000))\n"
    "print(hashlib.sha256(log(x + 1e-12).tobytes() + exp_negative(-x).tobytes()).hexdigest())"
)
GOLDEN = "a73160919b9f34488b842ba6c264c6921800958ca9160904eeaf3a16cda7c8dc"


@given(st.floats(1e-12, 1e30))
def test_logarithm_is_right_to_one_unit_in_the_last_place(value):
    expected = np.log(np.float64(value))
    assert abs(log(np.array([value]))[0] - expected) <= 1.01 * np.spacing(abs(expected)) + 1e-300


@given(st.floats(-700, 0))
def test_exponential_is_right_to_one_unit_in_the_last_place(value):
    expected = np.exp(np.float64(value))
    assert abs(exp_negative(np.array([value]))[0] - expected) <= 1.01 * np.spacing(expected)


def test_exact_values():
    assert log(np.array([1.0]))[0] == 0
    assert exp_negative(np.array([0.0, -0.0])).tolist() == [1, 1]
    tiny = exp_negative(np.array([-1e9]))[0]
    assert 0 < Fraction(float(tiny)) < Fraction(1, 10**300)


@pytest.mark.parametrize("disabled", ["", "X86_V4 AVX512_ICL AVX512_SPR", "X86_V3 X86_V4"])
def test_the_bits_do_not_depend_on_the_processor(disabled):
    """NumPy told to do without wide instructions, as on an older machine."""
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAMPLE],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == GOLDEN, done.stderr


def test_the_golden_digest_is_of_sensible_numbers():
    """The digest alone would also pin nonsense."""
    rng = np.random.default_rng(0)
    x = np.ldexp(rng.random(100_000), rng.integers(-40, 9, 100_000))
    np.testing.assert_allclose(log(x + 1e-12), np.log(x + 1e-12), rtol=4e-16, atol=4e-16)
    np.testing.assert_allclose(exp_negative(-x), np.exp(-x), rtol=4e-16)
