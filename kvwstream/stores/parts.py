"""The arrays of a part, read by one request each and decoded where they are read.

Zarr decodes the chunks of a shard through one event loop, whose bookkeeping takes several times as
long as decompressing a small part and keeps it from other cores. What a part's arrays look like is
known, so it is done here: chunk by chunk, each against its CRC-32C, into its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from google_crc32c import value as crc32c
from numcodecs.blosc import decompress

from kvwstream.errors import DamageError
from kvwstream.stores.arrays import Array
from kvwstream.stores.location import Location

Bytes = npt.NDArray[np.uint8]

CRC = 4
"""Bytes of a CRC-32C."""
HEADER = 16
"""Bytes of Blosc's header."""
CODECS = ["bytes", "blosc", "crc32c"]
INDEX_CODECS = ["bytes", "crc32c"]


def read_part_array(place: Location, name: str, metadata: Any) -> Array:
    """The array `name` of the part at `place`, which its group's document describes.

    One shard of chunks, or one chunk. `DamageError` where it is anything else, is missing or does
    not decode; `StorageError` where it cannot be read.
    """
    try:
        shape, dtype = tuple(metadata["shape"]), np.dtype(metadata["data_type"]).newbyteorder("<")
        whole = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        first = metadata["codecs"][0]
        view = place.view(f"{name}/c/0/0")
        if view is None:
            raise DamageError(
                f"{place.url}/{name}: is missing; restore the part, or delete {place.url} and run "
                "the same `kvwstream collect` again"
            )
        raw, values = np.frombuffer(view, np.uint8), np.empty(whole, dtype)
        if first["name"] != "sharding_indexed":
            _check_codecs(metadata["codecs"], CODECS)
            _decode(raw, values)
            return values
        layout = first["configuration"]
        _check_codecs(layout["codecs"], CODECS)
        _check_codecs(layout["index_codecs"], INDEX_CODECS)
        width = layout["chunk_shape"][1]
        count = whole[1] // width
        index = _checked(raw[len(raw) - 16 * count - CRC :]).view("<u8").reshape(count, 2)
        for number, (start, size) in enumerate(index.tolist()):
            _decode(raw[start : start + size], values[:, number * width : (number + 1) * width])
        return np.ascontiguousarray(values[: shape[0], : shape[1]])
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, DamageError):
            raise
        raise DamageError(f"{place.url}/{name}: cannot be decoded: {error}") from error


def _check_codecs(found: Any, expected: list[str]) -> None:
    names = [codec["name"] for codec in found]
    if names != expected:
        raise ValueError(f"its codecs are {names}, those of a part are {expected}")


def _decode(raw: Bytes, into: Array) -> None:
    content = _checked(raw)
    # Blosc trusts its header: bytes 12 to 15 are how many it reads.
    if len(content) < HEADER or int.from_bytes(content[12:HEADER], "little") != len(content):
        raise ValueError("a chunk is not as long as it says")
    into[...] = np.frombuffer(decompress(content), into.dtype).reshape(into.shape)


def _checked(raw: Bytes) -> Bytes:
    """What stands before its CRC-32C."""
    content = raw[:-CRC]
    if len(raw) < CRC or crc32c(content) != int.from_bytes(raw[-CRC:], "little"):
        raise ValueError("its CRC-32C is another")
    return content
