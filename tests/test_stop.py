"""Ctrl-C and the signals of batch systems end `collect` within seconds, and nothing stays behind.

Those that `collect` must survive, at any moment, are in `tests/long/test_kills.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import COLOURS, THINGS, llama_config, question, save_model, write_rows

ROOT = Path(__file__).parent.parent
SECONDS_TO_END = 10
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(scope="module")
def slow_words(tmp_path_factory) -> list[str]:
    """Of a collection that takes minutes: a larger model, long parts."""
    folder = tmp_path_factory.mktemp("slow")
    config = llama_config(layers=8, hidden_size=512, intermediate_size=4096)
    model = save_model(folder / "model", config)
    rows = [question(f"{thing} {n}", c) for n in range(20) for thing in THINGS for c in COLOURS]
    data = write_rows(folder / "data.jsonl", rows)
    return ["collect", str(model), str(data)]


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The real command, in a process group of its own as a shell starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvwstream", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for member in [*family(process.pid), process]:
            member.kill()
        process.communicate()


def family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for_seals(store: Path, process: subprocess.Popen[str], number: int = 1) -> None:
    end = time.monotonic() + 90
    while len(list(store.glob("parts/*/zarr.json"))) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def check_stopped(process: subprocess.Popen[str], store: Path, stop: float) -> None:
    """Ended in time with the message, and without a process left over."""
    _, told = process.communicate(timeout=60)
    took = time.monotonic() - stop
    assert process.returncode == 1, told
    assert took < SECONDS_TO_END, told
    last = told.splitlines()[-1]
    sealed = len(list(store.glob("parts/*/zarr.json")))
    assert last.startswith(
        f"kvwstream: {store}: stopped; {sealed} of 500 parts are sealed and stay"
    )
    assert last.endswith("run the same command again to go on")
    assert "Traceback" not in told, told


def test_one_process_gives_up_its_part(slow_words, tmp_path):
    """Each of the signals, all at once to save time."""
    with ExitStack() as stack:
        stores = {number: tmp_path / f"{number.name}.zarr" for number in STOPS}
        running = {
            number: stack.enter_context(started(*slow_words, str(store), "--part-size", "4"))
            for number, store in stores.items()
        }
        for number, store in stores.items():
            wait_for_seals(store, running[number])
        for number, process in running.items():
            stop = time.monotonic()
            process.send_signal(number)
            check_stopped(process, stores[number], stop)
            assert not list(stores[number].glob(".running/*.json"))


@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_workers_end_with_the_command(to_all, slow_words, tmp_path):
    """A terminal sends SIGINT to every process of the group, also to the workers."""
    store = tmp_path / "s.zarr"
    with started(*slow_words, str(store), "--part-size", "4", "--workers", "2") as process:
        wait_for_seals(store, process, 3)
        workers = family(process.pid)
        assert len(workers) >= 2
        stop = time.monotonic()
        if to_all:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        check_stopped(process, store, stop)
        _, alive = psutil.wait_procs(workers, timeout=2)
        assert not alive
