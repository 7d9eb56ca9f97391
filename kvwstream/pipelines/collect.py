"""Forward passes over a data set -> a store of coefficient sums, part by sealed part."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from kvwstream.checkpoint import Checkpoint
from kvwstream.errors import InterruptError, OptionError, PartsFailedError, Stop
from kvwstream.examples import BadRow
from kvwstream.models import load_model
from kvwstream.pipelines.cluster import ATTEMPTS, Cluster, run_on_cluster
from kvwstream.pipelines.preparation import Preparation
from kvwstream.pipelines.progressive import SAFETENSORS, Beginning, run_progressive
from kvwstream.pipelines.sources import check_measured_alike, check_unseen
from kvwstream.pipelines.stability import check_until_stable, waves
from kvwstream.pipelines.worker import Failure, FailureKind, Job, Measured, Receipt, Worker
from kvwstream.plan import Part
from kvwstream.progress import Advance, Progress, Silent
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location

Outcomes = Generator[Receipt | Failure]
Tried = TypeVar("Tried", bound=Measured | Receipt | Failure)
GIVE_UP = 3
"""Parts that fail one after the other before the rest is not tried."""


@dataclass(frozen=True)
class Share:
    """Share `number` (from 1) of `count`: every `count`-th part, for array jobs."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """`"2/8"`: the second of eight; `OptionError` for anything else."""
        first, _, last = text.partition("/")
        try:
            share = cls(int(first), int(last))
        except ValueError:
            raise OptionError(f"parts must be like 2/8 (share/of), got {text!r}") from None
        if not 1 <= share.number <= share.count:
            raise OptionError(f"parts {text}: shares are numbered from 1 to {share.count}")
        return share

    def __contains__(self, part: object) -> bool:
        return isinstance(part, Part) and part.number % self.count == self.number - 1


ALL = Share(1, 1)


def collect(
    prepared: Preparation,
    store: str,
    *,
    skipped: Sequence[BadRow] = (),
    cluster: Cluster | None = None,
    job: Job | None = None,
    share: Share = ALL,
    beginning: Beginning | None = None,
    device_map: str | None = None,
    allow_mixed: bool = False,
    progress: Progress | None = None,
) -> CollectStore:
    """Run the parts of `share` that have no seal yet and return the store (Algorithm 1, lines 3-9
    and 13-14).

    In this process, or with `cluster` on its workers, which do the `job`. A store with another
    plan, or with parts made in another environment unless `allow_mixed`, raises
    `PlanMismatchError`; parts that could not be sealed raise `PartsFailedError` when all others
    are. Killed at any moment, the same call goes on and ends with the bytes of an undisturbed run.
    `skipped` rows are recorded in the store.
    """
    progress = progress or Silent()
    plan = prepared.plan
    check_beginning(prepared, beginning, one_by_one=cluster is None and share == ALL)
    check_until_stable(plan, whole=share == ALL)
    written = CollectStore.create(Location(store), plan, prepared.sites, prepared.table, skipped)
    missing = _missing(written, share, progress)
    if not missing:
        written.tidy()
        return written
    todo = [missing] if plan.until_stable is None else waves(written, missing, progress)
    try:
        with progress.task("collect", sum(p.num_records for p in missing), "records") as advance:
            if cluster:
                assert job, "a cluster needs a job"
                outcomes = _counted(run_on_cluster(cluster, job, todo, progress), advance)
            else:
                loaded = load_model(prepared.folder, plan.dtype, str(prepared.device), device_map)
                worker = Worker(prepared, written, loaded, allow_mixed=allow_mixed)
                outcomes = (
                    run_progressive(worker, beginning, advance)
                    if beginning
                    else run_here(worker, todo, advance, progress)
                )
            failures = _failures(outcomes, progress)
    except (KeyboardInterrupt, Stop):
        raise InterruptError(
            f"{store}: stopped; {len(written.sealed())} of {plan.num_parts} parts are sealed and "
            "stay, run the same command again to go on"
        ) from None
    if failures:
        lines = [f"part {failure.part}: {failure.reason}" for failure in failures]
        raise PartsFailedError(
            f"{store}: {len(failures)} of {len(missing)} parts failed; when that is mended, run "
            "the same command again: " + ("\n  " if len(lines) > 1 else "").join(["", *lines])
        )
    written = replace(written)  # and look whether it ended early
    written.tidy()
    return written


def check_beginning(
    prepared: Preparation, beginning: Beginning | None, *, one_by_one: bool
) -> None:
    """`OptionError`, `PlanMismatchError` or `DataError` unless a progressive plan can be run."""
    plan, how = prepared.plan, prepared.plan.progressive
    if how is None:
        return
    assert beginning, "a progressive plan needs its beginning"
    if not one_by_one:
        raise OptionError(
            "a progressive collection goes record by record: leave --workers, --scheduler and "
            "--parts out"
        )
    check_measured_alike(beginning.stored, plan)
    check_unseen(
        beginning.stored, plan, ("retain", "forget") if beginning.is_after else ("retain",)
    )
    tensors = Checkpoint.open(prepared.folder).tensors
    unlike = {tensors[s.tensor].dtype for s in prepared.sites} - {SAFETENSORS[plan.dtype]}
    if how.arithmetic == "in-place" and unlike:
        raise OptionError(
            f"in-place arithmetic multiplies the checkpoint's own weights ({', '.join(unlike)}), "
            f"which are not {plan.dtype}: leave --dtype out"
        )


def _missing(written: CollectStore, share: Share, progress: Progress) -> list[Part]:
    """The parts of the share that have no seal."""
    url, sealed = written.location.url, written.sealed()
    wanted = [part for part in written.parts if part in share]
    missing = [part for part in wanted if part.number not in sealed]
    whose = "" if share == ALL else f" of share {share.number}/{share.count}"
    if not missing:
        progress.tell(f"{url}: all {len(wanted)} parts{whose} are sealed, nothing to do")
    elif len(missing) < len(wanted):
        progress.tell(f"{url}: {len(wanted) - len(missing)} parts{whose} are sealed, going on")
    return missing


def run_here(
    worker: Worker, waves: Iterable[Sequence[Part]], advance: Advance, progress: Progress
) -> Outcomes:
    """Parts one after the other in this process, sealed by a thread while the next is measured.

    A failure that may pass is tried again. What comes of the parts comes in their order.
    """
    sealing: Future[Receipt | Failure] | None = None
    try:
        with ThreadPoolExecutor(1, "seal") as writer:
            for wave in waves:
                for part in wave:
                    measured = _tried(partial(worker.try_measure, part, advance), progress)
                    if sealing:
                        yield sealing.result()
                    sealing = None
                    if isinstance(measured, Measured):
                        seal = partial(_tried, partial(worker.try_seal, measured), progress)
                        sealing = writer.submit(seal)
                    else:
                        yield measured
                if sealing:
                    yield sealing.result()
                sealing = None
    finally:
        worker.notebook.close()


def _tried(attempt: Callable[[], Tried], progress: Progress) -> Tried:
    for number in range(1, ATTEMPTS + 1):
        outcome = attempt()
        if not isinstance(outcome, Failure) or outcome.kind == FailureKind.certain:
            break
        progress.tell(f"part {outcome.part} failed, try {number} of {ATTEMPTS}: {outcome.reason}")
    return outcome


def _counted(outcomes: Outcomes, advance: Advance) -> Outcomes:
    for outcome in outcomes:
        if isinstance(outcome, Receipt):
            advance(outcome.records, outcome.tokens)
        yield outcome


def _failures(outcomes: Outcomes, progress: Progress) -> list[Failure]:
    """Take every outcome and keep the failures; give up when nothing else comes."""
    failures: list[Failure] = []
    in_a_row = 0
    for outcome in outcomes:
        in_a_row = 0 if isinstance(outcome, Receipt) else in_a_row + 1
        if isinstance(outcome, Failure):
            failures.append(outcome)
            if outcome.kind != FailureKind.certain:  # else its one line says it all
                progress.tell(f"part {outcome.part}: {outcome.traceback}")
        if in_a_row == GIVE_UP:
            progress.tell(f"{GIVE_UP} parts failed in a row, the others are not tried")
            break
    outcomes.close()  # now, not when it is collected
    return failures
