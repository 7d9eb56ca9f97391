"""The forward passes of a part, one after the other, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from kvwstream.batches import Batch, Prefix
from kvwstream.coefficients import Float32, Int64
from kvwstream.collector import Fetched, first_culprit, not_finite, record_sums, run_prefix
from kvwstream.errors import ModelError
from kvwstream.models import LoadedModel
from kvwstream.pipelines.preparation import Pass, Preparation
from kvwstream.plan import Part
from kvwstream.prefix_cache import PrefixCache
from kvwstream.progress import Advance
from kvwstream.stores.sealed_part import PartData

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far sums behind a shared prefix may be from those without, relative to the largest. What a
model gets wrong is far beyond; other kernels for other shapes stay far below."""


class Weakening(Protocol):
    """The model as weakened by the records so far, in a progressive collection."""

    weakened: Any
    """Its `change` takes a site's coefficients once they are measured."""

    @property
    def digest(self) -> str:
        """Of S so far."""
        ...

    def add(self, sums: Float32, counts: Int64) -> None:
        """Weaken by one more record."""


class _Launched(NamedTuple):
    """A pass whose sums are on their way."""

    run: Pass
    batch: Batch
    sums: Fetched


class Measurer:
    """A loaded model that measures parts; keeps the last prefixes' keys and values."""

    def __init__(self, loaded: LoadedModel, prepared: Preparation) -> None:
        self.loaded, self.prepared = loaded, prepared
        self._last: tuple[set[int], PrefixCache] | None = None
        self._believed: set[tuple[bool, bool]] = set()
        """Kinds of passes whose prefixes were seen to change nothing: one group or several, with
        images or without."""

    def part(
        self, part: Part, advance: Advance | None = None, replay: Weakening | None = None
    ) -> PartData:
        """Measure the records of a part; touches no storage.

        While the device is at a pass, the next one's input is made and the last one's sums are
        fetched. Raises `NumericalError` naming record, example and site, `ModelError` if a shared
        prefix changes the numbers.
        """
        plan = self.prepared.plan
        sums = {
            moment: np.empty((part.num_records, plan.num_vectors), np.float32)
            for moment in plan.moments
        }
        counts = np.empty((part.num_records, plan.num_sites), np.int64)

        def finish(launched: _Launched) -> None:
            run = launched.run
            rows = slice(run.records.start - part.start, run.records.stop - part.start)
            values = launched.sums.numpy()
            if not np.isfinite(values).all():
                raise self._culprit(launched, values, replay)
            for moment, value in zip(plan.moments, values, strict=True):
                sums[moment][rows] = value
            counts[rows] = np.array(self.prepared.segments(run))[:, None]
            if run.prefix:
                self._believe(run, values)
            if advance:
                advance(len(run.records), self.prepared.num_run(run))

        pending: _Launched | None = None
        for run in self.prepared.passes(part):
            try:
                launched = self._launch(run, replay)
            except Exception:
                if pending:  # if that went wrong, too, it was first
                    finish(pending)
                raise
            if pending:
                finish(pending)
            pending = launched
            if replay:  # the next pass needs what this one measured
                finish(launched)
                pending = None
                for row in range(run.records.start - part.start, run.records.stop - part.start):
                    replay.add(sums["abs"][row], counts[row])
        if pending:
            finish(pending)
        return PartData(part, sums, counts)

    def _launch(self, run: Pass, replay: Weakening | None) -> _Launched:
        batch = self.prepared.batch(run).to(self.loaded.device)
        sums = self._sums(run, batch, self.prepared.segments(run), replay)
        return _Launched(run, batch, Fetched(sums))

    def _sums(
        self, run: Pass, batch: Batch, segments: Sequence[int], replay: Weakening | None
    ) -> Tensor:
        return record_sums(
            self.loaded.model,
            self.prepared.sites,
            batch,
            self.prepared.plan.moments,
            segments,
            cache=self._behind(set(run.groups), batch.prefix) if batch.prefix else None,
            change=replay.weakened.change if replay else None,
        )

    def _behind(self, groups: set[int], prefix: Prefix) -> PrefixCache:
        """Keys and values of prefixes, still there if the last pass was of their group, too."""
        if self._last is None or self._last[0] != groups:
            self._last = None  # frees its memory before the next takes some
            moved = prefix.to(self.loaded.device)
            self._last = groups, run_prefix(self.loaded.model, self.prepared.sites, moved)
        return self._last[1]

    def _believe(self, run: Pass, values: Float32) -> None:
        """Check the first pass of each kind."""
        kind = len(set(run.groups)) > 1, self.prepared.shows_images(run)
        if kind not in self._believed:
            self._compare(run, values)
            self._believed.add(kind)

    def _compare(self, run: Pass, values: Float32) -> None:
        """Measure the last record of a pass alone: does the model mean the same by a prefix?

        With several prefixes it is behind the last one, so that a wrong one would be seen.
        """
        record, plan = run.records[-1], self.prepared.plan
        batch = self.prepared.record_batch(record).to(self.loaded.device)
        alone = record_sums(self.loaded.model, self.prepared.sites, batch, plan.moments)
        expected = alone[:, 0].cpu().numpy()
        off = float(np.abs(values[:, -1] - expected).max() / np.abs(expected).max())
        if not off <= TOLERANCE[plan.dtype]:
            raise ModelError(
                f"example {self.prepared.names(record)[0]!r}: behind a shared prefix its sums are "
                f"off by {off:.1g} of the largest, expected at most {TOLERANCE[plan.dtype]:g}; "
                "prefixes of this model cannot be shared, collect with --no-sharing"
            )

    def _culprit(self, launched: _Launched, values: Float32, replay: Weakening | None) -> Exception:
        """Find the site and the example to blame, by a second pass with sums per example."""
        run, batch, prepared = launched.run, launched.batch, self.prepared
        sums = self._sums(run, batch, batch.counts, replay)
        found = first_culprit(sums.cpu().numpy(), prepared.sites)
        if found:
            example = run.examples[found[0]]
            record = run.records[found[0] // prepared.plan.batch_size]
            return not_finite(record, [prepared.table.ids[example]], found[1])
        # Every example's sum is finite, a record's overflows.
        found = first_culprit(values, prepared.sites)
        assert found
        record = run.records[found[0]]
        return not_finite(record, prepared.names(record), f"{found[1]} (their sum overflows)")
