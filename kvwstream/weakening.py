"""A copy of a checkpoint with some tensors scaled (Eq. 6).

The copy differs from its base in the bytes of the scaled tensors and nowhere else: header, key
order, dtypes, shapes, metadata and every other file are the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvwstream.checkpoint import Checkpoint, Tensor
from kvwstream.durable import fsync
from kvwstream.rounding import ITEMSIZE, scale, scale_in_place


class Exact(NamedTuple):
    """Factors for the slices of a tensor along an axis: float64 (width,), one rounding."""

    axis: int
    factors: np.ndarray[tuple[int], np.dtype[np.float64]]

    def scaled(self, raw: bytes, tensor: Tensor, first_row: int) -> bytes:
        """Some rows of the tensor, weakened; factors of one leave every bit, of a NaN too."""
        if np.all(self.factors == 1):
            return raw
        return scale(
            raw, tensor.dtype, tensor.shape[1], self.axis, self.factors, first_row=first_row
        )


class InPlace(NamedTuple):
    """Gates (record, width) in the tensor's dtype: one rounded multiplication per record."""

    axis: int
    gates: np.ndarray[tuple[int, int], np.dtype[Any]]

    def scaled(self, raw: bytes, tensor: Tensor, first_row: int) -> bytes:
        """Some rows of the tensor, weakened record after record."""
        return scale_in_place(
            raw, tensor.dtype, tensor.shape[1], self.axis, self.gates, first_row=first_row
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

    `scalings` come in batches, so that not all need be in memory. Each byte is read once; the
    digests of every tensor before and after come with the pass. Shards without a scaled tensor are
    hard-linked where the file system allows. Files are fsynced.
    """
    for name in base.side_files():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(base.folder / name, target)
        fsync(target)
    shards = {base.tensors[name].shard for name in touched}
    for shard in base.shards:
        if shard in shards:
            _copy_header(base, shard, out)
        else:
            _link(base.folder / shard, out / shard)

    def copy(name: str, scaling: Scaling | None = None) -> TensorDigests:
        return _copy_tensor(base, name, out, scaling, base.tensors[name].shard in shards)

    kept = [name for name in base.tensors if name not in touched]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = dict(zip(kept, pool.map(copy, kept), strict=True))
        for batch in scalings:
            digests |= zip(batch, pool.map(copy, batch, batch.values()), strict=True)
    for shard in shards:
        fsync(out / shard)
    fsync(out)
    return {name: digests[name] for name in base.tensors}


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
        yield block, scaling.scaled(block, tensor, first)
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
