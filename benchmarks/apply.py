"""Applying against copying: `python -m benchmarks.apply`.

A made-up checkpoint of the shape of LLaVA-1.5-7B in 20 shards: its 32 value projections have their
real size in bfloat16 (4096 x 11008, 2.9 GB of them), one more tensor a layer stands for the rest
(13 GB in all). Both commands read it from a cold page cache, where it may be dropped, and leave
what survives a power cut; programs are in the cache. On a file system that shares blocks (XFS on a
loop device, as root) apply does so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_up import make_store
from benchmarks.measuring import peak_of, save, seconds
from kvwstream.checkpoint import Checkpoint
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import Site

LAYERS, ROWS, WIDTH, SHARDS = 32, 4096, 11008, 20
REST = 14336
"""Rows of the tensor that stands for the rest of a layer: attention and the projections inward."""
REPEATS = 3
IMPORTS = """
import sys
from pathlib import Path
from kvwstream.accessor import LayerRange
from kvwstream.pipelines.apply import apply
from kvwstream.strength import Strength
"""
APPLY = f"""{IMPORTS}
model, statistics, out, last = sys.argv[1:]
apply(Path(model), statistics, Path(out), Strength(0.02, LayerRange(0, int(last))))
"""


def tensor_names(layer: int) -> tuple[str, str]:
    prefix = f"model.layers.{layer}.mlp"
    return f"{prefix}.down_proj.weight", f"{prefix}.up_proj.weight"


def make_checkpoint(folder: Path, layers: int) -> None:
    """Written a tensor at a time; random signs, exponents near 2^-6 and fractions, fixed seeds."""
    folder.mkdir()
    rng, shapes = np.random.default_rng(0), ((ROWS, WIDTH), (REST, WIDTH))
    index: dict[str, str] = {}
    names = [f"model-{n + 1:05d}-of-{SHARDS:05d}.safetensors" for n in range(SHARDS)]
    held: dict[str, list[tuple[str, tuple[int, int]]]] = {name: [] for name in names}
    tensors = [t for n in range(layers) for t in zip(tensor_names(n), shapes, strict=True)]
    for number, tensor in enumerate(tensors):
        held[names[number * SHARDS // len(tensors)]].append(tensor)
    for name, inside in held.items():
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in inside:
            start, end = end, end + 2 * shape[0] * shape[1]
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            index[tensor] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, shape in inside:
                bits = rng.integers(0, 1 << 16, shape, np.uint16)
                file.write(((bits & 0x81FF) | 0x3C00).tobytes())
            file.flush()
            os.fsync(file.fileno())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text("{}")


def make_statistics(model: Path, folder: Path, layers: int) -> str:
    """Of one record each, measured on that checkpoint as far as its digest says."""
    sites = [
        Site(f"model.layers.{n}.mlp.down_proj", tensor_names(n)[0], 1, n, -1, WIDTH, n * WIDTH)
        for n in range(layers)
    ]
    digest = Checkpoint.open(model).digest
    for number, kind in enumerate(("retain", "forget")):
        make_store(folder / kind, sites, 1, first=number, model_digest=digest)
    reduce([str(folder / "retain")], str(folder / "statistics"), [str(folder / "forget")])
    return str(folder / "statistics")


def forget_pages(model: Path) -> bool:
    """Whether the page cache could be emptied of what is clean."""
    for path in model.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    for program in (["cp", "--version"], [sys.executable, "-c", IMPORTS]):
        subprocess.run(program, check=True, capture_output=True)
    return True


def copy(model: Path, out: Path, how: str) -> None:
    """`cp`, each file flushed as a weakened one is."""
    subprocess.run(["cp", "-r", f"--reflink={how}", model, out], check=True)
    subprocess.run(["sync", *out.iterdir(), out], check=True)


def apply(model: Path, statistics: str, out: Path, layers: int) -> float:
    """In a process of its own; its peak of resident megabytes."""
    return peak_of(APPLY, model, statistics, out, str(layers - 1))


def compare(model: Path, statistics: str, layers: int, how: str) -> dict[str, Any]:
    """Both in turn, each once before the clock counts."""
    found: dict[str, list[float]] = {"apply": [], "cp": []}
    peaks, out, cold = list[float](), model.with_name("out"), True
    works: dict[str, Callable[[], object]] = {
        "apply": lambda: peaks.append(apply(model, statistics, out, layers)),
        "cp": lambda: copy(model, out, how),
    }
    for turn in range(REPEATS + 1):
        for name, work in works.items():
            cold &= forget_pages(model)
            taken = seconds(work)
            shutil.rmtree(out)
            if turn:
                found[name].append(taken)
    ratios = [a / b for a, b in zip(found["apply"], found["cp"], strict=True)]
    cache = "cold" if cold else "warm"
    return {"ratio": ratios, "seconds": found, "peak_megabytes": peaks, "page_cache": cache}


@contextmanager
def sharing_blocks(folder: Path, size: int) -> Iterator[Path]:
    """An XFS on a loop device; needs root and xfsprogs. `OSError` where that cannot be had.

    The device bypasses the page cache for its file, so that nothing is cached twice.
    """
    image, place = folder / "xfs.img", folder / "xfs"
    place.mkdir()
    with ExitStack() as stack:
        with image.open("wb") as file:
            file.truncate(size)
        stack.callback(image.unlink)
        device = told("losetup", "--direct-io=on", "--find", "--show", image)
        stack.callback(told, "losetup", "--detach", device)
        told("mkfs.xfs", "-q", "-m", "reflink=1", device)
        told("mount", device, place)
        stack.callback(told, "umount", place)
        yield place


def told(*command: str | Path) -> str:
    """What a command prints; `OSError` if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def measure(folder: Path | None = None, *, layers: int | None = None) -> dict[str, Any]:
    """Ratios of seconds, apply to copy, and what else was measured with them.

    Fewer layers where the disk has no room for four copies; the result says so.
    """
    with ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        layer = 2 * (ROWS + REST) * WIDTH
        layers = layers or min(LAYERS, shutil.disk_usage(folder).free // (4 * layer))
        model = folder / "model"
        make_checkpoint(model, layers)
        statistics = make_statistics(model, folder, layers)
        result: dict[str, Any] = {
            "layers": layers,
            "bytes": sum(path.stat().st_size for path in model.iterdir()),
            "weakened_bytes": 2 * ROWS * WIDTH * layers,
            "plain": compare(model, statistics, layers, "never"),
        }
        try:
            place = stack.enter_context(sharing_blocks(folder, 3 * layers * layer))
        except OSError as error:
            result["reflinks"] = f"not measured: {error}"
            return result
        shutil.copytree(model, place / "model")
        for path in (place / "model").iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        # against a copy that shares no block, and against itself where nothing may be shared
        result["reflinks"] = compare(place / "model", statistics, layers, "never")
        return result


def write() -> None:
    """The result as JSON."""
    save("apply", measure())


if __name__ == "__main__":
    write()
