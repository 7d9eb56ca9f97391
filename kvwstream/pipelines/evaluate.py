"""Questions to a model, greedy answers, and how many are right; one JSON line per example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from kvwstream.accessor import vector_gates
from kvwstream.answers import AnswerEncoder
from kvwstream.checkpoint import Checkpoint
from kvwstream.errors import OptionError, StorageError
from kvwstream.examples import Example
from kvwstream.gates import gated
from kvwstream.generation import generate_answers
from kvwstream.metrics import chooses, clean, contains, rouge_l
from kvwstream.models import LoadedModel, load_model
from kvwstream.pipelines.recipe import Recipe, check_base, collected_arithmetic
from kvwstream.progress import Progress, Silent
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength


@dataclass(frozen=True)
class Judgement:
    """One example's response and its scores."""

    id: str
    question: str
    answer: str
    response: str
    correct: bool
    """Some keyword (default: the whole answer) is contained in the response."""
    rouge_l: float
    rouge_l_recall: float


@dataclass(frozen=True)
class Evaluation:
    """Judgements in the order of the data, and their means."""

    judgements: list[Judgement]

    @property
    def accuracy(self) -> float:
        """Share of correct responses."""
        return fmean(judgement.correct for judgement in self.judgements)

    @property
    def rouge_l(self) -> float:
        """Mean ROUGE-L F-measure."""
        return fmean(judgement.rouge_l for judgement in self.judgements)

    @property
    def rouge_l_recall(self) -> float:
        """Mean ROUGE-L recall."""
        return fmean(judgement.rouge_l_recall for judgement in self.judgements)

    def write(self, path: Path) -> None:
        """One JSON object per example."""
        lines = (json.dumps(asdict(j), ensure_ascii=False) + "\n" for j in self.judgements)
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
    batch_size: int = 16,
    max_new_tokens: int = 50,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Load the model, answer every example greedily, judge.

    With `statistics` and a `strength`, as if the model were weakened: through gates.
    """
    if (statistics is None) != (strength is None):
        raise OptionError("statistics and a strength belong together: give both or none")
    gate: AbstractContextManager[None] = nullcontext()
    loaded = load_model(model, dtype, device)
    if statistics is not None and strength is not None:
        gate = open_gates(loaded, statistics, strength)
    with gate:
        return judge(
            loaded,
            examples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )


def open_gates(
    loaded: LoadedModel, statistics: str, strength: Strength
) -> AbstractContextManager[None]:
    """Gates for the loaded base model; `PlanMismatchError` if it is another than was measured.

    `OptionError` for a progressive collection at another strength than its own, or in place.
    """
    stored = Statistics.open(Location(statistics))
    if Recipe(stored, strength, collected_arithmetic(stored)).arithmetic != "exact":
        raise OptionError(
            f"{statistics}: in-place arithmetic depends on each weight, so that no gates tell it; "
            "`apply` it and evaluate the checkpoint"
        )
    check_base(stored, Checkpoint.open(loaded.folder).digest, loaded.folder)
    total = strength.exponent(stored)
    values = vector_gates(stored.sites, total, strength.gamma, strength.layers)
    return gated(loaded.model, stored.sites, values)


def judge(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 50,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy answers of a loaded model, at most `max_new_tokens` long, judged one by one."""
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
    return Evaluation(list(map(_judge, examples, responses)))


def _judge(example: Example, response: str) -> Judgement:
    rouge = rouge_l(response, example.answer)
    if len(clean(example.answer)) == 1:  # the letter of an option
        correct = chooses(response, example.answer)
    else:
        correct = contains(response, example.keywords or (example.answer,))
    return Judgement(
        id=example.id,
        question=example.question,
        answer=example.answer,
        response=response.strip(),
        correct=correct,
        rouge_l=rouge.f_measure,
        rouge_l_recall=rouge.recall,
    )
