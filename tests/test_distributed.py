"""Many workers on one store: the bytes of one, whoever joins, fails, dies or comes twice."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from logging import CRITICAL
from pathlib import Path
from typing import Any

import pytest
import torch
from dask.distributed import Client, LocalCluster

from kvwstream.errors import IncompleteError, NumericalError, PartsFailedError, StorageError
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.cluster import Cluster
from kvwstream.pipelines.collect import ALL, Share, collect
from kvwstream.pipelines.prepare import Preparation, default_threads, prepare
from kvwstream.pipelines.task import Report, report_seals, run_part
from kvwstream.pipelines.worker import Job, Receipt
from kvwstream.progress import Silent
from kvwstream.readers import Source
from kvwstream.stores.collected import read_plan
from kvwstream.stores.location import Location
from tests.conftest import COLOURS, THINGS, question, tree_bytes, write_rows
from tests.test_cli import run
from tests.worker_faults import (
    COLLECT_PART,
    ENVIRONMENT_OF,
    LOAD_MODEL,
    SEAL_PART,
    Patch,
    changing,
    failing,
    logging,
    meeting,
    patched,
    sleeping,
)

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
NUM_PARTS = 12
PART_SIZE = 2
LOCAL = {
    "host": HOST,
    "dashboard_address": f"{HOST}:0",
    "worker_dashboard_address": f"{HOST}:0",
    "memory_limit": 0,
    "silence_logs": CRITICAL,
}


class Told(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, text: str, **values: Any) -> None:
        self.lines.append(text)

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


@dataclass(frozen=True)
class Work:
    """What all of these tests collect, and the bytes that one undisturbed process writes."""

    model: Path
    data: Path
    whole: dict[str, bytes] = field(repr=False)

    def prepared(self) -> Preparation:
        examples, _ = Source(str(self.data)).read()
        return prepare(str(self.model), examples, part_size=PART_SIZE, threads=1)

    def job(self, store: Path) -> Job:
        return Job(str(store), str(self.model), Source(str(self.data)))

    def here(self, store: Path, share: Share = ALL) -> None:
        collect(self.prepared(), str(store), share=share)

    def on(self, scheduler: str, store: Path, share: Share = ALL) -> Told:
        told, cluster = Told(), Cluster(scheduler=scheduler)
        how = {"cluster": cluster, "job": self.job(store), "share": share, "progress": told}
        collect(self.prepared(), str(store), **how)
        return told

    def words(self, store: Path, *options: object) -> list[object]:
        """Of the command line."""
        return [
            "collect", self.model, self.data, store, "--part-size", PART_SIZE, *options,
        ]  # fmt: skip


@pytest.fixture(scope="module")
def work(llama, tmp_path_factory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    rows = [question(thing, colour) for thing in THINGS for colour in COLOURS]
    data = write_rows(folder / "data.jsonl", rows[: NUM_PARTS * PART_SIZE])
    Work(llama, data, {}).here(folder / "whole.zarr")
    return Work(llama, data, tree_bytes(folder / "whole.zarr"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of two worker processes with two threads each, as others might start it."""
    with LocalCluster(n_workers=2, threads_per_worker=2, **LOCAL) as local, Client(local) as client:
        yield client


@pytest.fixture(scope="module")
def scheduler(client: Client) -> str:
    return client.scheduler.address


@pytest.fixture(scope="module")
def site() -> Iterator[Client]:
    """A scheduler that waits for workers; tests hire them."""
    with LocalCluster(n_workers=0, **LOCAL) as local, Client(local) as client:
        yield client


@contextmanager
def hired(site: Client, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as a user starts it on another machine, without a nanny that would revive it."""
    command = [sys.executable, "-m", "dask", "worker", site.scheduler.address, "--name", name]
    command += ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", HOST]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:
        try:
            yield process
        finally:
            process.kill()


class Thread(threading.Thread):
    """Runs a function; `join` returns its value or raises its error."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self.function, self.args = function, args
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self.function(*self.args)
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = 120) -> Any:
        super().join(timeout)
        assert not self.is_alive(), f"still running after {timeout} s"
        if self.error:
            raise self.error
        return self.value


def seals(store: Path) -> dict[int, int]:
    """Part -> the time of its seal."""
    return {int(p.parent.name): p.stat().st_mtime_ns for p in store.glob("parts/*/zarr.json")}


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)


def without_seals(store: Path, parts: list[int]) -> None:
    """As if these parts had never been finished; of some not even a file is left."""
    for number in parts:
        part = store / "parts" / f"{number:06}"
        (part / "zarr.json").unlink()
        if number % 2:
            shutil.rmtree(part)


# --- the same bytes


