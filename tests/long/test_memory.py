"""Peak memory: collecting does not grow with the records, reducing not with the parts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvwstream.passes import in_order
from kvwstream.plan import CollectPlan, Site
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.tables import ExampleTable, sites_digest
from tests.conftest import COLOURS, THINGS, question, write_rows

pytestmark = pytest.mark.long

LAYERS, WIDTH = 32, 11008
"""LLaVA-1.5-7B: 352,256 knowledge vectors."""
RETAIN, FORGET = 990, 10
GIGABYTE = 1 << 30

# VmHWM, because the peak that getrusage tells begins with that of the process before exec.
CHILD = """
import json, sys
from kvwstream.cli import main
import dask.threaded, kvwstream.pipelines.reduce

def proc(file, name):
    lines = dict(line.split(":") for line in open(f"/proc/self/{file}"))
    return int(lines[name].split()[0])

before = proc("io", "rchar")
try:
    main()
except SystemExit as end:
    assert not end.code
print(json.dumps({"peak": proc("status", "VmHWM") << 10, "read": proc("io", "rchar") - before}))
"""


def measure(*words: object) -> dict[str, int]:
    """Peak memory and bytes read, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def test_collecting_a_hundred_times_the_records_takes_no_more_memory(llama, tmp_path):
    rows = [
        {**question(thing, colour), "id": f"{thing}-{colour}-{n}", "answer": f"{colour} {n}."}
        for n in range(10)
        for thing in THINGS
        for colour in COLOURS
    ]
    peak = {}
    for number in (10, 1000):
        data = write_rows(tmp_path / f"{number}.jsonl", rows[:number])
        options = ("--part-size", 5, "--threads", 1)
        peak[number] = measure("collect", llama, data, tmp_path / f"{number}.zarr", *options)
    assert peak[1000]["peak"] <= 1.05 * peak[10]["peak"], peak


def synthetic(place: Path, records: int, seed: int) -> str:
    """A complete store of the width of LLaVA-1.5-7B, a record a part, of numbers by chance."""
    sites = [
        Site(f"layers.{n}.down_proj", f"layers.{n}.down_proj.weight", 1, n, -1, WIDTH, n * WIDTH)
        for n in range(LAYERS)
    ]
    digests = [hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in range(records)]
    table = ExampleTable(
        [f"{seed}-{n}" for n in range(records)],
        digests,
        np.full(records, 9),
        np.full(records, 4),
        np.full(records, 5),
        *in_order(records, 1).columns,
    )
    plan = CollectPlan(
        model_digest="0" * 64,
        config_digest="0" * 64,
        processor_digest="0" * 64,
        sites_digest=sites_digest(sites),
        data_digest=table.digest,
        arrangement_digest=table.arrangement,
        num_examples=records,
        num_sites=LAYERS,
        num_vectors=LAYERS * WIDTH,
        seed=0,
        batch_size=1,
        part_size=1,
        tokens="answer",
        moments=("abs",),
        dtype="bfloat16",
        attention="sdpa",
        threads=1,
        pass_tokens=2048,
        sharing=True,
    )
    store = CollectStore.create(Location(str(place)), plan, sites, table)
    rng, counts = np.random.default_rng(seed), np.full((1, LAYERS), 5)
    for part in plan.parts:
        sums = {"abs": rng.random((1, plan.num_vectors), np.float32)}
        store.write_part(PartData(part, sums, counts), {"device": "none"})
    return str(place)


def test_reducing_a_thousand_wide_parts_is_lean_and_reads_each_byte_once(tmp_path):
    try:
        retain = synthetic(tmp_path / "retain.zarr", RETAIN, 1)
        forget = synthetic(tmp_path / "forget.zarr", FORGET, 2)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files if "c" in path.parts[-3:])
        seals = sum(path.stat().st_size for path in files if path.name == "zarr.json")
        assert size > GIGABYTE
        found = measure(
            "reduce", "--retain", retain, "--forget", forget, tmp_path / "statistics.zarr"
        )
        assert found["peak"] < 2 * GIGABYTE, found
        assert size <= found["read"] <= 1.1 * size + 3 * seals, found
    finally:
        shutil.rmtree(tmp_path)
