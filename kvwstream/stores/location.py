"""A folder of objects on a local path, through one interface that object storage shares.

Every name is written once. A write is atomic (it appears whole or not at all), `create` is a
conditional put, and `sync` makes what was written survive a power cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore
from zarr.errors import BaseZarrError
from zarr.storage import ObjectStore

from kvwstream.durable import fsync
from kvwstream.errors import DamageError, StorageError, first_line
from kvwstream.paths import local_path

STAGED = re.compile(r"#\d+$")
"""Files that another writer is about to rename to their name."""


@dataclass(frozen=True)
class Location:
    """A folder, named as the user named it."""

    url: str

    def at(self, *names: str) -> Location:
        """A folder below this one."""
        return Location("/".join((self.url.rstrip("/"), *names)))

    @property
    def path(self) -> Path:
        """The local folder."""
        return local_path(self.url)

    def objects(self, *, mkdir: bool = False) -> LocalStore:
        """The obstore store rooted here. Only a writer makes the folder."""
        return LocalStore(prefix=self.path, mkdir=mkdir)

    def zarr(self, *, mkdir: bool = False) -> ObjectStore[LocalStore]:
        """The same as a Zarr store, read-only unless the folder may be made."""
        return ObjectStore(self.objects(mkdir=mkdir), read_only=not mkdir)

    def exists(self) -> bool:
        """Whether a folder is there; `StorageError` if it is a file."""
        if self.path.is_file():
            raise StorageError(f"{self.url}: is a file, expected a folder")
        return self.path.exists()

    def read(self, name: str) -> bytes | None:
        """The object, or None where there is none."""
        if not self.exists():
            return None
        with storage_errors(f"{self.url}/{name}"):
            try:
                return bytes(obstore.get(self.objects(), name).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Put an object, whole or not at all."""
        with storage_errors(f"{self.url}/{name}"):
            obstore.put(self.objects(mkdir=True), name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object unless the name exists; returns whether it was put."""
        with storage_errors(f"{self.url}/{name}"):
            try:
                obstore.put(self.objects(mkdir=True), name, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def names(self) -> dict[str, int]:
        """Size in bytes of every object below, by name; one listing."""
        if not self.exists():
            return {}
        with storage_errors(self.url):
            pages = obstore.list(self.objects())
            return {item["path"]: item["size"] for page in pages for item in page}

    def sync(self) -> None:
        """Flush every file below and the folders that name them."""
        with storage_errors(self.url):
            for folder, _, files in os.walk(self.path):
                for name in files:
                    if not STAGED.search(name):
                        fsync(Path(folder, name))
                fsync(Path(folder))
            fsync(self.path.parent)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn what the storage or Zarr says into one line that names `what`."""
    try:
        yield
    except BaseZarrError as error:
        raise DamageError(f"{what}: {first_line(error)[:300]}") from error
    except (BaseError, OSError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{what}: {first_line(error)[:300]}") from error
