"""One unlearning task: a model, what it forgets and retains, and what it is asked afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from kvwstream.answers import AnswerEncoder
from kvwstream.canonical import digest_of
from kvwstream.checkpoint import Checkpoint
from kvwstream.examples import Example
from kvwstream.generation import generate_answers
from kvwstream.models import LoadedModel, load_model
from kvwstream.pipelines.evaluate import CORRECT, judged
from kvwstream.pipelines.views import data_digest
from kvwstream.sites import find_sites

FOLDS = (1, 2)


@dataclass(frozen=True)
class Answered:
    """The responses to one set of questions."""

    responses: list[str]
    scores: list[float]

    @property
    def score(self) -> float:
        """Mean over the responses."""
        return fmean(self.scores)


@dataclass(frozen=True)
class Case:
    """`questions` hold forget_1, forget_2, retain_1, retain_2 and more."""

    name: str
    title: str
    folder: Path
    """The vanilla model."""
    oracle: Path | None
    forget: Sequence[Example]
    retain: Sequence[Example]
    questions: dict[str, Sequence[Example]]
    extras: dict[str, str]
    """Columns beside forget and retain: set of questions -> head of the column."""
    max_new_tokens: int
    judged_by: str = CORRECT
    """`correct`, or a score of the response's text."""

    @property
    def digest(self) -> str:
        """Of the model, of what it forgets and retains, and of what it is asked."""
        sets = (self.forget, self.retain, *self.questions.values())
        return digest_of([Checkpoint.open(self.folder).digest, *map(data_digest, sets)])

    @cached_property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return 1 + max(site.layer for site in find_sites(self.loaded.model))

    @cached_property
    def loaded(self) -> LoadedModel:
        """The vanilla model, once per process."""
        return load(self.folder)

    @cached_property
    def encoder(self) -> AnswerEncoder:
        """What renders and tokenises for it."""
        return AnswerEncoder(self.loaded.processor, self.loaded.model.config)

    def ask(self, loaded: LoadedModel | None = None) -> dict[str, Answered]:
        """Every question to the model as it is now, in batches across the sets."""
        asked = [example for examples in self.questions.values() for example in examples]
        responses = iter(
            generate_answers(
                loaded or self.loaded,
                self.encoder,
                asked,
                batch_size=32,
                max_new_tokens=self.max_new_tokens,
            )
        )
        answered = {}
        for name, examples in self.questions.items():
            given = [next(responses) for _ in examples]
            scores = [each.score(self.judged_by) for each in map(judged, examples, given)]
            answered[name] = Answered(given, scores)
        return answered

    def shortened(self, count: int) -> Case:
        """The same with `count` examples of each kind, to see that everything runs."""
        return replace(
            self,
            oracle=None,
            forget=self.forget[:count],
            retain=self.retain[: 2 * count],
            questions={name: examples[:count] for name, examples in self.questions.items()},
            max_new_tokens=4,
        )


def load(folder: Path) -> LoadedModel:
    """A model in bfloat16; on a CPU with the attention that is faster for short rows."""
    loaded = load_model(folder, dtype="bfloat16")
    if loaded.device.type == "cpu":
        loaded.model.set_attn_implementation("eager")
    return loaded


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at even distances."""
    step = len(examples) / count
    return [examples[int(number * step)] for number in range(count)]
