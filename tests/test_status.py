"""`kvwstream status`: what it says of a store at work, of a dead worker, of a complete store."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from kvwstream.pipelines import status as module
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.status import status
from kvwstream.readers import read_examples
from tests.conftest import Artefacts, tree_bytes
from tests.test_cli import run
from tests.test_stop import slow_words, started, wait_for_seals  # noqa: F401


def test_a_worker_at_work_and_then_killed(slow_words, tmp_path, capsys, monkeypatch):  # noqa: F811
    store = tmp_path / "s.zarr"
    with started(*slow_words, str(store), "--part-size", "4") as process:
        wait_for_seals(store, process, 2)
        seen = status(str(store))
        process.kill()
    assert 2 <= len(seen.sealed) < 100
    assert len(seen.running) <= 1, "it may be between two parts"
    assert len(seen.sealed) + len(seen.running) + seen.missing == seen.plan.num_parts == 500
    assert seen.sealed_records == 4 * len(seen.sealed)
    (worker,) = seen.workers
    assert worker.note.worker.endswith(f"-{process.pid}")
    assert 0 <= worker.age < 30
    assert not worker.is_silent
    assert seen.records_per_second > 0
    assert seen.seconds_left == pytest.approx(2000 / seen.records_per_second, rel=0.2)

    before = tree_bytes(store)
    monkeypatch.setattr(module, "SECONDS_UNTIL_SILENT", 0.0)
    end = time.monotonic() + 30
    while not status(str(store)).workers[0].is_silent:
        assert time.monotonic() < end
        time.sleep(0.1)
    seen = status(str(store))
    assert (seen.running, seen.records_per_second, seen.seconds_left) == (set(), 0, None)
    run("status", store, capsys=None)
    out = capsys.readouterr().out
    assert "0 running" in out
    assert "nobody is at work, run the same `kvwstream collect`" in out
    assert out.splitlines()[-1].endswith("silent")
    assert tree_bytes(store) == before, "it writes nothing"


def test_a_complete_store(artefacts: Artefacts, capsys):
    before = tree_bytes(artefacts.retain)
    for options in ((), ("--watch",)):
        out = run("status", artefacts.retain, *options, capsys=capsys)
        assert "4 of 4 parts sealed, 0 running, 0 missing" in " ".join(out.split())
        assert "11 of 11 records sealed" in out
        assert "nobody" not in out
    assert tree_bytes(artefacts.retain) == before


def test_watch_ends_when_the_store_is_complete(artefacts: Artefacts, data, tmp_path, monkeypatch):
    monkeypatch.setattr("kvwstream.commands.status.SECONDS_BETWEEN_LOOKS", 0.05)
    store = tmp_path / "s.zarr"
    shutil.copytree(artefacts.retain, store)
    (store / "parts/000002/zarr.json").unlink()
    prepared = prepare(
        str(artefacts.model), read_examples(str(data["retain"])), part_size=3, threads=1
    )
    later = threading.Timer(1.0, collect, (prepared, str(store)))
    later.start()
    run("status", store, "--watch")
    later.join()
    assert tree_bytes(store) == tree_bytes(artefacts.retain)


def test_no_store_is_one_line(tmp_path, capsys):
    run("status", tmp_path / "absent.zarr", expect=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvwstream: {tmp_path / 'absent.zarr'}: ")