def test_a_cluster_writes_what_one_process_writes_with_one_model_each(
    work, client, scheduler, tmp_path
):
    """Although its workers have two threads, which ask for the model at the same time."""
    log = tmp_path / "loads"
    loading = Patch(LOAD_MODEL, logging(log)), Patch(LOAD_MODEL, sleeping(0.3))
    with patched(client, *loading, Patch(COLLECT_PART, sleeping(0.05))):
        work.on(scheduler, tmp_path / "s.zarr")
    assert tree_bytes(tmp_path / "s.zarr") == work.whole
    loads = Counter(log.read_text().split())
    assert sorted(loads.values()) == [1, 1]


def test_a_scheduler_file_and_the_command_line(work, client, tmp_path, capsys):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": client.scheduler.address}))
    store = tmp_path / "s.zarr"
    out = run(*work.words(store, "--scheduler", file), capsys=capsys)
    assert f"every part sealed ({NUM_PARTS})" in out
    assert tree_bytes(store) == work.whole


def test_three_workers_and_a_resume_with_other_numbers(work, scheduler, tmp_path, capsys):
    """The plan of the store decides the threads, also where one process goes on."""
    store = tmp_path / "s.zarr"
    run(*work.words(store, "--workers", 3))
    assert tree_bytes(store) == work.whole
    without_seals(store, [1, 4, 5, 11])
    told = work.on(scheduler, store)
    assert f"{NUM_PARTS - 4} parts are sealed, going on" in told
    assert tree_bytes(store) == work.whole
    without_seals(store, [0, 7])
    kept = seals(store)
    run(*work.words(store))
    assert kept.items() <= seals(store).items()
    assert tree_bytes(store) == work.whole


def test_shares_in_any_order(work, tmp_path):
    shares = [Share(number, 5) for number in range(1, 6)]
    random.Random(7).shuffle(shares)
    for share in shares:
        work.here(tmp_path / "s.zarr", share)
    assert tree_bytes(tmp_path / "s.zarr") == work.whole


def test_shares_before_beside_and_after_a_cluster(work, client, scheduler, tmp_path, capsys):
    store = tmp_path / "s.zarr"
    run(*work.words(store, "--parts", "1/4", "--threads", 1))
    assert set(seals(store)) == {0, 4, 8}
    with patched(client, Patch(COLLECT_PART, sleeping(0.1))):
        cluster = Thread(work.on, scheduler, store)
        work.here(store, Share(2, 4))
        cluster.join()
    out = run(*work.words(store, "--parts", "3/4"), capsys=capsys)
    assert f"every part sealed ({NUM_PARTS})" in out
    assert tree_bytes(store) == work.whole


def test_two_workers_on_one_part_at_the_same_time(work, client, tmp_path):
    """Both measure it before either seals it: identical bytes, and the first seal stays."""
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    work.here(store, Share(1, NUM_PARTS))
    job, addresses = work.job(store), list(client.scheduler_info()["workers"])
    calls = Patch(COLLECT_PART, meeting(log, 2)), Patch(COLLECT_PART, logging(log))
    with patched(client, *calls):
        both = [client.submit(run_part, job, 1, "r", workers=[to], pure=False) for to in addresses]
        wait_for(lambda: 1 in seals(store))
        first = seals(store)
        assert client.gather(both) == [Report(address, []) for address in addresses]
        told = [client.submit(report_seals, "r", workers=[to], pure=False) for to in addresses]
        reports = client.gather(told)
    assert [report.settled for report in reports] == 2 * [[Receipt(1, PART_SIZE, 54)]]
    ran = [line.split() for line in log.read_text().splitlines()]
    assert len({process for process, _ in ran}) == 2
    assert [part for _, part in ran] == ["1", "1"]
    assert seals(store) == first
    work.here(store)
    assert tree_bytes(store) == work.whole


def test_two_runs_at_once_on_one_cluster(work, client, scheduler, tmp_path):
    """What one has sealed the other does not measure again."""
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    calls = Patch(COLLECT_PART, logging(log)), Patch(COLLECT_PART, sleeping(0.1))
    with patched(client, *calls):
        both = [Thread(work.on, scheduler, store, share) for share in (ALL, Share(1, 2))]
        for thread in both:
            thread.join()
    assert NUM_PARTS <= len(log.read_text().splitlines()) < 1.5 * NUM_PARTS
    assert tree_bytes(store) == work.whole


def test_nothing_large_passes_through_the_scheduler(work, tmp_path):
    """A task and its receipt are as small for any model."""
    job = work.job(tmp_path / "s.zarr")
    assert len(pickle.dumps((run_part, job, NUM_PARTS, "0" * 32))) < 1000
    report = Report("tcp://host.example:12345", [Receipt(NUM_PARTS, PART_SIZE, 10**9)])
    assert len(pickle.dumps(report)) < 250


