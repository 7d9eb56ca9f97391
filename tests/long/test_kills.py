"""SIGKILL at random moments, of workers and of the command: the bytes of the undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kvwstream.errors import IncompleteError
from kvwstream.pipelines.cluster import Cluster
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.worker import Job
from kvwstream.readers import Source, read_examples
from tests.conftest import (
    COLOURS,
    THINGS,
    llama_config,
    question,
    save_model,
    tree_bytes,
    write_rows,
)
from tests.test_stop import (
    STOPS,
    check_stopped,
    family,
    slow_words,  # noqa: F401
    started,
    wait_for_seals,
)

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
NUM_PARTS = 75
KILLS = 50
COORDINATOR_KILLS = 5
MEAN_SECONDS = 1.5
"""Between two kills: about as long as a worker needs to begin, so some die as they begin."""
SECONDS_TO_VANISH = 15
LIMIT = 420


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> tuple[list[str], dict[str, bytes]]:
    """The words of a command that takes a while, and the bytes that it must write."""
    folder = tmp_path_factory.mktemp("kills")
    config = llama_config(layers=4, hidden_size=256, intermediate_size=1024)
    model = save_model(folder / "model", config)
    rows = [question(f"{t} {n}", c) for n in range(6) for t in THINGS for c in COLOURS]
    data = write_rows(folder / "data.jsonl", rows)
    prepared = prepare(str(model), read_examples(str(data)), part_size=8, threads=1)
    collect(prepared, str(folder / "whole.zarr"))
    return ["collect", str(model), str(data)], tree_bytes(folder / "whole.zarr")


@contextmanager
def running(words: list[str], store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command with two workers; what it tells goes to a file beside the store."""
    command = [sys.executable, "-m", "kvwstream", *words, str(store), "--part-size", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with store.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--workers", "2"], env=environment, stderr=log, stdout=log
        )
        try:
            yield process
        finally:
            members = [*family(process.pid), process]
            for member in members:
                member.kill()
            process.wait()


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that run parts, not those that `multiprocessing` keeps beside them."""
    found = []
    for process in family(pid):
        try:
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def sealed(store: Path) -> int:
    return len(list(store.glob("parts/*/zarr.json")))


def finish(words: list[str], store: Path) -> None:
    """The same command until it is through; a part may have been given up."""
    for _ in range(3):
        with running(words, store) as process:
            if process.wait(LIMIT) == 0:
                return
    raise AssertionError(store.with_suffix(".log").read_text())


def test_workers_killed_at_fifty_moments(work, tmp_path):
    """Where the store is complete before the last kill, its youngest parts are lost again."""
    words, whole = work
    store, chance, kills = tmp_path / "s.zarr", random.Random(4), 0
    start = time.monotonic()
    while kills < KILLS:
        with running(words, store) as process:
            while process.poll() is None and kills < KILLS:
                time.sleep(chance.expovariate(1 / MEAN_SECONDS))
                victims = workers_of(process.pid)
                if victims:
                    victim = chance.choice(victims)
                    try:
                        victim.kill()
                    except psutil.NoSuchProcess:
                        continue
                    kills += 1
            assert time.monotonic() - start < LIMIT, f"{kills} kills, {sealed(store)} seals"
            print(f"{time.monotonic() - start:.0f} s: {kills} kills, {sealed(store)} seals")
            if process.poll() is None:
                process.wait(LIMIT)
        if sealed(store) == NUM_PARTS and kills < KILLS:
            for seal in chance.sample(sorted(store.glob("parts/*/zarr.json")), 40):
                seal.unlink()
    finish(words, store)
    assert tree_bytes(store) == whole


def test_the_command_killed_at_five_moments(work, tmp_path):
    """Its workers notice, and end within seconds."""
    words, whole = work
    store, chance = tmp_path / "s.zarr", random.Random(5)
    for _ in range(COORDINATOR_KILLS):
        with running(words, store) as process:
            time.sleep(chance.uniform(2, 8))
            orphans = family(process.pid)
            process.kill()
            process.wait()
            _, alive = psutil.wait_procs(orphans, timeout=SECONDS_TO_VANISH)
            assert not alive
    finish(words, store)
    assert tree_bytes(store) == whole


def test_a_part_that_always_kills_its_worker_is_given_up(work, tmp_path, monkeypatch):
    """After three workers; all other parts are sealed."""
    words, whole = work
    store, log = tmp_path / "s.zarr", tmp_path / "deaths"
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("DEATHS", str(log))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    command = [sys.executable, "-m", "kvwstream", *words, str(store), "--part-size", "8"]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"1 of {NUM_PARTS} parts failed" in done.stderr
    assert "part 7: its worker died" in done.stderr.partition(f"1 of {NUM_PARTS} parts failed")[2]
    assert len(log.read_text().split()) == 3
    assert sealed(store) == NUM_PARTS - 1
    monkeypatch.delenv("DEATHS")
    finish(words, store)
    assert tree_bytes(store) == whole


def test_workers_of_ours_that_cannot_begin_are_not_revived(work, tmp_path):
    words, _ = work
    prepared = prepare(words[1], read_examples(words[2]), part_size=8, threads=1)
    absent = Source(str(tmp_path / "absent.jsonl"))
    job = Job(str(tmp_path / "s.zarr"), words[1], absent)
    with pytest.raises(IncompleteError, match=r"no worker is left.*absent\.jsonl"):
        collect(prepared, job.store, cluster=Cluster(workers=2), job=job)


DEADLY = """
import os, sys
if "DEATHS" in os.environ:
    from importlib.abc import MetaPathFinder

    class AfterImport(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "kvwstream.pipelines.measure":
                return None
            sys.meta_path.remove(self)
            import importlib.util
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                measure = module.Measurer.part

                def measure_or_die(self, part, *rest):
                    if part.number == 7:
                        with open(os.environ["DEATHS"], "a") as log:
                            log.write(f"{os.getpid()}\\n")
                        os._exit(9)
                    return measure(self, part, *rest)

                module.Measurer.part = measure_or_die

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, AfterImport())
"""


@pytest.mark.parametrize("number", STOPS[2:], ids=lambda number: number.name)
def test_signals_of_batch_systems_end_a_command_with_workers(number, slow_words, tmp_path):  # noqa: F811
    store = tmp_path / "s.zarr"
    with started(*slow_words, str(store), "--part-size", "4", "--workers", "2") as process:
        wait_for_seals(store, process)
        workers = family(process.pid)
        stop = time.monotonic()
        process.send_signal(number)
        check_stopped(process, store, stop)
        _, alive = psutil.wait_procs(workers, timeout=2)
        assert not alive


@pytest.mark.parametrize("delay", [0.5, 2.0, 4.0, 6.0])
def test_a_signal_while_the_command_begins(delay, slow_words, tmp_path):  # noqa: F811
    """Whenever it comes: exit code 1, one line, nobody left."""
    store = tmp_path / "s.zarr"
    with started(*slow_words, str(store), "--part-size", "4", "--workers", "2") as process:
        time.sleep(delay)
        workers = family(process.pid)
        stop = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        assert time.monotonic() - stop < 10, told
        assert process.returncode in (1, -signal.SIGTERM), told  # before main() set its handlers
        assert "Traceback" not in told, told
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive
