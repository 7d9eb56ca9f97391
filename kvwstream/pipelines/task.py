"""The tasks of a cluster: a process measures one part at a time and seals the last one meanwhile.

A task does not wait for the seal of its own part. The next task of the same run on this process
reports it, or `report_seals` at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from dask.distributed import get_worker
from transformers.utils.logging import disable_progress_bar

from kvwstream.pipelines.worker import (
    Failure,
    FailureKind,
    Job,
    Measured,
    Receipt,
    Worker,
    failure,
)


class Report(NamedTuple):
    """What a process knows of parts of a run that it has not told before."""

    worker: str
    """Address of the cluster's worker."""
    settled: Sequence[Receipt | Failure]


_opened: tuple[Job, Worker] | None = None
_one_at_a_time = threading.Lock()
_writer = ThreadPoolExecutor(1, "seal")
_seals: dict[str, Future[Receipt | Failure]] = {}
"""By run, the part that was measured last."""


def run_part(job: Job, number: int, run: str) -> Report:
    """Measure a part on this process's worker, made at its first part, and begin to seal it.

    One part at a time, and one model in memory, however many threads or jobs the process has. At
    most two parts are in memory, one that is measured and one that is sealed.
    """
    with _one_at_a_time:
        worker = _open(job, number)
        if isinstance(worker, Failure):
            return _report([worker])
        outcome = worker.try_measure(worker.prepared.plan.part(number))
        wait(_seals.values())
        settled = _settled(run)
        if isinstance(outcome, Measured):
            _seals[run] = _writer.submit(worker.try_seal, outcome)
        else:
            settled.append(outcome)
        return _report(settled)


def report_seals(run: str) -> Report:
    """What came of the part of a run that was measured last, once it is sealed."""
    with _one_at_a_time:
        return _report(_settled(run))


def leave(job: Job) -> None:
    """Let the process's worker go, with its model; what was measured is sealed first."""
    global _opened
    with _one_at_a_time:
        wait(_seals.values())
        if _opened and _opened[0] == job:
            _opened[1].notebook.close()
            _opened = None


def _open(job: Job, number: int) -> Worker | Failure:
    global _opened
    disable_progress_bar()
    if _opened is None or _opened[0] != job:
        if _opened:
            _opened[1].notebook.close()
        _opened = None
        try:
            _opened = job, Worker.open(job)
        except Exception as error:
            return failure(number, error, FailureKind.opening)
    return _opened[1]


def _settled(run: str) -> list[Receipt | Failure]:
    seal = _seals.pop(run, None)
    return [seal.result()] if seal else []


def _report(settled: Sequence[Receipt | Failure]) -> Report:
    address = get_worker().address
    told = [one._replace(worker=address) if isinstance(one, Failure) else one for one in settled]
    return Report(address, told)
