"""Natural logarithm and exponential with the same bits on every processor. NumPy only.

NumPy's own come in variants for instruction sets that differ in the last bit, so a derived A or
gate would depend on the machine. These use additions, multiplications and divisions alone, which
IEEE 754 rounds the same everywhere. Method and constants: fdlibm's e_log.c and e_exp.c (Sun
Microsystems, 1993), error below one unit in the last place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
ONE_OVER_LN2 = float.fromhex("0x1.71547652b82fep+0")
ROOT_OF_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
LOG_SERIES = (
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)
EXP_SERIES = (
    4.13813679705723846039e-08,
    -1.65339022054652515390e-06,
    6.61375632143793436117e-05,
    -2.77777777770155933842e-03,
    1.66666666666666019037e-01,
)
SMALLEST_EXPONENT = -708.0
"""Below it exp leaves the normal numbers; a gate that small is 0 to any weight."""


def log(values: Float64) -> Float64:
    """Natural logarithm of positive, finite, normal numbers."""
    fraction, power = np.frexp(values)
    low = fraction < ROOT_OF_HALF
    fraction = np.where(low, 2 * fraction, fraction) - 1
    power = (power - low).astype(np.float64)
    s = fraction / (2 + fraction)
    square = s * s
    series = square * _polynomial(LOG_SERIES, square)
    half = 0.5 * fraction * fraction
    result: Float64 = power * LN2_HIGH - (
        (half - (s * (half + series) + power * LN2_LOW)) - fraction
    )
    return result


def exp_negative(values: Float64) -> Float64:
    """Exponential of numbers that are not positive; below -708 it stays at exp(-708)."""
    bounded = np.maximum(values, SMALLEST_EXPONENT)
    power = np.floor(bounded * ONE_OVER_LN2 + 0.5)
    high, low = bounded - power * LN2_HIGH, power * LN2_LOW
    reduced = high - low
    square = reduced * reduced
    correction = reduced - square * _polynomial(EXP_SERIES, square)
    result = 1 - ((low - (reduced * correction) / (2 - correction)) - high)
    scaled: Float64 = np.ldexp(result, power.astype(np.int32))
    return scaled


def _polynomial(coefficients: tuple[float, ...], at: Float64) -> Float64:
    """Horner's rule, highest power first."""
    total = np.full_like(at, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * at + coefficient
    return total
