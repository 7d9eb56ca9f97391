"""How far a store is: what is sealed, what runs where, how long it will take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from kvwstream.plan import CollectPlan
from kvwstream.stores.collected import read_plan, sealed_among
from kvwstream.stores.ending import Ending, last_part, read_ending
from kvwstream.stores.location import Location
from kvwstream.stores.running import Note, is_note, read_note

SECONDS_UNTIL_SILENT = 120.0
"""After which a worker that wrote nothing is taken for dead, unless its records take longer."""


@dataclass(frozen=True)
class Seen:
    """A worker's note, and how long ago it was written by the storage's clock."""

    note: Note
    age: float
    is_sealed: bool
    """Whether its part has been sealed since."""

    @property
    def is_silent(self) -> bool:
        """Whether it is more likely dead than busy."""
        per_record = self.note.seconds / self.note.total_records if self.note.total_records else 0
        return self.age > max(SECONDS_UNTIL_SILENT, 3 * per_record)


@dataclass(frozen=True)
class Status:
    """A store at one moment."""

    plan: CollectPlan
    ending: Ending | None
    sealed: set[int]
    workers: list[Seen]

    @property
    def num_parts(self) -> int:
        """Parts that make the store whole, as far as that is known."""
        return last_part(self.plan, self.ending).number + 1

    @property
    def num_records(self) -> int:
        """Records in them."""
        return last_part(self.plan, self.ending).stop

    @property
    def running(self) -> set[int]:
        """Parts that a living worker is at."""
        living = {w.note.part for w in self.workers if not w.is_silent and not w.is_sealed}
        return living - self.sealed

    @property
    def missing(self) -> int:
        """Parts that are neither sealed nor running."""
        return self.num_parts - len(self.sealed) - len(self.running)

    @property
    def sealed_records(self) -> int:
        """Records in sealed parts."""
        return sum(self.plan.part(number).num_records for number in self.sealed)

    @property
    def records_per_second(self) -> float:
        """Of all living workers together."""
        return sum(w.note.records_per_second for w in self.workers if not w.is_silent)

    @property
    def seconds_left(self) -> float | None:
        """Until every part is sealed, at this rate; None if nobody is at work."""
        if len(self.sealed) == self.num_parts:
            return 0.0
        measured = sum(w.note.records for w in self.workers if w.note.part in self.running)
        rate = self.records_per_second
        left = self.num_records - self.sealed_records - measured
        return max(left, 0) / rate if rate else None


def status(url: str) -> Status:
    """Look at the store at `url`: one listing and a read per worker; writes nothing."""
    store = Location(url)
    plan = read_plan(store)
    names = store.listing()
    sealed = {number for number in sealed_among(names) if number < plan.num_parts}
    now, workers = datetime.now(UTC), []
    for name in sorted(filter(is_note, names)):
        note = read_note(store, name)
        if note:
            age = (now - names[name]["last_modified"]).total_seconds()
            workers.append(Seen(note, max(age, 0.0), note.part in sealed))
    return Status(plan, read_ending(store, plan), sealed, workers)
