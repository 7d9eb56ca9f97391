"""Arrays and tables as Zarr v3, one way of writing each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.errors import NodeNotFoundError
from zarr.storage import MemoryStore

from kvwstream.canonical import canonical_json, digest_of
from kvwstream.errors import DamageError
from kvwstream.stores.location import Location, storage_errors

Array = npt.NDArray[Any]

COMPRESSION = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
"""Floats of like size share their upper bytes: shuffled, they shrink; zstd 1 is disk speed."""


class ArrayDigest:
    """SHA-256 of dtype, shape and the little-endian bytes in C order, whatever the chunks are.

    Fed row by row, or in any runs of rows, it gives the same as the whole array at once.
    """

    def __init__(self, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._hash = hashlib.sha256(canonical_json([self.dtype.str, list(shape)]))

    def update(self, rows: Array) -> None:
        """Take in the next rows."""
        self._hash.update(np.ascontiguousarray(rows, self.dtype).data)

    def hexdigest(self) -> str:
        """The digest of what was fed so far."""
        return self._hash.hexdigest()


def digest_array(values: Array) -> str:
    """`ArrayDigest` of a whole array; of text, SHA-256 of its canonical JSON."""
    if values.dtype.kind in "OTU":
        return digest_of(values.tolist())
    digest = ArrayDigest(values.dtype, values.shape)
    digest.update(values)
    return digest.hexdigest()


class ArrayWriter:
    """An array at `location/name`, compressed, every chunk with a CRC-32C.

    It is encoded in memory and put object by object: only the array's own names are written, each
    once and whole, and none is ever deleted, so two workers that make the same array at once do not
    disturb each other.
    """

    def __init__(
        self,
        location: Location,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        dims: tuple[str, ...],
        chunks: tuple[int, ...],
        shards: tuple[int, ...] | None = None,
    ) -> None:
        self.place, self.shape = location.at(*name.split("/")), shape
        self._encoded: dict[str, Buffer] = {}
        array = zarr.create_array(
            MemoryStore(self._encoded),
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            compressors=[COMPRESSION, Crc32cCodec()],
            fill_value="" if dtype is str else 0,
            dimension_names=dims,
        )
        # a chunk that is not there is a damage, not zeros
        self._array = array.with_config({"write_empty_chunks": True})
        self._put()

    def write(self, values: Array, rows: slice = slice(None)) -> None:
        """Fill whole chunks along the first axis."""
        with storage_errors(self.place.url):
            self._array[rows] = values
        self._put()

    def _put(self) -> None:
        for key in list(self._encoded):
            self.place.write(key, self._encoded.pop(key).to_bytes())


def write_array(
    location: Location,
    name: str,
    values: Array,
    dims: tuple[str, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
) -> None:
    """Write a whole array at `location/name`."""
    kind = str if values.dtype.kind in "OTU" else values.dtype
    ArrayWriter(location, name, values.shape, kind, dims, chunks, shards).write(values)


def read_array(location: Location, name: str) -> Array:
    """The array at `location/name`; `DamageError` or `StorageError` where it cannot be read."""
    with _decoding(location, name) as place:
        values = _open(place)[...]
    return np.asarray(values)


def read_blocks(location: Location, name: str, rows: int) -> Iterator[Array]:
    """The array at `location/name`, a chunk along its first axis at a time, each read once.

    `DamageError` unless it has so many `rows`.
    """
    with _decoding(location, name) as place:
        array = _open(place)
        if array.shape[0] != rows:
            raise ValueError(f"it has {array.shape[0]} rows, expected {rows}")
    for start in range(0, rows, array.chunks[0]):
        with _decoding(location, name):
            block = np.asarray(array[start : start + array.chunks[0]])
        yield block


def _open(place: Location) -> Any:
    return zarr.open_array(place.zarr(), mode="r", zarr_format=3)


@contextmanager
def _decoding(location: Location, name: str) -> Iterator[Location]:
    place = location.at(*name.split("/"))
    if place.is_absent():
        raise DamageError(f"{place.url}: is missing")
    with storage_errors(place.url):
        try:
            yield place
        except NodeNotFoundError as error:
            raise DamageError(f"{place.url}: is missing") from error
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            # Codecs and metadata report damage by these; what they say names no file.
            raise DamageError(f"{place.url}: cannot be decoded: {error}") from error


def write_table(location: Location, name: str, dim: str, columns: Mapping[str, Array]) -> None:
    """A group `location/name` of equally long columns, each one chunk along `dim`.

    Its attributes hold the SHA-256 of every column.
    """
    for column, values in columns.items():
        dims = (dim, "byte")[: values.ndim]
        write_array(location, f"{name}/{column}", values, dims, chunks=values.shape)
    place = location.at(name)
    sha256 = {column: digest_array(values) for column, values in columns.items()}
    place.write("zarr.json", group_document({"sha256": sha256}, place, columns))


def read_table(location: Location, name: str, columns: tuple[str, ...]) -> dict[str, Array]:
    """The columns that `write_table` wrote; `DamageError` if they are not as digested."""
    recorded = read_attributes(location.at(name)).get("sha256")
    table = {column: read_array(location, f"{name}/{column}") for column in columns}
    found = {column: digest_array(values) for column, values in table.items()}
    if found != recorded:
        known = recorded if isinstance(recorded, dict) else {}
        changed = sorted(c for c in found.keys() | known.keys() if found.get(c) != known.get(c))
        raise DamageError(f"{location.url}/{name}: changed, not as digested: {', '.join(changed)}")
    if len({len(values) for values in table.values()}) > 1:
        raise DamageError(f"{location.url}/{name}: its columns have unlike lengths")
    return table


def read_attributes(location: Location) -> dict[str, Any]:
    """Attributes of the Zarr group at `location`; `DamageError` if there is none."""
    return parse_group(location, location.read("zarr.json"))[0]


def parse_group(
    location: Location, document: bytes | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes, and metadata of the arrays that are consolidated, of a group's `document`."""
    attributes, metadata = None, dict[str, Any]()
    if document is not None:
        with suppress(ValueError, KeyError, TypeError):
            group = json.loads(document)
            attributes = group["attributes"]
            metadata = dict(group.get("consolidated_metadata", {})["metadata"])
    if not isinstance(attributes, dict):
        what = "no Zarr group with attributes is there" if location.exists() else "nothing is there"
        raise DamageError(f"{location.url}: {what}")
    return attributes, metadata