# --- workers come and go


def test_workers_join_later_and_die_and_only_the_part_at_hand_is_run_again(work, site, tmp_path):
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    both = Patch(COLLECT_PART, meeting(log, 2))  # however slowly one of them starts
    calls = both, Patch(COLLECT_PART, logging(log)), Patch(COLLECT_PART, sleeping(0.3))
    with patched(site, *calls):
        cluster = Thread(work.on, site.scheduler.address, store)
        with hired(site, "first") as first, hired(site, "second") as second:
            wait_for(lambda: len(seals(store)) >= 3)
            os.kill(first.pid, signal.SIGKILL)
            told = cluster.join()
    assert "waiting for a worker" in told
    ran = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert {process for process, _ in ran} == {first.pid, second.pid}
    again = [part for part, times in Counter(part for _, part in ran).items() if times > 1]
    assert len(again) <= 2, "only what the dead worker measured and sealed"
    assert tree_bytes(store) == work.whole


def test_a_part_is_sealed_while_the_next_is_measured(work, site, tmp_path):
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    log.touch()
    calls = Patch(COLLECT_PART, logging(log)), Patch(SEAL_PART, meeting(log, 2))
    with patched(site, *calls), hired(site, "only"):
        Thread(work.on, site.scheduler.address, store).join()
    assert tree_bytes(store) == work.whole


