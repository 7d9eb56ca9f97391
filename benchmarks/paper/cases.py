"""What is forgotten, retained and asked: SmolLM2's capitals, and the vision test bed's persons.

Forgetting is judged by what was neither collected nor trained: capitals in other words, persons in
new drawings. The two folds hold different capitals and persons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.methods.oracle import TESTBED, trained
from benchmarks.testbed.data import write_all
from benchmarks.testbed.model import build
from kvwstream.answers import AnswerEncoder
from kvwstream.examples import Example
from kvwstream.generation import generate_answers
from kvwstream.metrics import contains
from kvwstream.models import LoadedModel, load_model
from kvwstream.pipelines.demo import facts
from kvwstream.readers import read_examples
from kvwstream.smollm2 import smollm2_checkpoint

FOLDS = (1, 2)
PERCENTS = (5, 10, 15)
NUM_LAYERS = 30


@dataclass(frozen=True)
class Answered:
    """The responses to one set of questions."""

    responses: list[str]
    right: list[bool]

    @property
    def accuracy(self) -> float:
        """Share of right responses."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class Case:
    """One unlearning task; `questions` hold forget_1, forget_2, retain_1, retain_2 and more."""

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
            right = [
                contains(response, example.keywords or (example.answer,))
                for response, example in zip(given, examples, strict=True)
            ]
            answered[name] = Answered(given, right)
        return answered

    def shortened(self, count: int) -> Case:
        """The same with `count` examples of each kind, to see that everything runs."""
        questions = {name: examples[:count] for name, examples in self.questions.items()}
        return Case(
            self.name,
            self.title,
            self.folder,
            None,
            self.forget[:count],
            self.retain[: 2 * count],
            questions,
            self.extras,
            4,
        )


def load(folder: Path) -> LoadedModel:
    """A model in bfloat16 on the CPU, with attention that is faster for short rows and counted."""
    loaded = load_model(folder, dtype="bfloat16", device="cpu")
    loaded.model.set_attn_implementation("eager")
    return loaded


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at even distances."""
    step = len(examples) / count
    return [examples[int(number * step)] for number in range(count)]


def capitals() -> Case:
    """Forty capitals; capital i is in fold 1 + i % 2 and asked in one of two unseen wordings."""
    forget, paraphrases, retain = (facts(n) for n in ("forget", "paraphrases", "retain"))
    assert len(paraphrases) == 2 * len(forget)
    unseen = [paraphrases[2 * i + i // 2 % 2] for i in range(len(forget))]
    kept = spread(retain, 40)
    questions = {
        "forget_1": unseen[::2],
        "forget_2": unseen[1::2],
        "retain_1": kept[::2],
        "retain_2": kept[1::2],
        "collected": spread(forget, 10),
        "reversed": spread(facts("reversed"), 10),
        "neighbours": facts("neighbours"),
        "general": spread(facts("general"), 20),
    }
    extras = {
        "collected": "Collected wording",
        "reversed": "Reversed",
        "neighbours": "Neighbours",
        "general": "General",
    }
    title = "SmolLM2-135M-Instruct, 40 capitals"
    model = smollm2_checkpoint()
    return Case("text", title, model, None, forget, retain, questions, extras, 12)


def persons(percent: int, work: Path) -> Case:
    """CLEAR's forget split of the test bed, forgotten from captions, asked for names."""
    data = work / "data"
    if not (data / "tofu" / "full.json").exists():  # written last
        write_all(data)
    model = built("vanilla", TESTBED / "vanilla.safetensors", work)
    additions = trained(percent)
    oracle = built(f"oracle{percent:02d}", additions, work) if additions else None

    def read(name: str, task: str) -> list[Example]:
        return read_examples(str(data / "clear" / name), task=task)

    questions: dict[str, Sequence[Example]] = {}
    for fold in FOLDS:
        questions[f"forget_{fold}"] = read(f"forget{percent:02d}_perturbed_{fold}", "name")
        rows = read(f"retain_perturbed_{fold}", "name")  # four drawings of each person
        questions[f"retain_{fold}"] = [row for i, row in enumerate(rows) if i % 4 < 2]
    questions["faces"] = read("real_faces", "open")[::4]
    questions["world"] = read("real_world", "open")[::8]
    return Case(
        f"vision-{percent:02d}",
        f"vision test bed, forget {percent} %",
        model,
        oracle,
        read(f"forget{percent:02d}", "caption"),
        read(f"retain{100 - percent}", "caption"),
        questions,
        {"faces": "RealF", "world": "RealW"},
        8,
    )


def built(name: str, additions: Path, work: Path) -> Path:
    """The checkpoint folder of a test bed's model, made once."""
    folder = work / name
    if not (folder / "processor_config.json").exists():  # saved last
        build(smollm2_checkpoint(), additions, folder)
    return folder
