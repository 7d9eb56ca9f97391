"""Parts on the workers of a Dask cluster, one of our own on this machine or any that exists.

Through the scheduler go a job (plain values) and part numbers, and back come receipts; what is
measured goes from the workers to the store. A part that was lost with its worker, or that failed
for a reason that may pass, is tried again, up to `ATTEMPTS` times. A receipt comes with a later
task than its part's: workers seal a part while they measure the next.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import dask
from dask.distributed import Client, Future, KilledWorker

from kvwstream.errors import IncompleteError, OptionError, StorageError, first_line
from kvwstream.pipelines.local_cluster import gpu_groups, local_cluster, revive
from kvwstream.pipelines.task import Report, leave, report_seals, run_part
from kvwstream.pipelines.worker import Failure, FailureKind, Job, Receipt
from kvwstream.plan import Part
from kvwstream.progress import Progress

ATTEMPTS = 3
ENDED = ("finished", "error", "cancelled", "lost")
SECONDS_BETWEEN_LOOKS = 0.02
CONNECT_SECONDS = 10
SETTINGS = {
    # A task is a long run of C code: it must not be taken for a dead worker, nor moved to one
    # that would have to load the model first, nor killed because weights fill the memory.
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": None,
    # A part whose worker dies is an attempt of ours, not one of several within.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "60s",
    # `revive` sees which of our workers are dead; one that starts slowly is not.
    "distributed.deploy.lost-worker-timeout": "1h",
}


@dataclass(frozen=True)
class Cluster:
    """Where parts run: `workers` processes here, or the cluster of a scheduler."""

    workers: int = 1
    scheduler: str | None = None
    """Address (`tcp://...`) or path of a scheduler file."""
    gpus_per_worker: int = 1

    @classmethod
    def chosen(
        cls, workers: int | None, scheduler: str | None, gpus_per_worker: int, share: str | None
    ) -> Cluster | None:
        """What the options say; None for no cluster. `OptionError` if they contradict."""
        if scheduler and workers:
            raise OptionError("--workers starts a cluster here, --scheduler uses another: give one")
        if share and (scheduler or workers):
            raise OptionError("--parts is for runs without a scheduler: leave the other option out")
        if gpus_per_worker > 1 and not workers:
            raise OptionError("--gpus-per-worker groups the GPUs of --workers; give it, too")
        if not scheduler and not workers:
            return None
        return cls(workers or 1, scheduler, gpus_per_worker)


def run_on_cluster(
    cluster: Cluster, job: Job, waves: Iterable[Sequence[Part]], progress: Progress
) -> Generator[Receipt | Failure]:
    """Run parts; yields a receipt for each that is sealed and a failure for each given up.

    A wave is asked for when all parts of the one before are through.

    Raises the error of the last worker that cannot even begin, and `StorageError` if the scheduler
    is gone.
    """
    with _client(cluster, job) as client:
        run = _Run(client, job, progress)
        for wave in waves:
            yield from run.results(wave)


class _Run:
    """The parts that wait and those that are on the cluster, a few per worker at a time."""

    def __init__(self, client: Client, job: Job, progress: Progress) -> None:
        self.client, self.job, self.progress = client, job, progress
        self.name = uuid4().hex
        self.unsettled: set[int] = set()
        """Parts of which no receipt and no last failure has come."""
        self.waiting: deque[int] = deque()
        self.tries: Counter[int] = Counter()
        self.futures: dict[Future, int] = {}
        self.sealing: dict[int, str] = {}
        """Measured parts, with the address of the worker that seals them."""
        self.asked: dict[Future, str] = {}
        """Tasks that report seals, with the address."""
        self.addresses: set[str] = set()
        self.dead: set[str] = set()
        self.dismissed: set[str] = set()
        self.looked = -math.inf

    def results(self, parts: Iterable[Part]) -> Generator[Receipt | Failure]:
        self.waiting.extend(part.number for part in parts)
        self.unsettled.update(self.waiting)
        try:
            while self.unsettled:
                self._look()
                self._submit()
                ready = [one for one in (*self.futures, *self.asked) if one.status in ENDED]
                for future in ready:
                    yield from self._outcomes(future)
                if not ready:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            self.client.cancel([*self.futures, *self.asked])

    def _look(self) -> None:
        """Once a second: is the scheduler there, which workers are?"""
        if time.monotonic() - self.looked < 1:
            return
        if self.client.status not in ("running", "connecting"):
            raise StorageError(
                f"the scheduler is gone ({self.client.status}); run the same command again when it "
                "is back, sealed parts stay"
            )
        before, self.addresses = self.addresses, set(self._workers())
        if not self.addresses and (before or self.looked < 0):
            self.progress.tell("waiting for a worker of the cluster")
        if self.client.cluster:
            self.dead = self.client.sync(revive, self.client.cluster, self.dead)
        for address in {*self.sealing.values(), *self.asked.values()} - self.addresses:
            self._forget_seals(address)
        self.looked = time.monotonic()

    def _workers(self) -> Iterable[str]:
        try:
            workers: dict[str, object] = self.client.scheduler_info(n_workers=-1)["workers"]
            return workers
        except (OSError, TimeoutError):  # it is away for a moment, or for good: see status
            return self.addresses

    def _submit(self) -> None:
        """Keep two parts per worker on the cluster: few enough to lose, enough to stay busy."""
        while self.waiting and len(self.futures) < 2 * max(len(self.addresses), 1):
            number = self.waiting.popleft()
            self.tries[number] += 1
            future = self.client.submit(run_part, self.job, number, self.name, pure=False)
            self.futures[future] = number
        if not self.waiting and not self.futures:
            for address in set(self.sealing.values()) - set(self.asked.values()):
                future = self.client.submit(report_seals, self.name, workers=[address], pure=False)
                self.asked[future] = address

    def _outcomes(self, future: Future) -> Iterator[Receipt | Failure]:
        """What is settled with a task; parts that are to be tried again wait."""
        number, address = self.futures.pop(future, None), self.asked.pop(future, "")
        if future.status == "finished":
            report: Report = future.result()
            if number is not None:
                self.sealing[number] = report.worker
        elif number is None:
            report = Report(address, [])
        else:  # its worker died, or cannot import kvwstream
            told = _reason(future)
            report = Report(address, [Failure(number, FailureKind.storage, told, told)])
        for result in report.settled:
            self.sealing.pop(result.part, None)
            if result.part in self.unsettled and self._is_last(future, result):
                self.unsettled.remove(result.part)
                yield result
        if address:
            self._forget_seals(address)

    def _forget_seals(self, address: str) -> None:
        """What a worker was to seal and cannot tell of: it is gone, or another process by now."""
        for number in [number for number, where in self.sealing.items() if where == address]:
            del self.sealing[number]
            self.tries[number] -= 1
            self.waiting.append(number)
        gone = [future for future, where in self.asked.items() if where == address]
        self.client.cancel(gone)
        for future in gone:
            del self.asked[future]

    def _is_last(self, future: Future, result: Receipt | Failure) -> bool:
        """Whether there will not be another try of the part."""
        number = result.part
        if isinstance(result, Receipt):
            return True
        if result.kind == FailureKind.opening:
            self._dismiss(result)
            self.tries[number] -= 1
        elif result.kind == FailureKind.certain or self.tries[number] >= ATTEMPTS:
            return True
        else:
            self.progress.tell(
                f"part {number} failed, try {self.tries[number]} of {ATTEMPTS}: {result.reason}"
            )
            if result.kind == FailureKind.unexpected:
                # Else its task would be run again elsewhere, as the worker holds the result. The
                # two requests go different ways, so the first one must have arrived.
                self.client.cancel([future])
                while any(self.client.who_has([future.key]).values()):
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                self._restart(result.worker)
        self.waiting.append(number)
        return False

    def _dismiss(self, failure: Failure) -> None:
        """Send a worker away that cannot begin, before it takes every part and fails."""
        if failure.worker in self.dismissed:  # it had begun another part, too
            return
        self.dismissed.add(failure.worker)
        self.progress.tell(f"worker {failure.worker} cannot begin and is closed: {failure.reason}")
        if self.client.cluster:  # else it would be revived
            for name, nanny in self.client.cluster.workers.items():
                if nanny.worker_address == failure.worker:
                    self.client.cluster.worker_spec.pop(name, None)
        self.client.retire_workers([failure.worker], close_workers=True)
        self.addresses = set(self._workers()) - {failure.worker}
        if not self.addresses:
            raise IncompleteError(f"no worker is left that can begin: {failure.reason}")

    def _restart(self, address: str) -> None:
        """A new process in the place of one that an error may have broken."""
        try:
            self.client.restart_workers([address], raise_for_error=False)
        except ValueError:  # gone already, or without a nanny that would start it again
            self.client.retire_workers([address], close_workers=True)


def _reason(future: Future) -> str:
    """Why a task of a cluster has no result."""
    if future.status != "error":
        return str(future.status)
    error = future.exception()
    if isinstance(error, KilledWorker):
        return f"its worker died ({error.last_worker.address}): killed, or out of memory"
    return f"{type(error).__name__}: {error}"


@contextmanager
def _client(cluster: Cluster, job: Job) -> Iterator[Client]:
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with dask.config.set(SETTINGS):
        if cluster.scheduler is None:
            gpus = gpu_groups(cluster.workers, cluster.gpus_per_worker, job.device)
            with (
                local_cluster(cluster.workers, gpus) as local,
                Client(local, set_as_default=False) as client,
            ):
                yield client
            return
        try:
            address = _address(cluster.scheduler)
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise OptionError(f"scheduler {cluster.scheduler}: {first_line(error)}") from error
        with client:
            yield client
            client.run(leave, job, on_error="ignore")


def _address(scheduler: str) -> str:
    """The address itself, or the one that a scheduler file holds."""
    if "://" in scheduler:
        return scheduler
    content = json.loads(Path(scheduler).read_text())
    if not isinstance(content, dict) or not isinstance(content.get("address"), str):
        raise ValueError("holds no address; it is not what a Dask scheduler writes")
    return str(content["address"])
