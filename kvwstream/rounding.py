"""Raw weights of a dtype times gates, every rounding to nearest even. NumPy only.

`scale`: one product in float64, one rounding to the dtype of the weight. `scale_in_place`: product
after product in that dtype, each rounded, as a model's own weights would be multiplied.
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
_TILE_ROWS = 64
"""Rows per pass where gate after gate is applied; the columns follow from `_STRIP`."""


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


def scale_in_place(
    raw: bytes,
    dtype: str,
    columns: int,
    axis: int,
    gates: npt.NDArray[Any],
    *,
    first_row: int,
) -> bytes:
    """Rows of a (row, column) matrix, from `first_row` on, times each row of `gates` in turn.

    `gates` (record, width) are in the weight's dtype, as `encode` gives them. A bfloat16 product is
    one of float32, rounded: torch's own, and exact before the rounding but for subnormal numbers.
    """
    values = decode(raw, dtype).reshape(-1, columns)
    result = np.empty(values.shape, _NATIVE.get(dtype, "<u2"))
    for row in range(0, len(values), _TILE_ROWS):
        for column in range(0, columns, _STRIP // _TILE_ROWS):
            tile = (
                slice(row, row + _TILE_ROWS),
                slice(column, column + _STRIP // _TILE_ROWS),
            )
            part = values[tile].copy()
            span = tile[1] if axis == 1 else slice(first_row + row, first_row + row + len(part))
            chosen = gates[:, span]
            steps = decode(chosen.tobytes(), dtype).reshape(chosen.shape)
            with np.errstate(under="ignore", invalid="ignore"):
                for gate in steps:
                    np.multiply(part, gate if axis == 1 else gate[:, None], out=part)
                    if dtype == "BF16":
                        _round_to_bfloat16(part)
            result[tile] = part.view(np.uint32) >> 16 if dtype == "BF16" else part
    return result.tobytes()


def _round_to_bfloat16(values: npt.NDArray[np.float32]) -> None:
    """In place; what is left of each float32 is a bfloat16."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF_0000)
