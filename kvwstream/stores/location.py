"""A folder of objects, on a local path or in a bucket, through one interface.

Every name of an artefact is written once. A write is atomic (it appears whole or not at all),
`create` is a conditional put, and `sync` makes what was written survive a power cut.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, NotSupportedError
from obstore.store import LocalStore, ObjectStore, from_url
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from zarr.errors import BaseZarrError
from zarr.storage import ObjectStore as ZarrStore
from zarr.storage import StorePath

from kvwstream.durable import fsync
from kvwstream.errors import DamageError, OptionError, StorageError, first_line
from kvwstream.paths import local_path

T = TypeVar("T")
STAGED = re.compile(r"#\d+$")
"""Files that another writer is about to rename to their name."""
SCHEMES = ("s3", "gs", "az")
RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "base": 2,
        "init_backoff": timedelta(milliseconds=200),
        "max_backoff": timedelta(seconds=15),
    },
}
"""What obstore does about an answer of 429 or 5xx, and about a connection that breaks."""
FLUSHES = 8
"""Files that are flushed at once."""
ATTEMPTS = 4
"""Of a conditional put or a deletion, which obstore does not send again if the answer is lost."""
WAIT = wait_random_exponential(multiplier=0.4, max=10)
"""Seconds between them."""


@dataclass(frozen=True)
class Location:
    """A folder, named as the user named it: a path, or `s3://`, `gs://`, `az://` and so on."""

    url: str

    def __post_init__(self) -> None:
        scheme = urlsplit(self.url).scheme if "://" in self.url else ""
        if scheme and scheme not in SCHEMES:
            raise OptionError(
                f"{self.url}: {scheme}:// is not supported; a local path, or one of "
                + ", ".join(f"{known}://" for known in SCHEMES)
            )
        if scheme and not urlsplit(self.url).path.strip("/"):
            raise OptionError(f"{self.url}: names a whole bucket; name a folder within it")

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        return "://" not in self.url

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.name if self.is_local else self.url.rstrip("/").rpartition("/")[2]

    def at(self, *names: str) -> Location:
        """A folder below this one."""
        return Location("/".join((self.url.rstrip("/"), *names)))

    @property
    def path(self) -> Path:
        """The local folder."""
        assert self.is_local, f"{self.url} is not a local path"
        return local_path(self.url)

    def _store(self, *, mkdir: bool = False) -> tuple[ObjectStore, str]:
        """The obstore store and what stands before the names in it. Only a writer makes folders."""
        if self.is_local:
            return LocalStore(prefix=self.path, mkdir=mkdir), ""
        parts = urlsplit(self.url)
        path = parts.path.strip("/")
        return _bucket(f"{parts.scheme}://{parts.netloc}"), f"{path}/" if path else ""

    def zarr(self) -> StorePath:
        """The folder for Zarr to read."""
        store, prefix = self._store()
        return StorePath(ZarrStore(store, read_only=True), prefix.rstrip("/"))

    def exists(self) -> bool:
        """Whether anything has this name."""
        if self.is_local:
            return os.path.lexists(self.path)
        store, prefix = self._store()
        with storage_errors(self.url):
            return any(len(page) for page in obstore.list(store, prefix, chunk_size=1))

    def is_absent(self) -> bool:
        """Whether a local folder is missing, which obstore would make; a file is an error."""
        if self.is_local and self.path.is_file():
            raise StorageError(f"{self.url}: is a file, expected a folder")
        return self.is_local and not self.path.exists()

    def read(self, name: str) -> bytes | None:
        """The object, or None where there is none."""
        view = self.view(name)
        return None if view is None else bytes(view)

    def view(self, name: str) -> memoryview | None:
        """`read` without a copy."""
        if self.is_absent():
            return None
        store, prefix = self._store()
        with storage_errors(f"{self.url}/{name}"):
            try:
                return memoryview(obstore.get(store, prefix + name).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Put an object, whole or not at all."""
        with storage_errors(f"{self.url}/{name}"):
            store, prefix = self._store(mkdir=True)
            obstore.put(store, prefix + name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object unless the name exists; returns whether the name now holds `data`.

        Who was first cannot be told: the answer to a put that was executed may be lost, and the
        same put, sent again, finds itself. A storage that knows no conditional put is asked first
        whether the name exists.
        """
        with storage_errors(f"{self.url}/{name}"):
            store, prefix = self._store(mkdir=True)
            try:
                self._again(lambda: obstore.put(store, prefix + name, data, mode="create"))
            except AlreadyExistsError:
                return self.read(name) == data
            except (NotSupportedError, NotImplementedError):
                found = self.read(name)
                if found is not None:
                    return found == data
                self.write(name, data)
            return True

    def listing(self) -> dict[str, obstore.ObjectMeta]:
        """Size and time of every object below, by name; one listing."""
        if self.is_absent():
            return {}
        store, prefix = self._store()
        with storage_errors(self.url):
            pages = obstore.list(store, prefix or None)
            return {item["path"].removeprefix(prefix): item for page in pages for item in page}

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, a thousand in a request of S3; one that is gone already is no error."""
        with storage_errors(self.url):
            if self.is_local:
                for name in names:
                    Path(self.path, name).unlink(missing_ok=True)
                return
            store, prefix = self._store()
            paths = [prefix + name for name in names]
            try:
                self._again(lambda: obstore.delete(store, paths))
            except FileNotFoundError:
                # A storage without bulk deletion stops there.
                for path in paths:
                    with suppress(FileNotFoundError):
                        self._again(partial(obstore.delete, store, path))

    def sync(self) -> None:
        """Flush every local file below and the folders that name them; buckets need none."""
        if not self.is_local:
            return
        paths = [self.path.parent]
        for folder, _, files in os.walk(self.path):
            paths.append(Path(folder))
            paths += [Path(folder, name) for name in files if not STAGED.search(name)]
        # side by side they share the commits of the file system's journal
        with storage_errors(self.url), ThreadPoolExecutor(FLUSHES) as pool:
            list(pool.map(fsync, paths))

    def clean(self) -> None:
        """Remove what killed writers left below a local folder: staged files, empty folders."""
        if not self.is_local:
            return
        with storage_errors(self.url):
            for folder, folders, files in os.walk(self.path, topdown=False):
                for name in filter(STAGED.search, files):
                    Path(folder, name).unlink(missing_ok=True)
                for name in folders:
                    try:
                        Path(folder, name).rmdir()
                    except OSError as error:  # another command may be writing or cleaning here
                        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                            raise

    def _again(self, put: Callable[[], T]) -> T:
        """Try once more, later, what may have failed on its way to a bucket or back."""
        if self.is_local:
            return put()
        for attempt in Retrying(
            retry=retry_if_exception_type(GenericError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=WAIT,
            reraise=True,
        ):
            with attempt:
                return put()
        raise AssertionError("unreachable")


@lru_cache
def _bucket(root: str) -> ObjectStore:
    """One client, and with it one pool of connections, per bucket; settings by the environment."""
    with storage_errors(root):
        return from_url(root, retry_config=RETRIES)


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
