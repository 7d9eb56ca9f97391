"""Worker processes of our own on this machine, each with its own GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from dask.distributed import Nanny, Scheduler, SpecCluster

from kvwstream.errors import IncompleteError, OptionError, first_line
from kvwstream.models import resolve_device

HOST = "127.0.0.1"
WORKER = {
    "nthreads": 1,
    "memory_limit": 0,
    "host": HOST,
    "dashboard": False,
    "silence_logs": logging.CRITICAL,
    # Ctrl-C reaches every process of a terminal; the command ends its workers itself.
    "preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
}
CLOSE_SECONDS = 5


@contextmanager
def local_cluster(workers: int, environments: Sequence[dict[str, str]]) -> Iterator[SpecCluster]:
    """A scheduler here and one process per worker; nothing listens beyond this machine."""
    specification = {
        number: {"cls": Nanny, "options": {**WORKER, "env": environments[number]}}
        for number in range(workers)
    }
    options = {"host": HOST, "port": 0, "dashboard": False, "dashboard_address": f"{HOST}:0"}
    scheduler = {"cls": Scheduler, "options": options}
    try:
        local = SpecCluster(
            workers=specification, scheduler=scheduler, silence_logs=logging.CRITICAL
        )
    except RuntimeError as error:
        raise IncompleteError(f"the workers could not be started: {first_line(error)}") from error
    try:
        yield local
    finally:
        local.close(timeout=CLOSE_SECONDS)


def gpu_groups(workers: int, size: int, device: str) -> list[dict[str, str]]:
    """What each worker's process sees: the first worker the first `size` GPUs, and so on.

    The order is that of `CUDA_VISIBLE_DEVICES` where that is set. `OptionError` if there are too
    few GPUs.
    """
    if device not in ("auto", "cuda") or resolve_device(device).type != "cuda":
        return [{}] * workers
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if workers * size > len(gpus):
        raise OptionError(
            f"{workers} workers with {size} GPUs each need {workers * size}, "
            f"{len(gpus)} are visible; use fewer --workers or --gpus-per-worker"
        )
    groups = (gpus[number * size : (number + 1) * size] for number in range(workers))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


async def revive(local: SpecCluster, suspects: set[str]) -> set[str]:
    """Start workers of ours anew that are still dead: one that dies as it starts stays so.

    Returns the names of the dead ones; their nannies may be about to start them.
    """
    dead = {name for name, nanny in local.workers.items() if not nanny.is_alive()}
    for name in dead & suspects:
        await local.workers.pop(name).close(timeout=CLOSE_SECONDS)
    local.scale(len(local.worker_spec))
    return dead - suspects