def test_a_worker_that_dies_while_it_seals_leaves_the_part_to_another(work, site, tmp_path):
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    log.touch()
    never = Patch(SEAL_PART, meeting(log, 10**9), only="first")
    with patched(site, never, Patch(COLLECT_PART, logging(log))), hired(site, "first") as first:
        cluster = Thread(work.on, site.scheduler.address, store)
        wait_for(lambda: len(log.read_text().splitlines()) == 2)
        assert not seals(store)
        with hired(site, "second"):
            wait_for(lambda: len(seals(store)) > NUM_PARTS // 2)
            os.kill(first.pid, signal.SIGKILL)
            cluster.join()
    assert tree_bytes(store) == work.whole


def test_a_worker_that_dies_as_the_last_to_seal_is_not_waited_for(work, site, tmp_path):
    """Nothing is left to measure when its part is missed."""
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    log.touch()
    work.here(store)
    without_seals(store, [1])
    never = Patch(SEAL_PART, meeting(log, 10**9), only="first")
    with patched(site, never, Patch(COLLECT_PART, logging(log))), hired(site, "first") as first:
        cluster = Thread(work.on, site.scheduler.address, store, ALL)
        wait_for(lambda: log.read_text())
        time.sleep(0.5)  # until it was asked for its seal
        with hired(site, "second"):
            os.kill(first.pid, signal.SIGKILL)
            cluster.join()
    assert tree_bytes(store) == work.whole


def test_a_worker_that_cannot_begin_is_sent_away_and_the_others_finish(work, site, tmp_path):
    store = tmp_path / "s.zarr"
    work.here(store, Share(1, NUM_PARTS))  # the store's environment is that of this process
    other = Patch(ENVIRONMENT_OF, changing(torch="0.1"), only="other")
    with (
        patched(site, other, Patch(COLLECT_PART, sleeping(0.2))),
        hired(site, "other") as sent_away,
        hired(site, "same"),
    ):
        site.wait_for_workers(2, timeout=90)
        told = work.on(site.scheduler.address, store)
        assert sent_away.wait(10) is not None
    dismissals = [line for line in told.lines if "cannot begin and is closed" in line]
    assert len(dismissals) == 1
    assert "torch: 2." in dismissals[0]
    assert "there, 0.1 here" in dismissals[0]
    assert tree_bytes(store) == work.whole


def test_when_no_worker_can_begin_the_command_ends_with_the_reason(work, site, tmp_path):
    away = replace(work.job(tmp_path / "s.zarr"), source=Source(str(tmp_path / "absent.jsonl")))
    cluster = Cluster(scheduler=site.scheduler.address)
    with hired(site, "poor"):
        site.wait_for_workers(1, timeout=90)
        with pytest.raises(IncompleteError, match=r"no worker is left.*absent\.jsonl"):
            collect(work.prepared(), away.store, cluster=cluster, job=away)


# --- parts that fail


def test_an_unexpected_error_is_tried_three_times_and_told(
    work, client, scheduler, tmp_path, capsys
):
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    words = work.words(store, "--scheduler", scheduler)
    fault = Patch(COLLECT_PART, failing(RuntimeError("a device-side assert"), part=3))
    with patched(client, fault, Patch(COLLECT_PART, logging(log))):
        run(*words, expect=1)
    told = capsys.readouterr().err
    assert "part 3 failed, try 2 of 3: RuntimeError: a device-side assert" in told
    assert "Traceback (most recent call last)" in told
    assert "in replacement" in told
    assert f"1 of {NUM_PARTS} parts failed" in told
    assert told.splitlines()[-1].endswith("part 3: RuntimeError: a device-side assert")
    tries = [line.split()[0] for line in log.read_text().splitlines() if line.endswith(" 3")]
    assert len(set(tries)) == len(tries) == 3, "each in a process that no error has broken"
    assert set(seals(store)) == set(range(NUM_PARTS)) - {3}
    run(*words)
    assert tree_bytes(store) == work.whole


@pytest.mark.parametrize(
    ("step", "error", "tries"),
    [
        (COLLECT_PART, StorageError("no room"), 3),
        (SEAL_PART, StorageError("no room"), 3),
        (COLLECT_PART, NumericalError("site 1: not finite"), 1),
    ],
)
def test_known_errors_need_no_new_process(step, error, tries, work, client, scheduler, tmp_path):
    log, store = tmp_path / "log", tmp_path / "s.zarr"
    workers = set(client.scheduler_info()["workers"])
    fault = Patch(step, failing(error, part=5))
    with (
        patched(client, fault, Patch(step, logging(log))),
        pytest.raises(PartsFailedError, match=f"part 5: {error}"),
    ):
        work.on(scheduler, store)
    assert len([line for line in log.read_text().splitlines() if line.endswith(" 5")]) == tries
    assert set(client.scheduler_info()["workers"]) == workers
    work.on(scheduler, store)
    assert tree_bytes(store) == work.whole


# --- what must not be mixed


def test_another_environment_is_refused_unless_it_is_allowed_and_audited(
    work, tmp_path, monkeypatch, capsys
):
    store = tmp_path / "s.zarr"
    work.here(store, Share(1, 2))
    before = tree_bytes(store)
    other = changing(torch="0.1", device="cpu of tomorrow")
    target = "kvwstream.pipelines.worker.environment_of"
    from kvwstream.models import environment_of

    monkeypatch.setattr(target, other(environment_of))
    run(*work.words(store), expect=1)
    lines = capsys.readouterr().err.splitlines()
    assert any("its parts are made in another environment" in line for line in lines)
    assert [line.split(":")[0].strip() for line in lines[-2:]] == ["device", "torch"]
    assert tree_bytes(store) == before
    run(*work.words(store, "--allow-mixed"))
    noted = str(audit([str(store)]))
    assert "0.1" in noted


def test_threads_by_default(work, tmp_path):
    """All of the machine for one process, one each for several, the store's if it exists."""
    store, before = tmp_path / "s.zarr", torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert default_threads(str(store), alone=True) == 3
        assert default_threads(str(store), alone=False) == 1
        run(*work.words(store, "--parts", "1/12"))
        assert read_plan(Location(str(store))).threads == 1
        assert default_threads(str(store), alone=True) == 1
        run(*work.words(store))
    finally:
        torch.set_num_threads(before)
    assert tree_bytes(store) == work.whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--workers 2 --scheduler tcp://127.0.0.1:8786",
            "--workers starts a cluster here",
        ),
        ("--workers 2 --parts 1/2", "--parts is for runs without a scheduler"),
        ("--scheduler tcp://127.0.0.1:8786 --parts 1/2", "--parts is for runs without a scheduler"),
        ("--parts 0/3", "parts 0/3: shares are numbered from 1 to 3"),
        ("--parts 4/3", "parts 4/3: shares are numbered from 1 to 3"),
        ("--parts 2", "parts must be like 2/8 (share/of), got '2'"),
        ("--gpus-per-worker 2", "--gpus-per-worker groups the GPUs of --workers; give it, too"),
        ("--scheduler tcp://127.0.0.1:9", "scheduler tcp://127.0.0.1:9: "),
        ("--scheduler absent.json", "scheduler absent.json: [Errno 2] No such file"),
        ("--scheduler broken.json", "scheduler broken.json: "),
        ("--scheduler empty.json", "scheduler empty.json: holds no address"),
        ("--scheduler http://127.0.0.1:9", "scheduler http://127.0.0.1:9: "),
    ],
)
def test_options_that_make_no_sense(options, message, work, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kvwstream.pipelines.cluster.CONNECT_SECONDS", 1)
    Path("broken.json").write_text("{")
    Path("empty.json").write_text("{}")
    start = time.monotonic()
    run(*work.words(tmp_path / "s.zarr", *options.split()), expect=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"kvwstream: {message}")
    assert time.monotonic() - start < 20
