"""Reducing and auditing against reading with plain Zarr: `python -m benchmarks.reduce`.

Two pairs of stores of made-up sums: a few parts of the width of LLaVA-1.5-7B, and many small parts.
`reading` decompresses every array of every store, and of the statistics where an audit reads them.
What `reduce` of forget records writes is many times what it reads, so that has a ratio of its own:
`reading and writing` also writes the same arrays, with plain Zarr and flushed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import zarr

from benchmarks.made_up import make_store
from benchmarks.measuring import peak_of, save, seconds
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import Site
from kvwstream.stores.arrays import COMPRESSION

REPEATS = 3


class Shape(NamedTuple):
    """Two stores: layers of so many knowledge vectors, records, parts."""

    layers: int
    width: int
    retain: int
    forget: int
    part_size: int


SHAPES = {
    "LLaVA-1.5-7B": Shape(32, 11008, 256, 64, 64),
    "many small parts": Shape(30, 1536, 2000, 200, 4),
}
REDUCE = """
import sys
from kvwstream.pipelines.reduce import reduce
reduce([sys.argv[1]], sys.argv[3], [sys.argv[2]])
"""
AUDIT = """
import sys
from kvwstream.pipelines.audit import audit
assert audit(sys.argv[1:]).passed
"""


def read_zarr(*groups: Path) -> None:
    for place in groups:
        group = zarr.open_group(place, mode="r")
        for _, array in group.arrays():
            array[...]
        for _, part in group.groups():
            for _, array in part.arrays():
                array[...]


def write_zarr(source: Path, out: Path) -> None:
    """The same arrays again: chunk after chunk, flushed."""
    target = zarr.create_group(out)
    for name, array in zarr.open_group(source, mode="r").arrays():
        kind = str if array.dtype.kind in "OTU" else array.dtype
        copy = target.create_array(
            name, shape=array.shape, dtype=kind, chunks=array.chunks, compressors=[COMPRESSION]
        )
        for start in range(0, array.shape[0], array.chunks[0]):
            rows = slice(start, start + array.chunks[0])
            copy[rows] = array[rows]
    files = [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def sound(*paths: Path) -> None:
    found = audit([str(path) for path in paths])
    assert found.passed, found.findings


def measure_shape(shape: Shape, folder: Path) -> dict[str, Any]:
    sites = [
        Site(f"{n}", f"{n}.weight", 1, n, -1, shape.width, n * shape.width)
        for n in range(shape.layers)
    ]
    retain, forget = folder / "retain", folder / "forget"
    make_store(retain, sites, shape.retain, part_size=shape.part_size)
    make_store(forget, sites, shape.forget, first=shape.retain, part_size=shape.part_size)
    statistics, out = folder / "statistics", folder / "out"
    reduce([str(retain)], str(statistics), [str(forget)])
    parts = [retain / "parts", forget / "parts"]
    works: dict[str, Callable[[], object]] = {
        "reading retain": lambda: read_zarr(parts[0]),
        "reduce retain": lambda: reduce([str(retain)], str(out)),
        "audit retain": lambda: sound(retain),
        "reading stores": lambda: read_zarr(*parts),
        "reading stores, writing statistics": lambda: (
            read_zarr(*parts),
            write_zarr(statistics, out),
        ),
        "reduce stores": lambda: reduce([str(retain)], str(out), [str(forget)]),
        "reading all": lambda: read_zarr(*parts, statistics),
        "audit all": lambda: sound(retain, forget, statistics),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(REPEATS + 1):
        for name, work in works.items():
            spent = seconds(work)
            shutil.rmtree(out, ignore_errors=True)
            if turn:
                taken[name].append(spent)
    pairs = {
        "reduce retain / reading": ("reduce retain", "reading retain"),
        "audit retain / reading": ("audit retain", "reading retain"),
        "reduce / reading": ("reduce stores", "reading stores"),
        "reduce / reading and writing": ("reduce stores", "reading stores, writing statistics"),
        "audit / reading": ("audit all", "reading all"),
    }
    return {
        "shape": shape._asdict(),
        "ratios": {
            name: [a / b for a, b in zip(taken[ours], taken[theirs], strict=True)]
            for name, (ours, theirs) in pairs.items()
        },
        "seconds": taken,
        "peak_megabytes": {
            "reduce": peak_of(REDUCE, retain, forget, out),
            "audit": peak_of(AUDIT, retain, forget, statistics),
        },
    }


def measure() -> dict[str, Any]:
    """Ratios of seconds and peaks of memory, by the name of the shape."""
    found = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure_shape(shape, Path(folder))
    return found


def write() -> None:
    """The result as JSON."""
    save("reduce", {"shapes": measure()})


if __name__ == "__main__":
    write()
