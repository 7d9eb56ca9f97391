"""One multiplication, one rounding: raw weights of a dtype times float64 factors. NumPy only.

The product is taken in float64 and rounded once, to nearest even, to the dtype of the weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the safetensors dtypes that can be scaled."""
_NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_TINY = 2.0**-126
"""Smallest normal bfloat16."""
_STRIP = 1 << 15
"""Elements per pass: the temporaries stay in the processor's cache."""


def decode(raw: bytes, dtype: str) -> npt.NDArray[Any]:
    """Raw little-endian elements as a float array (bfloat16 as float32, exactly)."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, _NATIVE[dtype])


def encode(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    """Float64 rounded once, to nearest even, to `dtype`; bfloat16 as its uint16 pattern."""
    with np.errstate(over="ignore"):
        return _to_bfloat16(values) if dtype == "BF16" else values.astype(_NATIVE[dtype])


def _to_bfloat16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """NumPy has no bfloat16, and rounding to float32 first would round twice."""
    size = np.abs(values)
    if size.min(initial=1.0) >= _TINY and size.max(initial=1.0) <= np.finfo(np.float64).max:
        # Round the 52-bit fraction to 7 bits in place; what is left fits float32 exactly.
        bits = values.view(np.uint64)
        odd = (bits >> 45) & 1
        odd += (1 << 44) - 1
        odd += bits
        odd &= np.uint64(0xFFFF_E000_0000_0000)
        pattern = odd.view(np.float64).astype(np.float32).view(np.uint32)
    else:
        # Zeros, subnormals, infinities, NaN: round to float32 by the sticky-bit rule (toward zero,
        # lowest bit set if inexact), after which a second rounding equals a single one.
        single = values.astype(np.float32)
        back = single.astype(np.float64)
        bits32 = single.view(np.uint32) - (np.abs(back) > size)
        bits32 |= (back != values) & ~np.isnan(values)
        pattern = bits32 + 0x7FFF + ((bits32 >> 16) & 1)
        pattern = np.where(np.isnan(values), bits32 | 0x400000, pattern)
    return (pattern >> 16).astype("<u2")


def scale(
    raw: bytes,
    dtype: str,
    columns: int,
    axis: int,
    factors: npt.NDArray[np.float64],
    *,
    first_row: int,
) -> bytes:
    """Rows of a (row, column) matrix, from `first_row` on, times `factors` along `axis`."""
    values = decode(raw, dtype).reshape(-1, columns)
    result = np.empty(values.shape, _NATIVE.get(dtype, "<u2"))
    step = max(1, _STRIP // columns)
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        strip = values[rows].astype(np.float64)
        if axis == 1:
            strip *= factors
        else:
            strip *= factors[first_row + start : first_row + start + len(strip), None]
        result[rows] = encode(strip, dtype)
    return result.tobytes()
