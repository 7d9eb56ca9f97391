"""Killed at any moment, collect goes on and ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvwstream.errors import PlanMismatchError, StorageError
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from tests.conftest import Artefacts, tree_bytes

# A child that collects and is killed by itself just before its n-th write to storage.
CHILD = """
import os, sys, signal
import obstore, torch
torch.set_num_threads(1)
import kvwstream.stores.location as location
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.readers import read_examples

model, data, store, fatal = sys.argv[1:5]
writes = 0
def deadly(function):
    def wrapper(*args, **kwargs):
        global writes
        if writes == int(fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        writes += 1
        return function(*args, **kwargs)
    return wrapper
from zarr.storage import ObjectStore
obstore.put = deadly(obstore.put)
ObjectStore.set = deadly(ObjectStore.set)
location.fsync = deadly(location.fsync)
prepared = prepare(model, read_examples(data), part_size=4, threads=1)
collect(prepared, store)
print(writes)
"""


def run_child(model: Path, data: Path, store: Path, fatal: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(model), str(data), str(store), str(fatal)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def undisturbed(llama, data, tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """Bytes of an undisturbed run, and how many writes it took."""
    store = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    done = run_child(llama, data["retain"], store, -1)
    assert done.returncode == 0, done.stderr
    return tree_bytes(store), int(done.stdout)


@pytest.mark.parametrize("share", [0.0, 0.04, 0.2, 0.45, 0.6, 0.7, 0.8, 0.9, 0.97])
def test_kill_and_resume_gives_the_same_bytes(share, undisturbed, llama, data, tmp_path):
    whole, writes = undisturbed
    store = tmp_path / "s.zarr"
    killed = run_child(llama, data["retain"], store, int(share * writes))
    assert killed.returncode == -signal.SIGKILL
    prepared = prepare(str(llama), read_examples(str(data["retain"])), part_size=4, threads=1)
    collect(prepared, str(store))
    assert tree_bytes(store) == whole


def test_repeated_kills_at_random_times(undisturbed, llama, data, tmp_path):
    """The real command, killed from outside again and again."""
    store = tmp_path / "s.zarr"
    command = [sys.executable, "-m", "kvwstream", "collect", str(llama), str(data["retain"])]
    command += [str(store), "--part-size", "4", "--threads", "1"]
    for delay in (2.6, 3.0, 3.4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert tree_bytes(store) == undisturbed[0]


def test_only_parts_without_a_seal_are_done(llama, data, tmp_path, undisturbed):
    store = tmp_path / "s.zarr"
    prepared = prepare(str(llama), read_examples(str(data["retain"])), part_size=4, threads=1)
    collect(prepared, str(store))
    seal = store / "parts" / "000001" / "zarr.json"
    seal.unlink()
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    collect(prepared, str(store))
    touched = {p for p in before if p.stat().st_mtime_ns != before[p]} | {seal}
    assert all("000001" in p.parts for p in touched)
    assert tree_bytes(store) == undisturbed[0]


def test_a_different_plan_is_refused_with_a_line_per_difference(artefacts: Artefacts, data):
    before = tree_bytes(artefacts.retain)
    examples = read_examples(str(data["retain"]))
    other = prepare(
        str(artefacts.model), examples, part_size=4, seed=1, moments=("abs", "square"), threads=1
    )
    with pytest.raises(PlanMismatchError) as caught:
        collect(other, artefacts.retain)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "arrangement_digest",
        "seed",
        "part_size",
        "moments",
    ]
    assert "part_size: 3 there, 4 here" in lines[2]
    assert tree_bytes(artefacts.retain) == before


def test_a_folder_with_other_files_is_refused(llama, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    prepared = prepare(str(llama), read_examples(str(data["forget"])))
    with pytest.raises(StorageError, match="holds other files; choose another place"):
        collect(prepared, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_sealed_part_is_never_written_again(artefacts: Artefacts):
    """Two workers on one part: whoever is second changes nothing."""
    store = CollectStore.open(Location(artefacts.forget))
    before = tree_bytes(artefacts.forget)
    store.write_part(store.read_part(0), {"device": "another"})
    assert tree_bytes(artefacts.forget) == before


def test_a_worker_that_is_late_does_not_touch_a_sealed_part(artefacts: Artefacts, monkeypatch):
    """Not even if it dies in the middle of writing."""
    store = CollectStore.open(Location(artefacts.forget))
    part = store.read_part(0)
    before = tree_bytes(artefacts.forget)

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("a sealed part is written")

    monkeypatch.setattr("kvwstream.stores.sealed_part.write_array", fails)
    store.write_part(part, {"device": "another"})
    assert tree_bytes(artefacts.forget) == before


@pytest.mark.parametrize("name", ["sites", "examples", "sites/width", "parts/zarr.json"])
def test_lost_tables_are_written_again(name, llama, data, tmp_path, undisturbed):
    store = tmp_path / "s.zarr"
    prepared = prepare(str(llama), read_examples(str(data["retain"])), part_size=4, threads=1)
    collect(prepared, str(store))
    lost = store / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    collect(prepared, str(store))
    assert tree_bytes(store) == undisturbed[0]


def test_two_collections_of_one_store_at_once_are_harmless(llama, data, tmp_path, undisturbed):
    """Started in the same moment: both end well, and the bytes are those of one."""
    store = tmp_path / "s.zarr"
    command = [sys.executable, "-m", "kvwstream", "collect", str(llama), str(data["retain"])]
    command += [str(store), "--part-size", "4", "--threads", "1"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, told = process.communicate()
        assert process.returncode == 0, told
    assert tree_bytes(store) == undisturbed[0]
