"""When is C_r known? How far log C_r can still move, and where a collection may end.

At fixed checkpoints, in part order, the standard error of log C_r is taken between clusters, which
are a random sample of the data: records of one cluster are no independent witnesses. What is left
to measure is finite, so the error shrinks to nothing at the last record. Only sums, products,
quotients and square roots enter, so every machine decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from kvwstream.coefficients import CoefficientSums, Float64, per_vector
from kvwstream.errors import OptionError
from kvwstream.plan import CollectPlan, Part
from kvwstream.progress import Progress
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.ending import Ending, write_ending
from kvwstream.stores.sealed_part import PartData

ERRORS = 2
"""Standard errors that the bound allows for: about 95 % of a normal distribution."""
SHARE = 0.99
"""Of the vectors, for which the bound must hold."""
FEWEST = 16
"""Clusters, before a standard error is believed."""
GROWTH = 1.25
"""From one checkpoint to the next."""


def checkpoints(num_parts: int) -> Iterator[int]:
    """Numbers of parts after which it is decided, all smaller than `num_parts`."""
    parts = 1
    while parts < num_parts:
        yield parts
        parts = max(parts + 1, math.ceil(parts * GROWTH))


class Stability:
    """What the first parts of a store say of C_r."""

    def __init__(self, store: CollectStore) -> None:
        self.store, self.num_parts, self.num_records = store, 0, 0
        self.clusters = CoefficientSums.empty(store.widths)

    def add(self, data: PartData) -> None:
        """Take in the next part, records that were withdrawn since included, as it was decided."""
        plan, cluster = self.store.plan, self.store.examples.cluster
        records = range(data.part.start, data.part.stop)
        whose = np.array([cluster[plan.examples_of(record).start] for record in records])
        for number in np.unique(whose):
            members = np.flatnonzero(whose == number)
            sums = data.sums["abs"][members].astype(np.float64)
            self.clusters.add(np.add.reduce(sums), data.counts[members].sum(axis=0))
        self.num_parts += 1
        self.num_records += data.part.num_records

    def movement(self) -> Float64:
        """(vector,) how far log C_r may still move; infinite where nothing is known.

        Two standard errors of log C_r = standard error of C_r / C_r, times the square root of the
        share of records that is not measured yet (finite population).
        """
        movement = np.full(len(self.clusters.total), np.inf)
        if self.clusters.num_records < FEWEST:
            return movement
        mean, error = self.clusters.mean(), self.clusters.standard_error()
        left = 1 - self.num_records / self.store.plan.num_records
        np.divide(error * (ERRORS * math.sqrt(left)), mean, out=movement, where=mean > 0)
        return movement

    def bound(self) -> float:
        """What `SHARE` of the vectors do not exceed, sites without retain tokens apart."""
        covered = per_vector(self.clusters.coverage(), self.store.widths)
        movement = np.sort(self.movement()[covered])
        return float(movement[math.ceil(SHARE * len(movement)) - 1]) if len(movement) else math.inf

    def ending_at(self, checkpoint: int) -> Ending | None:
        """The ending, if it is here, after the first so many parts, which are read as needed."""
        for number in range(self.num_parts, checkpoint):
            self.add(self.store.read_part(number, ["abs"]))
        bound, plan = self.bound(), self.store.plan
        assert plan.until_stable is not None
        if bound > plan.until_stable:
            return None
        return Ending(plan.digest, self.num_parts, self.num_records, bound)


def check_until_stable(plan: CollectPlan, *, whole: bool) -> None:
    """`OptionError` where an early end cannot be decided."""
    if plan.until_stable is None:
        return
    if not whole:
        raise OptionError("--until-stable looks at all parts so far: leave --parts out")
    if "abs" not in plan.moments:
        raise OptionError("--until-stable watches the mean absolute coefficient: store moment abs")


def waves(store: CollectStore, missing: list[Part], progress: Progress) -> Iterator[list[Part]]:
    """The missing parts, wave by wave up to each checkpoint; ends where C_r is known.

    The next wave may be asked for when all parts of the last one are through; it is the last if
    one has no seal. Where it is decided does not depend on who runs the parts.
    """
    plan, seen = store.plan, Stability(store)
    for stop in checkpoints(plan.num_parts):
        wave = [part for part in missing if seen.num_parts <= part.number < stop]
        if wave:
            yield wave
        if wave and not {part.number for part in wave} <= store.sealed():
            return
        ending = seen.ending_at(stop)
        if ending:
            write_ending(store.location, ending)
            progress.tell(
                f"stable after {ending.num_records:,} of {plan.num_records:,} records: 99 % of the "
                f"accessors move by at most {ending.bound:.3g} from here"
            )
            return
    yield [part for part in missing if part.number >= seen.num_parts]


def find_ending(store: CollectStore) -> Ending | None:
    """The ending that a store must have, decided anew from its sealed parts."""
    seen = Stability(store)
    for stop in checkpoints(store.plan.num_parts):
        if stop > store.num_parts:
            return None
        ending = seen.ending_at(stop)
        if ending:
            return ending
    return None