def check_group(
    location: Location, arrays: Iterable[str] = (), document: bytes | None = None
) -> None:
    """`DamageError` if the group's `document` is not what its attributes and arrays give.

    It is read unless it is given.
    """
    document = location.read("zarr.json") if document is None else document
    attributes, _ = parse_group(location, document)
    if document != group_document(attributes, location if arrays else None, arrays):
        raise DamageError(
            f"{location.url}/zarr.json: changed, or metadata of its arrays are; "
            "plain Zarr and xarray may read it wrong"
        )


def group_document(
    attributes: Mapping[str, Any], location: Location | None = None, arrays: Iterable[str] = ()
) -> bytes:
    """A Zarr v3 group's `zarr.json`; the same attributes and arrays give the same bytes.

    The metadata of the `arrays` in `location` are consolidated in it, so that xarray opens the
    group with one read.
    """
    document: dict[str, Any] = {
        "attributes": dict(attributes),
        "node_type": "group",
        "zarr_format": 3,
    }
    if location:
        metadata = {}
        for name in arrays:
            content = location.read(f"{name}/zarr.json")
            if content is None:
                raise DamageError(f"{location.url}/{name}: is missing")
            try:
                metadata[name] = json.loads(content)
            except ValueError as error:
                raise DamageError(
                    f"{location.url}/{name}: its metadata cannot be decoded: {error}"
                ) from error
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": metadata,
        }
    return canonical_json(document)
