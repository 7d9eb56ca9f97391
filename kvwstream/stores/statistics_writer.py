"""Writing statistics: arrays as they come, then the group document that makes them count."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kvwstream.coefficients import per_vector
from kvwstream.durable import fsync
from kvwstream.errors import StorageError
from kvwstream.plan import FORMAT_VERSION, Site
from kvwstream.stores.arrays import (
    Array,
    ArrayDigest,
    ArrayWriter,
    digest_array,
    group_document,
    write_array,
)
from kvwstream.stores.location import Location, storage_errors
from kvwstream.stores.statistics import CHUNK_BYTES, COORDINATES, DIMS, SITE_COLUMNS

REMAINS = re.compile(rf"({'|'.join(DIMS)})/(zarr\.json|c(/\d+)+)")
"""Names of the objects that a `reduce` into a bucket leaves if it is killed."""


@contextmanager
def room_for(place: Location) -> Iterator[Location]:
    """Where to write the statistics that shall be at `place`; `StorageError` unless it is free.

    On a local path that is a draft beside it, which gets the name when the block ends well. In a
    bucket nothing can be moved at once, and the place itself is written: it is no group as long as
    its document is missing. What a killed `reduce` left is removed.
    """
    remains = {} if place.is_local else place.listing()
    if (place.is_local and place.exists()) or not all(map(REMAINS.fullmatch, remains)):
        raise StorageError(f"{place.url}: exists already; choose another name or remove it")
    if not place.is_local:
        place.delete(remains)
        yield place
        return
    draft = place.path.with_name(f".{place.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield Location(str(draft))
        with storage_errors(place.url):
            draft.rename(place.path)
            fsync(place.path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class StatisticsWriter:
    """Writes the arrays, then the group document that makes them count."""

    def __init__(self, location: Location, sites: Sequence[Site], num_records: int) -> None:
        self.location, self.sites = location, list(sites)
        self.num_records = num_records
        self.num_vectors = sum(site.width for site in sites)
        self.digests: dict[str, str] = {}

    def put(self, name: str, values: Array) -> None:
        """Write a whole array."""
        write_array(self.location, name, values, DIMS[name], chunks=values.shape)
        self.digests[name] = digest_array(values)

    def rows(self, name: str, dtype: Any) -> RowWriter:
        """An array of one row per forget record, to be filled in record order."""
        width = self.num_vectors if DIMS[name][1] == "vector" else len(self.sites)
        return RowWriter(self, name, (self.num_records, width), dtype)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Make everything durable and write the group document."""
        self.location.sync()
        document = group_document(
            {
                "kind": "statistics",
                "format_version": FORMAT_VERSION,
                "num_forget_records": self.num_records,
                "coordinates": " ".join(name for name in COORDINATES if name in self.digests),
                "sha256": self.digests,
                **attributes,
            },
            self.location,
            self.digests,
        )
        if not self.location.create("zarr.json", document):
            raise StorageError(
                f"{self.location.url}: another command wrote other statistics there at the same "
                "time; see `kvwstream audit`, and reduce to another name"
            )
        self.location.sync()


class RowWriter:
    """Fills an array from the first record on, a chunk of records at a time."""

    def __init__(
        self, parent: StatisticsWriter, name: str, shape: tuple[int, int], dtype: Any
    ) -> None:
        self.parent, self.name = parent, name
        row = np.dtype(dtype).itemsize * shape[1]
        self.step = min(shape[0], max(1, CHUNK_BYTES // row))
        self.array = ArrayWriter(
            parent.location, name, shape, dtype, DIMS[name], (self.step, shape[1])
        )
        self.digest = ArrayDigest(dtype, shape)
        self.pending: list[Array] = []
        self.done = 0

    def add(self, rows: Array) -> None:
        """Take the next records' rows, however many."""
        self.digest.update(rows)
        while len(rows):
            room = self.step - sum(map(len, self.pending))
            self.pending.append(rows[:room])
            if len(rows) >= room:
                self._flush()
            rows = rows[room:]

    def close(self) -> None:
        """Write what is left; every record must have come."""
        self._flush()
        assert self.done == self.array.shape[0], f"{self.name}: {self.done} rows"
        self.parent.digests[self.name] = self.digest.hexdigest()

    def _flush(self) -> None:
        if self.pending:
            stop = self.done + sum(map(len, self.pending))
            whole = self.pending[0] if len(self.pending) == 1 else np.concatenate(self.pending)
            self.array.write(whole, slice(self.done, stop))
            self.done, self.pending = stop, []


def coordinates(sites: Sequence[Site], examples: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """What tells the axes apart: sites, layers, channels, the examples of each forget record."""
    for field, name in SITE_COLUMNS.items():
        yield name, np.array([getattr(site, field) for site in sites])
    widths = np.array([site.width for site in sites], np.int64)
    layers = np.array([site.layer for site in sites], np.int32)
    yield "site_index", per_vector(np.arange(len(sites), dtype=np.int32), widths)
    yield "layer", per_vector(layers, widths)
    yield "channel", np.concatenate([np.arange(width, dtype=np.int32) for width in widths])
    if examples:
        yield "examples", np.array(examples, dtype=object)
