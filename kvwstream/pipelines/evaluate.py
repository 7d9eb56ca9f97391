"""Questions to a model, greedy answers, and how many are right; one JSON line per example."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from kvwstream.aggregates import TruthRatio, normalised_probability
from kvwstream.answers import AnswerEncoder
from kvwstream.errors import StorageError
from kvwstream.examples import Example
from kvwstream.generation import generate_answers
from kvwstream.metrics import chooses, clean, contains, text_scores
from kvwstream.models import LoadedModel, load_model
from kvwstream.pipelines.weakened import choose_weakening, gates_on
from kvwstream.probabilities import answer_scores
from kvwstream.progress import Progress, Silent
from kvwstream.strength import Strength

CORRECT = "correct"


@dataclass(frozen=True)
class Judgement:
    """One example's response and its scores."""

    id: str
    question: str
    answer: str
    response: str
    correct: bool
    """The right option is chosen; without options, some keyword (default: the whole answer) is
    contained in the response."""
    scores: dict[str, float]
    """By the benchmarks' names: of the text, and of the answer's probabilities if asked for."""

    def score(self, name: str) -> float:
        """One of `scores`, or 1 or 0 for `correct`."""
        return int(self.correct) if name == CORRECT else self.scores[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the scores beside the rest."""
        values = {field: value for field, value in vars(self).items() if field != "scores"}
        return {**values, **self.scores}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Judgement:
        """Inverse of `to_dict`."""
        rest = dict(values)
        own = {name: rest.pop(name) for name in ("id", "question", "answer", "response", "correct")}
        return cls(**own, scores=rest)


@dataclass(frozen=True)
class Evaluation:
    """Judgements in the order of the data, and their means."""

    judgements: list[Judgement]

    @property
    def accuracy(self) -> float:
        """Share of correct responses."""
        return fmean(judgement.correct for judgement in self.judgements)

    def values(self, score: str) -> list[float]:
        """One score of every example that has it, in order."""
        return [j.scores[score] for j in self.judgements if score in j.scores]

    def mean(self, score: str) -> float | None:
        """Mean of a score over the examples that have it; None if none has."""
        values = self.values(score)
        return fmean(values) if values else None

    def write(self, path: Path) -> None:
        """One JSON object per example."""
        lines = (json.dumps(j.to_dict(), ensure_ascii=False) + "\n" for j in self.judgements)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error}") from error


def evaluate(
    model: Path,
    examples: Sequence[Example],
    *,
    statistics: str | None = None,
    strength: Strength | None = None,
    gates: Path | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 50,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Load the model, answer every example greedily, judge.

    With `statistics` and a `strength`, or with `gates` (a gates file or an adapter that `apply`
    wrote), as if the model were weakened.
    """
    weakening = choose_weakening(model, statistics, strength, gates)
    loaded = load_model(model, dtype, device)
    with gates_on(loaded.model, weakening):
        return judge(
            loaded,
            examples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )


def judge(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 50,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy answers of a loaded model, at most `max_new_tokens` long, judged by their text."""
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    with (progress or Silent()).task("evaluate", len(examples), "examples") as advance:
        responses = generate_answers(
            loaded,
            encoder,
            examples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            advance=advance,
        )
    return Evaluation(list(map(judged, examples, responses)))


def judged(example: Example, response: str) -> Judgement:
    """One response by its text alone."""
    letter = example.option or (_letter(example.answer) if not example.keywords else "")
    scores = text_scores(response, example.answer)
    if letter:
        correct = chooses(response, letter)
        scores["option_letter"] = float(correct)
    else:
        correct = contains(response, example.keywords or (example.answer,))
    return Judgement(
        id=example.id,
        question=example.question,
        answer=example.answer,
        response=response.strip(),
        correct=correct,
        scores=scores,
    )


def _letter(answer: str) -> str:
    """An answer that is nothing but the letter of an option, as "B" or "b)"; else empty."""
    return clean(answer) if re.fullmatch(r"\W*[A-Za-z]\W*", answer) else ""


def probability_scores(
    loaded: LoadedModel, encoder: AnswerEncoder, examples: Sequence[Example]
) -> list[dict[str, float]]:
    """What the model thinks of each answer of a batch, by name.

    With wrong answers also the truth ratio, against the paraphrased answer where there is one, and
    the probability among the options. Wrong answers run in batches as large as that of examples.
    """
    found = [answer.scores() for answer in answer_scores(loaded, encoder, examples)]
    variants = [
        (number, example.answered(answer))
        for number, example in enumerate(examples)
        if example.perturbed_answers
        for answer in (example.paraphrased_answer or example.answer, *example.perturbed_answers)
    ]
    losses: dict[int, list[float]] = {}
    for start in range(0, len(variants), len(examples)):
        chosen = variants[start : start + len(examples)]
        answers = answer_scores(loaded, encoder, [example for _, example in chosen])
        for (number, _), answer in zip(chosen, answers, strict=True):
            losses.setdefault(number, []).append(answer.loss)
    for number, (right, *wrong) in losses.items():
        scores = found[number]
        ratio = TruthRatio.of(right, wrong)
        scores["truth_ratio"], scores["truth_ratio_geometric"] = ratio
        scores["normalised_probability"] = normalised_probability(scores["loss"], wrong)
    return found
