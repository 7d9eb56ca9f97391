"""Everything that tells forgetting from hiding, of one model: four views beside the forget set.

1. the same facts in other words and asked backwards, 2. neighbours that should stay, 3. general
ability, 4. deployment: all of that once more after quantisation and after a little relearning.
Every example is a line of a journal as soon as its batch is done, so a run can be stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvwstream.answers import AnswerEncoder
from kvwstream.canonical import digest_of
from kvwstream.checkpoint import Checkpoint
from kvwstream.errors import OptionError
from kvwstream.examples import Example
from kvwstream.generation import answer_batch, length_batches
from kvwstream.journal import Journal
from kvwstream.models import (
    LoadedModel,
    environment_of,
    is_multimodal,
    load_config,
    load_model,
    resolve_device,
)
from kvwstream.pipelines.deployment import (
    LEARNING_RATE,
    QUANTISED,
    RELEARNED,
    RELEARNING_EXAMPLES,
    STEPS,
    can_quantise,
    relearn,
    unrelated,
    weakened_folder,
)
from kvwstream.pipelines.evaluate import judged, probability_scores
from kvwstream.pipelines.report import AS_IS, Report
from kvwstream.pipelines.weakened import Weakening, gates_on
from kvwstream.progress import Advance, Progress, Silent

ASKED = {
    "forget": "the facts to forget, as asked in DATA",
    "paraphrases": "the same facts in other words",
    "reversed": "the same facts asked backwards",
    "neighbours": "facts of the same kind that should stay",
    "general": "general questions",
}
"""Views whose questions are put to the model. What a user gives for each is an option."""
SCORED = {
    "retain": "answers to retain, for their perplexity",
    "holdout": "examples that were never trained on, for membership inference",
}
"""Views of which only the probabilities of the answers are wanted."""


@dataclass(frozen=True)
class Task:
    """What is asked of which model; everything that decides a line of the journal."""

    model: Path
    views: Mapping[str, Sequence[Example]]
    """Examples by the name of a view, a key of `ASKED` or `SCORED`; `forget` is among them."""
    weakening: Weakening | None = None
    deployment: bool = False
    batch_size: int = 16
    max_new_tokens: int = 50
    dtype: str = "auto"
    device: str = "auto"

    @property
    def states(self) -> list[str]:
        """The model as it is, and what deployment makes of it."""
        wanted = [AS_IS]
        if self.deployment:
            wanted += QUANTISED if can_quantise() else []
            wanted += [RELEARNED] if self.teaching else []
        return wanted

    @cached_property
    def teaching(self) -> list[Example]:
        """The unrelated examples to relearn from; none if there are not enough."""
        asked = [e for view, examples in self.views.items() if view != "retain" for e in examples]
        chosen = unrelated(self.views.get("retain", ()), asked)
        return chosen if len(chosen) == RELEARNING_EXAMPLES else []

    @property
    def multimodal(self) -> bool:
        """Whether the model takes images."""
        return is_multimodal(load_config(self.model))

    def missing(self) -> list[str]:
        """A line for each view that was not looked at, and what to give for it."""
        lines = []
        for view in [*ASKED, *SCORED]:
            if view not in self.views:
                lines.append(f"{(ASKED | SCORED)[view]}: give --{view}")
        general = self.views.get("general", ())
        if general and self.multimodal and all(e.images for e in general):
            lines.append("general questions in text only: --general has none without a picture")
        if not self.deployment:
            lines.append("quantised to 8 and 4 bits, and after relearning: give --deployment")
            return lines
        if not can_quantise():
            lines.append("quantised to 8 and 4 bits: needs the package bitsandbytes")
        if not self.teaching:
            lines.append(
                f"after relearning: give --retain with {RELEARNING_EXAMPLES} examples whose "
                "questions are in no other view"
            )
        return lines

    def settings(self) -> dict[str, Any]:
        """Plain JSON values, one per thing that decides the lines."""
        relearning = {"steps": STEPS, "learning_rate": LEARNING_RATE}
        return {
            "model": Checkpoint.open(self.model).digest,
            **(self.weakening.facts if self.weakening else {}),
            **{view: data_digest(examples) for view, examples in self.views.items()},
            "states": self.states,
            **({"relearning": relearning} if RELEARNED in self.states else {}),
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "dtype": self.dtype,
            **environment_of(resolve_device(self.device)),
        }


def evaluate_views(
    task: Task, *, out: Path | None = None, progress: Progress | None = None
) -> Report:
    """Ask everything that no line of `out` answers yet.

    The lines come in the order of the work, batches of like length; the report is in that of the
    data. Raises `PlanMismatchError` if `out` was made with other options, and what `load_model`
    and `AnswerEncoder` do.
    """
    progress = progress or Silent()
    unknown = task.views.keys() - (ASKED | SCORED).keys()
    if "forget" not in task.views or unknown:
        raise OptionError(
            f"views are {', '.join([*ASKED, *SCORED])}, forget among them; got "
            f"{', '.join(task.views)}"
        )
    with Journal(out, task.settings()) as journal:
        total = len(task.states) * sum(map(len, task.views.values()))
        with progress.task("evaluate", total, "examples") as advance:
            advance(len(journal.rows))
            for state in task.states:
                _complete(task, state, journal, advance, progress)
        taught = task.teaching if task.deployment else ()
        return Report.of_rows(task.views, task.states, [*ASKED], journal.rows, taught)


def _complete(
    task: Task, state: str, journal: Journal, advance: Advance, progress: Progress
) -> None:
    """Every line of a state that is not there yet. The model is loaded if there is one to make."""
    done = {(row["view"], row["id"]) for row in journal.rows if row["state"] == state}
    if all((view, e.id) in done for view, examples in task.views.items() for e in examples):
        return
    with _in_state(task, state, progress) as loaded:
        encoder = AnswerEncoder(loaded.processor, loaded.model.config)
        for view, examples in task.views.items():
            for batch in length_batches(encoder, examples, task.batch_size):
                chosen = [examples[index] for index in batch]
                if all((view, example.id) in done for example in chosen):
                    continue
                scores = probability_scores(loaded, encoder, chosen)
                rows: list[dict[str, Any]] = []
                if view in SCORED:
                    rows = [{"id": e.id, **s} for e, s in zip(chosen, scores, strict=True)]
                else:
                    responses = answer_batch(loaded, encoder, chosen, task.max_new_tokens)
                    for example, response, values in zip(chosen, responses, scores, strict=True):
                        judgement = judged(example, response)
                        judgement.scores.update(values)
                        rows.append(judgement.to_dict())
                new = [row for row in rows if (view, row["id"]) not in done]
                journal.add({"state": state, "view": view, **row} for row in new)
                advance(len(new))


@contextmanager
def _in_state(task: Task, state: str, progress: Progress) -> Iterator[LoadedModel]:
    """The model as it is asked."""
    if state == AS_IS:
        loaded = load_model(task.model, task.dtype, task.device)
        with gates_on(loaded.model, task.weakening):
            yield loaded
        return
    with weakened_folder(task.model, task.weakening) as folder:
        bits = QUANTISED.get(state)
        loaded = load_model(folder, task.dtype, task.device, bits=bits)
        if state == RELEARNED:
            encoder = AnswerEncoder(loaded.processor, loaded.model.config)
            before, after = relearn(loaded, encoder, task.teaching)
            progress.tell(
                f"relearned {RELEARNING_EXAMPLES} examples to retain: loss {before:.2f} before, "
                f"{after:.2f} after {STEPS} steps"
            )
        yield loaded


def data_digest(examples: Sequence[Example]) -> str:
    """Of everything that decides a line: content, id, and what responses are judged by."""
    return digest_of(
        [
            [e.id, e.digest, e.keywords, e.option, e.paraphrased_answer, e.perturbed_answers]
            for e in examples
        ]
    )
