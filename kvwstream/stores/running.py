"""Notes of the workers that are collecting a store, for `kvwstream status`.

    STORE.zarr/.running/<worker>.json

They are no part of the store: written over while a worker runs, removed when it ends. A killed
worker leaves its note; the next command that completes the store clears them away.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from kvwstream.errors import DamageError
from kvwstream.stores.location import Location

FOLDER = ".running"
SECONDS_PER_NOTE = 10.0


@dataclass(frozen=True)
class Note:
    """What a worker is doing."""

    worker: str
    part: int
    """Number of the part that it runs."""
    records: int
    """Records of this part that are measured."""
    total_records: int
    """Records that it measured since it started, this part's included."""
    seconds: float
    """Since it started, by its own clock."""

    @property
    def records_per_second(self) -> float:
        """Its mean rate so far."""
        return self.total_records / self.seconds if self.seconds else 0.0


class Notebook:
    """Keeps one worker's note up to date, at most one write in `SECONDS_PER_NOTE` within a part."""

    def __init__(self, store: Location) -> None:
        self.worker = f"{socket.gethostname()}-{os.getpid()}"
        self.place = store.at(FOLDER)
        self.start = time.monotonic()
        self.total = 0

    @contextmanager
    def part(self, number: int) -> Iterator[_Page]:
        """Say that a part runs; the value counts its records."""
        page = _Page(self, number)
        page.write()
        yield page

    def close(self) -> None:
        """Remove the note."""
        self.place.delete([f"{self.worker}.json"])


class _Page:
    def __init__(self, book: Notebook, part: int) -> None:
        self.book, self.part, self.records = book, part, 0

    def advance(self, records: int) -> None:
        self.records += records
        self.book.total += records
        if time.monotonic() - self.written > SECONDS_PER_NOTE:
            self.write()

    def write(self) -> None:
        book, self.written = self.book, time.monotonic()
        note = Note(book.worker, self.part, self.records, book.total, self.written - book.start)
        book.place.write(f"{book.worker}.json", json.dumps(asdict(note)).encode())


def read_note(store: Location, name: str) -> Note | None:
    """The note `name`, or None if its worker has just removed it."""
    content = store.read(name)
    if content is None:
        return None
    try:
        return Note(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise DamageError(f"{store.url}/{name}: not a worker's note: {error}") from error


def is_note(name: str) -> bool:
    """Whether an object of a store is a worker's note."""
    return name.startswith(f"{FOLDER}/")
