"""Two hosts with addresses of their own share a store in a bucket; one is cut off in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import pytest

from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.readers import read_examples
from tests import object_storage
from tests.conftest import (
    COLOURS,
    THINGS,
    llama_config,
    question,
    save_model,
    tree_bytes,
    write_rows,
)

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
NUM_PARTS = 60
BRIDGE, HERE = "kvwbridge", "10.77.0.1"
HOSTS = {"kvwhost1": "10.77.0.11", "kvwhost2": "10.77.0.12"}
SCHEDULER = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}
"""How soon a host that says nothing is given up; what users are told to set."""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def network() -> Iterator[None]:
    """A bridge, and two namespaces whose cables lead to it."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    with ExitStack() as stack:
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            stack.callback(ip, "link", "delete", BRIDGE)
            ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            for host, address in HOSTS.items():
                ip("netns", "add", host)
                stack.callback(ip, "netns", "delete", host)
                cable = f"{host}c"
                ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host)
                ip("link", "set", cable, "master", BRIDGE, "up")
                ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", host, "link", "set", "eth0", "up")
                ip("-n", host, "link", "set", "lo", "up")
        except OSError as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        yield


@contextmanager
def process(log: Path, environment: dict[str, str], *words: str) -> Iterator[subprocess.Popen]:
    """It and its children end with the block."""
    with log.open("wb") as file:
        running = subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, 9)
            running.wait()


@contextmanager
def stopped(processes: list[subprocess.Popen]) -> Iterator[None]:
    """They, and their children, stand still within the block."""
    for one in processes:
        os.killpg(one.pid, signal.SIGSTOP)
    yield
    for one in processes:
        os.killpg(one.pid, signal.SIGCONT)


class Store:
    """A store in the bucket, by a client of its own."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.folder = f"{name}/"
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="tester",
            aws_secret_access_key="secret",
        )

    def names(self) -> list[str]:
        """Of every object, relative."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=object_storage.BUCKET, Prefix=self.folder
        )
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key.removeprefix(self.folder) for key in keys]

    def num_seals(self) -> int:
        return sum(name.startswith("parts/0") and name.count("/") == 2 for name in self.names())

    def num_notes(self) -> int:
        """One of each worker that has begun."""
        return sum(name.startswith(".running/") for name in self.names())

    def objects(self) -> dict[str, bytes]:
        """By relative name."""
        bucket = object_storage.BUCKET
        get = self.client.get_object
        return {
            name: get(Bucket=bucket, Key=self.folder + name)["Body"].read() for name in self.names()
        }


def test_one_of_two_hosts_is_cut_off(network, tmp_path, monkeypatch):
    monkeypatch.setattr(object_storage, "HOST", HERE)
    config = llama_config(layers=4, hidden_size=512, intermediate_size=2048)
    model = save_model(tmp_path / "model", config)
    rows = [question(f"{t} {n}", c) for n in range(3) for t in THINGS for c in COLOURS]
    data = write_rows(tmp_path / "data.jsonl", rows[: 4 * NUM_PARTS])
    prepared = prepare(str(model), read_examples(str(data)), part_size=4, threads=1)
    collect(prepared, str(tmp_path / "whole.zarr"))

    dask, file = [sys.executable, "-m", "dask"], tmp_path / "scheduler.json"
    with ExitStack() as stack:
        server = stack.enter_context(object_storage.s3_server())

        def start(name: str, environment: dict[str, str], *words: str) -> subprocess.Popen:
            return stack.enter_context(process(tmp_path / f"{name}.log", environment, *words))

        start(
            "scheduler", SCHEDULER, *dask, "scheduler", "--host", HERE, "--port", "0",
            "--dashboard-address", f"{HERE}:0", "--scheduler-file", str(file),
        )  # fmt: skip
        wait_for(file.exists, 60)
        hosts = [
            start(
                host, server.environment, "ip", "netns", "exec", host, *dask, "worker",
                "--scheduler-file", str(file), "--host", address, "--name", host,
                "--nthreads", "1", "--memory-limit", "0", "--no-dashboard",
            )
            for host, address in HOSTS.items()
        ]  # fmt: skip
        running = start(
            "collect", server.environment, sys.executable, "-m", "kvwstream", "collect", str(model),
            str(data), server.url("two-hosts.zarr"), "--part-size", "4", "--scheduler", str(file),
        )  # fmt: skip
        store = Store(server.endpoint, "two-hosts.zarr")
        wait_for(lambda: store.num_notes() == len(HOSTS) and store.num_seals() >= 4, 120)
        with stopped(hosts):  # however fast they are, the cut finds both at work
            assert store.num_seals() < NUM_PARTS, "the cut must come in the middle"
            ip("link", "set", "kvwhost1c", "down")
        assert running.wait(180) == 0, (tmp_path / "collect.log").read_text()
        assert store.objects() == tree_bytes(tmp_path / "whole.zarr")


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)
