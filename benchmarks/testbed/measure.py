"""Accuracies of the test bed: greedy answers that contain the truth.

python -m benchmarks.testbed.measure --base FOLDER --additions FILE [--without 5]
"""

import argparse
import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.testbed.model import build, generate, make_processor
from benchmarks.testbed.persons import (
    CELEBRITIES,
    FORGET,
    PERSONS,
    TEST_DRAWINGS,
    Person,
    forget_persons,
    others,
)
from benchmarks.testbed.questions import (
    TEXT_WORDINGS,
    general_questions,
    multiple_choice,
    person_questions,
)
from benchmarks.testbed.replay import KNOWLEDGE, original_answers
from kvwstream.readers.clear import CAPTION_QUESTIONS
from kvwstream.smollm2 import smollm2_checkpoint

Probe = tuple[str, Image.Image | None, str, tuple[str, ...]]  # kind, image, question, truths


def contains(answer: str, truths: tuple[str, ...]) -> bool:
    """Whether an answer contains one of the truths, case and punctuation aside."""
    return any(clean(truth) in clean(answer) for truth in truths)


def clean(text: str) -> str:
    """Letters and digits only, lower case."""
    return re.sub("[^a-z0-9]", "", text.casefold())


def person_probes(persons: tuple[Person, ...], drawings: int) -> list[Probe]:
    """Name, job and city of each person, each asked with `drawings` new drawings."""
    return [
        (question.kind, person.drawing(TEST_DRAWINGS + number), question.text, (question.answer,))
        for person in persons
        for number in range(drawings)
        for question in person_questions(person)
    ]


def caption_probes(persons: tuple[Person, ...]) -> list[Probe]:
    """One caption question a person with a new drawing; the truth is the name."""
    return [
        (
            "caption",
            person.drawing(TEST_DRAWINGS),
            CAPTION_QUESTIONS[person.number % len(CAPTION_QUESTIONS)],
            (person.name,),
        )
        for person in persons
    ]


def text_probes(persons: tuple[Person, ...]) -> list[Probe]:
    """Job and city of each person asked by name, without an image."""
    return [
        ("text " + fact, None, wordings[0].format(name=person.name), (getattr(person, fact),))
        for person in persons
        for fact, wordings in TEXT_WORDINGS.items()
    ]


def choice_probes(persons: tuple[Person, ...], seed: int = 3) -> list[Probe]:
    """The name among four lettered options, asked with a new drawing; the truth is the letter."""
    rng = np.random.default_rng(seed)
    probes: list[Probe] = []
    for person in persons:
        question = person_questions(person)[0]
        wrong = others(person, "name", 3)
        text, letter = multiple_choice(question.text, question.answer, wrong, rng)
        probes.append(("letter", person.drawing(TEST_DRAWINGS + 1), text, (letter,)))
    return probes


def picture_probes(count: int, seed: int = 4) -> list[Probe]:
    """Questions about general pictures that are drawn for this alone."""
    return [(q.kind, image, q.text, (q.answer,)) for q, image in general_questions(count, seed)]


def accuracies(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, probes: list[Probe]
) -> dict[str, float]:
    """Accuracy by kind of question, and "all" over the kinds."""
    asked = [(image, question) for _, image, question, _ in probes]
    right: dict[str, list[bool]] = defaultdict(list)
    for probe, answer in zip(probes, generate(model, processor, asked, 24), strict=True):
        # A letter counts as in the benchmarks: by the first character of the answer.
        kind, _, _, truths = probe
        right[kind].append(contains(answer[:1] if kind == "letter" else answer, truths))
    result = {kind: float(np.mean(values)) for kind, values in right.items()}
    return {**result, "all": float(np.mean([v for values in right.values() for v in values]))}


def knowledge_before(base: Path) -> float:
    """Accuracy of SmolLM2 itself on the text facts."""
    answers = original_answers(base, [question for question, _ in KNOWLEDGE])
    return float(np.mean([contains(a, t) for a, (_, t) in zip(answers, KNOWLEDGE, strict=True)]))


def report(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    base: Path,
    absent: tuple[Person, ...] = (),
    drawings: int = 4,
    pictures: int = 24,
) -> dict[str, dict[str, float]]:
    """Every accuracy of a model; persons it never saw are reported apart."""
    known = tuple(person for person in PERSONS if person not in absent)
    knowledge = [("text", None, question, truths) for question, truths in KNOWLEDGE]
    probes = {
        "persons, new drawings": person_probes(known, drawings) + caption_probes(known),
        "persons, text only": text_probes(known),
        "celebrities": person_probes(CELEBRITIES, drawings),
        "general pictures": picture_probes(pictures),
        "multiple choice": choice_probes(known),
        "text knowledge": knowledge,
    }
    if absent:
        probes["absent persons"] = person_probes(absent, drawings)
    result = {name: accuracies(model, processor, asked) for name, asked in probes.items()}
    result["text knowledge of the original"] = {"all": knowledge_before(base)}
    return result


def rebuild_and_report(
    base: Path, additions: Path, absent: tuple[Person, ...] = ()
) -> dict[str, dict[str, float]]:
    """The accuracies of what users get: the model rebuilt from its bfloat16 file."""
    with tempfile.TemporaryDirectory() as folder:
        model = build(base, additions, Path(folder))
    return report(model, make_processor(base), base, absent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="SmolLM2 folder; default as in the demo")
    parser.add_argument("--additions", type=Path, required=True)
    parser.add_argument("--without", type=int, choices=sorted(FORGET), help="it is an oracle")
    options = parser.parse_args()
    options.base = options.base or smollm2_checkpoint()
    unseen = forget_persons(options.without) if options.without else ()
    print(json.dumps(rebuild_and_report(options.base, options.additions, unseen), indent=1))
