"""Safetensors checkpoints as bytes: headers, digests, and which tensor is which site's weight.

The model is never built.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from kvwstream.canonical import digest_of
from kvwstream.errors import ModelError, StorageError, first_line
from kvwstream.paths import local_path
from kvwstream.plan import Site
from kvwstream.rounding import ITEMSIZE

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MANIFEST = "kvwstream.json"
"""What `apply` writes beside a weakened checkpoint; of an earlier one it is not copied."""
OTHER_WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt"),
    *("*.gguf", "*.h5", "*.msgpack", "*.onnx"),
)
"""Never copied: they hold the weights as they were before."""
BLOCK = 1 << 20
"""Bytes read at a time; memory does not grow with the checkpoint."""


class Tensor(NamedTuple):
    """Where a tensor lies: bytes `start <= byte < stop` of the file `shard`."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Checkpoint:
    """The safetensors files of a folder and what they hold."""

    folder: Path
    shards: tuple[str, ...]
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers. `ModelError` for pickled weights only, or shards unlike their index."""
        shards, index = _shards(folder)
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            for name, tensor in _read_header(folder, shard):
                if name in tensors:
                    raise ModelError(f"{folder}: tensor {name} stands in two shards")
                tensors[name] = tensor
        if index is not None:
            found = {name: tensor.shard for name, tensor in tensors.items()}
            wrong = sorted(n for n in index.keys() | found.keys() if index.get(n) != found.get(n))
            if wrong:
                raise ModelError(
                    f"{folder}: the shards do not match {INDEX}: {len(wrong)} tensors, the first "
                    f"is {wrong[0]} (index: {index.get(wrong[0], 'absent')}, "
                    f"shards: {found.get(wrong[0], 'absent')}); fetch the checkpoint again"
                )
        return cls(folder, shards, tensors)

    @cached_property
    def tensor_digests(self) -> dict[str, str]:
        """SHA-256 (hex) of every tensor's bytes, by name."""

        def digest(tensor: Tensor) -> str:
            result = hashlib.sha256()
            for block in self.blocks(tensor):
                result.update(block)
            return result.hexdigest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(self.tensors, pool.map(digest, self.tensors.values()), strict=True))

    @cached_property
    def header_digests(self) -> dict[str, str]:
        """SHA-256 (hex) of what stands before the tensors' bytes in each shard, by file name."""
        digests = {}
        for shard in self.shards:
            starts = (tensor.start for tensor in self.tensors.values() if tensor.shard == shard)
            with (self.folder / shard).open("rb") as file:
                digests[shard] = hashlib.sha256(file.read(min(starts))).hexdigest()
        return digests

    @property
    def digest(self) -> str:
        """The plan's `model_digest`: names, dtypes, shapes and bytes, however they are sharded."""
        return self.digest_from(self.tensor_digests)

    def digest_from(self, tensor_digests: Mapping[str, str]) -> str:
        """`digest`, with the tensors' digests known already."""
        return digest_of(
            {n: [t.dtype, list(t.shape), tensor_digests[n]] for n, t in self.tensors.items()}
        )

    def blocks(self, tensor: Tensor, rows: int | None = None) -> Iterator[memoryview]:
        """A tensor's bytes, in blocks of whole rows where `rows` says how many there are.

        Each stands where the one before it stood.
        """
        size = tensor.stop - tensor.start
        row = size // rows if rows else 1
        step = max(1, BLOCK // max(1, row)) * row
        buffer = memoryview(bytearray(min(step, size)))
        with (self.folder / tensor.shard).open("rb", buffering=0) as file:
            file.seek(tensor.start)
            for start in range(tensor.start, tensor.stop, step or 1):
                block = buffer[: min(step, tensor.stop - start)]
                rest = block
                while rest:
                    read = file.readinto(rest)
                    if not read:
                        raise StorageError(
                            f"{self.folder / tensor.shard}: shorter than its header says"
                        )
                    rest = rest[read:]
                yield block

    def other_files(self) -> list[Path]:
        """Every file but the shards and `apply`'s manifest, relative to the folder."""
        return [
            path.relative_to(self.folder)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and path.relative_to(self.folder).as_posix() not in self.shards
            and path.name != MANIFEST
            and not {".cache", ".git"} & {*path.relative_to(self.folder).parts}
        ]

    def side_files(self) -> list[Path]:
        """The other files that `apply` copies: other formats of the weights are left out."""
        return [
            path
            for path in self.other_files()
            if not any(path.match(pattern) for pattern in OTHER_WEIGHTS)
        ]


def file_digests(folder: Path, names: Sequence[Path]) -> dict[str, str]:
    """SHA-256 (hex) of files below a folder, by name relative to it."""
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def resolve_model(name: str) -> Path:
    """Local folder of a checkpoint; a hub id (`owner/name`) is downloaded, safetensors only."""
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ModelError(f"{name}: no such folder, and not a hub id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{name}: no such folder, and the hub could not deliver it: {reason}"
        ) from error


def match_tensors(sites: Sequence[Site], checkpoint: Checkpoint) -> list[Site]:
    """Sites with `tensor` named as in the checkpoint, whose prefixes may differ from the modules'.

    The name with the longest common ending is taken, if it is unique, reaches above the layer
    number and has the site's width. Raises `ModelError` otherwise.
    """
    matched = []
    for site in sites:
        name = _longest_common_ending(site, checkpoint)
        tensor = checkpoint.tensors[name]
        if len(tensor.shape) != 2 or tensor.shape[site.axis] != site.width:
            raise ModelError(
                f"{checkpoint.folder}: {name} has shape {tensor.shape}, expected {site.width} on "
                f"axis {site.axis} for {site.path}"
            )
        if tensor.dtype not in ITEMSIZE:
            raise ModelError(
                f"{checkpoint.folder}: {name} has dtype {tensor.dtype}; only floating point "
                f"weights ({', '.join(ITEMSIZE)}) can be scaled, use the unquantised checkpoint"
            )
        matched.append(site._replace(tensor=name))
    if len({site.tensor for site in matched}) != len(matched):
        raise ModelError(f"{checkpoint.folder}: two sites share one tensor")
    return matched


def _shards(folder: Path) -> tuple[tuple[str, ...], dict[str, str] | None]:
    if (folder / INDEX).is_file():
        try:
            index: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
            shards = sorted(set(index.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder / INDEX}: not an index of safetensors shards") from error
        foreign = [shard for shard in shards if Path(shard).name != shard]
        if foreign:
            raise ModelError(f"{folder / INDEX}: names a shard outside the folder: {foreign[0]}")
        if SINGLE not in shards and (folder / SINGLE).is_file():
            raise ModelError(
                f"{folder}: holds both {SINGLE} and {INDEX}, and loaders differ in which they "
                "take; remove the one that is not the model"
            )
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise ModelError(f"{folder}: shards named by {INDEX} are missing: {', '.join(missing)}")
        return tuple(shards), index
    if (folder / SINGLE).is_file():
        return (SINGLE,), None
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt*") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder}: holds pickled weights only ({', '.join(pickled)}); unpickling runs code "
            "from the file, so they are refused: save the model as safetensors"
        )
    raise ModelError(f"{folder}: no {SINGLE} and no {INDEX} there")


def _read_header(folder: Path, shard: str) -> Iterator[tuple[str, Tensor]]:
    path = folder / shard
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            yield name, Tensor(shard, entry["dtype"], tuple(entry["shape"]), start, stop)
            if stop > size:
                raise ModelError(f"{path}: truncated, {name} ends beyond the file")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: not a safetensors file: {error}") from error


def _longest_common_ending(site: Site, checkpoint: Checkpoint) -> str:
    parts = site.tensor.split(".")
    needed = len(parts) - parts.index(str(site.layer)) + 1
    best: dict[int, list[str]] = {}
    for name in checkpoint.tensors:
        common = 0
        for ours, theirs in zip(reversed(parts), reversed(name.split(".")), strict=False):
            if ours != theirs:
                break
            common += 1
        best.setdefault(common, []).append(name)
    length = max(best, default=0)
    if length < min(needed, len(parts)) or len(best[length]) != 1:
        raise ModelError(
            f"{checkpoint.folder}: cannot tell which tensor is the weight of {site.path}; "
            f"candidates: {best.get(length, [])[:4]}"
        )
    return best[length][0]
