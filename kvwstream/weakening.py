"""A copy of a checkpoint with some tensors scaled (Eq. 6).

The copy differs from its base in the bytes of the scaled tensors and nowhere else: header, key
order, dtypes, shapes, metadata and every other file are the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvwstream.checkpoint import Checkpoint, Tensor
from kvwstream.durable import clone, fsync
from kvwstream.rounding import ITEMSIZE, scale, scale_in_place

Buffer = bytes | memoryview


class Exact(NamedTuple):
    """Factors for the slices of a tensor along an axis: float64 (width,), one rounding."""

    axis: int
    factors: np.ndarray[tuple[int], np.dtype[np.float64]]

    def scaled(self, raw: Buffer, tensor: Tensor, first_row: int, out: memoryview) -> Buffer:
        """Some rows of the tensor, weakened; factors of one leave every bit, of a NaN too."""
        if np.all(self.factors == 1):
            return raw
        columns, factors = tensor.shape[1], self.factors
        return scale(raw, tensor.dtype, columns, self.axis, factors, first_row=first_row, out=out)


class InPlace(NamedTuple):
    """Gates (record, width) in the tensor's dtype: one rounded multiplication per record."""

    axis: int
    gates: np.ndarray[tuple[int, int], np.dtype[Any]]

    def scaled(self, raw: Buffer, tensor: Tensor, first_row: int, out: memoryview) -> Buffer:
        """Some rows of the tensor, weakened record after record."""
        return scale_in_place(
            raw, tensor.dtype, tensor.shape[1], self.axis, self.gates, first_row=first_row, out=out
        )


Scaling = Exact | InPlace


class TensorDigests(NamedTuple):
    """SHA-256 (hex) of a tensor's bytes before and after."""

    before: str
    after: str


def copy_scaled(
    base: Checkpoint,
    out: Path,
    touched: Collection[str],
    scalings: Iterable[Mapping[str, Scaling]],
) -> dict[str, TensorDigests]:
    """Copy `base` into the new folder `out`, multiplying the `touched` tensors (Eq. 6).

    `scalings` come in batches, so that not all need be in memory. Each byte is read once, in the
    order of the files as far as the batches allow; the digests of every tensor before and after
    come with the pass. Where the file system can share blocks, only the touched tensors are
    written; elsewhere shards without one are hard links. Files are fsynced, which begins while
    others are computed.
    """
    shards = {base.tensors[name].shard for name in touched}
    copied = {shard for shard in base.shards if _begin(base, shard, out, shard in shards)}
    kept = [name for name in base.tensors if name not in touched]
    digests: dict[str, TensorDigests] = {}
    with ThreadPoolExecutor(_threads()) as pool, Flushing(out, shards) as flushing:
        for batch in scalings:
            names = sorted((*kept, *batch), key=lambda name: _place(base.tensors[name]))

            def copy(name: str, batch: Mapping[str, Scaling] = batch) -> TensorDigests:
                shard, scaling = base.tensors[name].shard, batch.get(name)
                write = scaling is not None or shard in copied
                made = _copy_tensor(base, name, out, scaling, write=write)
                if write:
                    flushing.begin(shard)
                return made

            digests |= zip(names, pool.map(copy, names), strict=True)
            kept = []
    for name in base.side_files():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(base.folder / name, target)
        fsync(target)
    fsync(out)
    return {name: digests[name] for name in base.tensors}


def _place(tensor: Tensor) -> tuple[str, int]:
    return tensor.shard, tensor.start


def _threads() -> int:
    """More would wait for the disk, and each holds two blocks."""
    return min(8, os.cpu_count() or 1)


class Flushing:
    """Flushes files in a thread while they are written, and whole when the block ends well."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.folder, self.files = folder, list(files)
        self.pool = ThreadPoolExecutor(1)
        self.newest = dict[str, Future[None]]()
        self.begun = list[Future[None]]()

    def begin(self, file: str) -> None:
        """Take what was written so far to the disk, unless that is going on."""
        if file not in self.newest or self.newest[file].done():
            self.newest[file] = future = self.pool.submit(fsync, self.folder / file)
            self.begun.append(future)

    def __enter__(self) -> Flushing:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for flushed in self.begun:
                flushed.result()  # an error of the disk is told once, perhaps there
            for file in self.files:
                fsync(self.folder / file)


def _copy_tensor(
    base: Checkpoint, name: str, out: Path, scaling: Scaling | None, *, write: bool
) -> TensorDigests:
    tensor = base.tensors[name]
    before, after = hashlib.sha256(), hashlib.sha256()
    place = tensor.start
    with (out / tensor.shard).open("r+b" if write else "rb") as file:
        for block, made in scaled_blocks(base, tensor, scaling):
            before.update(block)
            if scaling:
                after.update(made)
            if write:
                _write_at(file.fileno(), made, place)
                place += len(made)
    digest = before.hexdigest()
    return TensorDigests(digest, after.hexdigest() if scaling else digest)


def scaled_blocks(
    base: Checkpoint, tensor: Tensor, scaling: Scaling | None
) -> Iterator[tuple[Buffer, Buffer]]:
    """A tensor's bytes in blocks, each with what it becomes; without a scaling, itself.

    Each stands where the one before it stood.
    """
    if scaling is None:
        yield from ((block, block) for block in base.blocks(tensor))
        return
    rows, columns = tensor.shape
    first, out = 0, memoryview(b"")
    for block in base.blocks(tensor, rows):
        out = out or memoryview(bytearray(len(block)))  # the first is the longest
        yield block, scaling.scaled(block, tensor, first, out[: len(block)])
        first += len(block) // (columns * ITEMSIZE[tensor.dtype])


def _write_at(file: int, block: Buffer, place: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def _begin(base: Checkpoint, shard: str, out: Path, touched: bool) -> bool:
    """Make the shard, but for the bytes of tensors where it returns True: these are to be copied.

    It shares the blocks of the base's if that can be, else one that is not touched is a hard link
    to it, else a copy.
    """
    source, target = base.folder / shard, out / shard
    target.parent.mkdir(parents=True, exist_ok=True)
    shared = clone(source, target)
    if not shared and not touched:
        target.unlink()
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(source, target)
            fsync(target)
        return False
    if not shared:
        start = min(tensor.start for tensor in base.tensors.values() if tensor.shard == shard)
        with source.open("rb") as reader, target.open("r+b") as writer:
            writer.write(reader.read(start))
            writer.truncate(source.stat().st_size)
    shutil.copystat(source, target)
    target.chmod(target.stat().st_mode | 0o200)
    return not shared
