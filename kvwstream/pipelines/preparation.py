"""Everything known before the first forward pass: the plan and what it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from kvwstream.answers import AnswerEncoder, Span
from kvwstream.batches import Batch
from kvwstream.examples import Example
from kvwstream.plan import CollectPlan, Part, Site
from kvwstream.stores.tables import ExampleTable


class Pass(NamedTuple):
    """A forward pass: consecutive records of a part, and the prefixes that they share."""

    records: range
    examples: range
    groups: list[int]
    """(example,) examples of one group have the same prefix."""
    prefix: int
    """Its length in tokens; 0 without."""


@dataclass(frozen=True)
class Preparation:
    """The plan and its examples, model folder, sites and device."""

    plan: CollectPlan
    folder: Path
    sites: list[Site]
    examples: Sequence[Example]
    """In plan order."""
    table: ExampleTable
    """What the store says of them."""
    encoder: AnswerEncoder
    device: torch.device
    why_not_shared: str | None = None
    """Why this model's prefixes cannot be shared."""

    def span(self, index: int) -> Span:
        """Where the answer of an example lies; image tokens are not told apart."""
        return Span(int(self.table.num_prompt_tokens[index]), int(self.table.num_tokens[index]))

    @property
    def spans(self) -> list[Span]:
        """`span` of all, in plan order."""
        return [self.span(index) for index in range(self.plan.num_examples)]

    def passes(self, part: Part) -> Iterator[Pass]:
        """The passes of a part, in order."""
        plan, table = self.plan, self.table

        def number(record: int) -> int:
            examples = plan.examples_of(record)
            return int(table.forward[examples.start]) + plan.num_examples * plan.epoch_of(record)

        for _, run in groupby(range(part.start, part.stop), key=number):
            records = list(run)
            first, last = plan.examples_of(records[0]), plan.examples_of(records[-1])
            yield Pass(
                range(records[0], records[-1] + 1),
                range(first.start, last.stop),
                table.group[first.start : last.stop].tolist(),
                int(table.prefix[first.start]),
            )

    def batch(self, run: Pass) -> Batch:
        """The model's input in a pass."""
        return self._batch(run.examples, run.prefix, run.groups)

    def record_batch(self, record: int) -> Batch:
        """A record alone, whole."""
        return self._batch(self.plan.examples_of(record))

    def _batch(self, places: Sequence[int], prefix: int = 0, groups: Sequence[int] = ()) -> Batch:
        spans = [self.span(place) for place in places]
        chosen = [self.examples[place] for place in places]
        return self.encoder.batch(chosen, spans, self.plan.tokens, prefix, groups)

    def shows_images(self, run: Pass) -> bool:
        """Whether examples of a pass have images."""
        return any(self.examples[place].images for place in run.examples)

    def segments(self, run: Pass) -> list[int]:
        """Positions that count, for each record of a pass."""
        positions = self.table.num_positions
        return [int(positions[list(self.plan.examples_of(r))].sum()) for r in run.records]

    def names(self, record: int) -> list[str]:
        """Ids of the examples of a record."""
        return [self.table.ids[index] for index in self.plan.examples_of(record)]

    def num_run(self, run: Pass) -> int:
        """Tokens of the examples of a pass."""
        return int(self.table.num_tokens[run.examples.start : run.examples.stop].sum())
