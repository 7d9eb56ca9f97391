"""Raw weights of a dtype times gates, every rounding to nearest even. NumPy only.

`scale`: one product in float64, one rounding to the dtype of the weight. `scale_in_place`: product
after product in that dtype, each rounded, as a model's own weights would be multiplied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the safetensors dtypes that can be scaled."""
_NATIVE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_TINY = 2.0**-126
"""Smallest normal bfloat16."""
_NEAR = 4
"""Units in the last place of float32: what is further than this from a tie is on its side."""
_STRIP = 1 << 15
"""Elements per pass: the temporaries stay in the processor's cache."""
_STRIP_OF_HALVES = 1 << 17
"""The same where they are 32 bits wide and fewer."""
_TILE_ROWS = 64
"""Rows per pass where gate after gate is applied; the columns follow from `_STRIP`."""


def decode(raw: bytes | memoryview, dtype: str) -> npt.NDArray[Any]:
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
    raw: bytes | memoryview,
    dtype: str,
    columns: int,
    axis: int,
    factors: npt.NDArray[np.float64],
    *,
    first_row: int,
    out: memoryview | None = None,
) -> memoryview:
    """Rows of a (row, column) matrix, from `first_row` on, times `factors` along `axis`.

    They stand in `out`, bytes as many as `raw`, where it is given: new memory is slow.
    """
    weights = np.frombuffer(raw, _NATIVE.get(dtype, "<u2")).reshape(-1, columns)
    out = memoryview(bytearray(len(raw))) if out is None else out
    result = np.frombuffer(out, weights.dtype).reshape(weights.shape)
    if axis == 0:
        factors = factors[first_row : first_row + len(weights), None]
    whole = _Factors.of(factors)
    halves = dtype == "BF16" and _normal(whole.smallest, whole.largest)
    step = max(1, (_STRIP_OF_HALVES if halves else _STRIP) // columns)
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        chosen = whole if axis == 1 else whole.of_rows(rows)
        if not halves or not _through_float32(weights[rows], chosen, result[rows]):
            result[rows] = _product(weights[rows], chosen.exact, dtype)
    return out


def _product(weights: npt.NDArray[Any], factors: npt.NDArray[np.float64], dtype: str) -> Any:
    return encode(decode(weights.tobytes(), dtype).reshape(weights.shape) * factors, dtype)


def _normal(smallest: float, largest: float) -> bool:
    """Whether sizes from `smallest` to `largest` are normal as float32 and round to no infinity."""
    return bool(smallest >= _TINY and largest <= np.finfo(np.float32).max)


class _Factors(NamedTuple):
    """Factors as float64, as float32, and bounds of their size, which hold for any of them."""

    exact: npt.NDArray[np.float64]
    narrow: npt.NDArray[np.float32]
    smallest: float
    largest: float

    @classmethod
    def of(cls, factors: npt.NDArray[np.float64]) -> _Factors:
        size = np.abs(factors)
        with np.errstate(over="ignore", under="ignore"):
            narrow = factors.astype(np.float32)
        return cls(factors, narrow, size.min(initial=1.0), size.max(initial=1.0))

    def of_rows(self, rows: slice) -> _Factors:
        """Those of some rows."""
        return self._replace(exact=self.exact[rows], narrow=self.narrow[rows])


def _through_float32(
    weights: npt.NDArray[np.uint16], factors: _Factors, result: npt.NDArray[np.uint16]
) -> bool:
    """`_product` of bfloat16 in a fraction of the time; False where it must be done there.

    Rounding factor and product to float32 moves the product by two of its units in the last place
    and hardly more, as long as both are normal. The 16 bits that are kept are those of the float64
    product unless a tie lies between the two, so unless those that are dropped are within `_NEAR`
    of a half: one in 7,000, which is computed in float64.
    """
    size = weights & 0x7FFF
    bounds = decode(np.array([size.min(), size.max()], "<u2").tobytes(), "BF16").astype(np.float64)
    # Not so for a NaN. The margins cover what is rounded.
    if not _normal(bounds[0] * factors.smallest / 2, bounds[1] * factors.largest * 2):
        return False
    bits = weights.astype(np.uint32)
    bits <<= 16
    values = bits.view(np.float32)
    values *= factors.narrow
    bits += 0x8000  # to nearest; a tie is near itself and computed below
    np.right_shift(bits, 16, out=result, casting="unsafe")
    dropped = bits.astype(np.uint16)
    dropped += _NEAR
    near = np.flatnonzero(dropped <= 2 * _NEAR)
    chosen = np.unravel_index(near, weights.shape)
    exact = np.broadcast_to(factors.exact, weights.shape)[chosen]
    result[chosen] = _product(weights[chosen], exact, "BF16")
    return True


def scale_in_place(
    raw: bytes | memoryview,
    dtype: str,
    columns: int,
    axis: int,
    gates: npt.NDArray[Any],
    *,
    first_row: int,
    out: memoryview | None = None,
) -> memoryview:
    """Rows of a (row, column) matrix, from `first_row` on, times each row of `gates` in turn.

    `gates` (record, width) are in the weight's dtype, as `encode` gives them. A bfloat16 product is
    one of float32, rounded: torch's own, and exact before the rounding but for subnormal numbers.
    """
    values = decode(raw, dtype).reshape(-1, columns)
    out = memoryview(bytearray(len(raw))) if out is None else out
    result = np.frombuffer(out, _NATIVE.get(dtype, "<u2")).reshape(values.shape)
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
    return out


def _round_to_bfloat16(values: npt.NDArray[np.float32]) -> None:
    """In place; what is left of each float32 is a bfloat16."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF_0000)
