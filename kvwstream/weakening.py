"""A copy of a checkpoint with some tensors scaled (Eq. 6).

The copy differs from its base in the bytes of the scaled tensors and nowhere else: header, key
order, dtypes, shapes, metadata and every other file are the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvwstream.checkpoint import Checkpoint, Tensor
from kvwstream.durable import fsync
from kvwstream.rounding import ITEMSIZE, scale


class Scaling(NamedTuple):
    """Factors for the slices of a tensor along an axis, float64 (width,)."""

    axis: int
    factors: np.ndarray[tuple[int], np.dtype[np.float64]]


class TensorDigests(NamedTuple):
    """SHA-256 (hex) of a tensor's bytes before and after."""

    before: str
    after: str


def copy_scaled(
    base: Checkpoint, out: Path, scalings: Mapping[str, Scaling]
) -> dict[str, TensorDigests]:
    """Copy `base` into the new folder `out`, multiplying some tensors (Eq. 6).

    Each byte is read once; the digests of every tensor before and after come with the pass. Shards
    without a scaled tensor are hard-linked where the file system allows. Files are fsynced.
    """
    for name in base.side_files():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(base.folder / name, target)
        fsync(target)
    touched = {base.tensors[name].shard for name in scalings}
    for shard in base.shards:
        if shard in touched:
            _copy_header(base, shard, out)
        else:
            _link(base.folder / shard, out / shard)

    def copy(name: str) -> TensorDigests:
        return _copy_tensor(
            base, name, out, scalings.get(name), base.tensors[name].shard in touched
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(base.tensors, pool.map(copy, base.tensors), strict=True))
    for shard in touched:
        fsync(out / shard)
    fsync(out)
    return digests


def _copy_tensor(
    base: Checkpoint, name: str, out: Path, scaling: Scaling | None, write: bool
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
) -> Iterator[tuple[bytes, bytes]]:
    """A tensor's bytes in blocks, each with what it becomes; without a scaling, itself."""
    if scaling is None:
        yield from ((block, block) for block in base.blocks(tensor))
        return
    rows, columns = tensor.shape
    first = 0
    for block in base.blocks(tensor, rows):
        yield block, scale(block, tensor.dtype, columns, *scaling, first_row=first)
        first += len(block) // (columns * ITEMSIZE[tensor.dtype])


def _write_at(file: int, block: bytes, place: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def _copy_header(base: Checkpoint, shard: str, out: Path) -> None:
    """A file of the same length with everything but the tensors' bytes."""
    source = base.folder / shard
    target = out / shard
    target.parent.mkdir(parents=True, exist_ok=True)
    start = min(tensor.start for tensor in base.tensors.values() if tensor.shard == shard)
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(reader.read(start))
        writer.truncate(source.stat().st_size)
    shutil.copystat(source, target)
    target.chmod(target.stat().st_mode | 0o200)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
        fsync(target)
