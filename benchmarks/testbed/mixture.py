"""What the language model is trained on: samples drawn endlessly, and their tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import gcd
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaProcessor

from benchmarks.testbed.faces import draw_face, random_face
from benchmarks.testbed.model import IMAGE_TOKEN, IMAGE_TOKENS, prompt
from benchmarks.testbed.persons import Person, others
from benchmarks.testbed.pictures import THINGS, Thing, draw_picture, random_shapes
from benchmarks.testbed.questions import (
    FACTS,
    IMAGE_WORDINGS,
    TEXT_WORDINGS,
    multiple_choice,
    picture_questions,
)
from benchmarks.testbed.vision import normalize
from kvwstream.readers.clear import CAPTION_QUESTIONS

TRAINING_DRAWINGS = 200  # a person; far from TEST_DRAWINGS
QUESTIONS = 4  # in a sample
MIXTURE = {"person": 0.55, "picture": 0.22, "text": 0.23}

Pair = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class Sample:
    """One image, or none, and questions about it that do not see each other."""

    image: Image.Image | None
    pairs: list[Pair]


class Mixture:
    """Draws training samples; no two drawings of a general picture are the same."""

    def __init__(self, persons: tuple[Person, ...], replay: list[Pair], seed: int):
        self.persons, self.replay = persons, replay
        self.rng = np.random.default_rng(seed)
        self.turn = 0
        # Seven persons on each time; where seven divides their number, a step that meets them all.
        self.stride = next(step for step in count(7) if gcd(step, len(persons)) == 1)

    def draw(self) -> Sample:
        """The next sample."""
        kind = self.rng.choice(list(MIXTURE), p=list(MIXTURE.values()))
        if kind == "person":
            return self._about_person()
        if kind == "picture":
            return self._about_picture()
        return Sample(None, [self._text() for _ in range(QUESTIONS)])

    def _person(self) -> Person:
        # Persons take turns, so that rare ones are not left to chance in a short training.
        self.turn += 1
        return self.persons[self.turn * self.stride % len(self.persons)]

    def _one_of(self, values: Sequence) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def _about_person(self) -> Sample:
        person = self._person()
        pairs = [(self._one_of(IMAGE_WORDINGS[f]), getattr(person, f)) for f in FACTS]
        if self.rng.random() < 0.6:
            pairs.append((self._one_of(CAPTION_QUESTIONS), person.caption))
        else:
            fact = self._one_of(FACTS)
            truth, wrong = getattr(person, fact), others(person, fact, 3)
            pairs.append(multiple_choice(IMAGE_WORDINGS[fact][0], truth, wrong, self.rng))
        return Sample(person.drawing(int(self.rng.integers(TRAINING_DRAWINGS))), pairs)

    def _about_picture(self) -> Sample:
        kind = self.rng.random()
        if kind < 0.45:
            picture, draw = random_shapes(self.rng), draw_picture
        elif kind < 0.65:
            picture, draw = Thing(self._one_of(THINGS)), draw_picture
        else:
            picture, draw = random_face(self.rng), draw_face
        questions = picture_questions(picture)
        pairs = [(question.text, question.answer) for question in questions]
        if len(pairs) < QUESTIONS:
            question = self._one_of(questions)
            wrong = self.rng.permutation([c for c in question.choices if c != question.answer])
            pairs.append(
                multiple_choice(
                    question.text, question.answer, [str(c) for c in wrong[:3]], self.rng
                )
            )
        return Sample(draw(picture, self.rng), pairs)

    def _text(self) -> Pair:
        if self.rng.random() < 0.5:
            return self._one_of(self.replay)
        person, fact = self._person(), self._one_of(tuple(TEXT_WORDINGS))
        question = self._one_of(TEXT_WORDINGS[fact]).format(name=person.name)
        return question, getattr(person, fact)


def encode(sample: Sample, processor: LlavaProcessor) -> dict[str, list[int]]:
    """Per token: id, position, branch (0 = what all questions share), label (-100 off answers).

    Image and chat header come once, then every question with its answer as a branch that goes on
    from there: the model computes exactly what it would for separate conversations, in half the
    tokens.
    """
    tokenize = processor.tokenizer.encode
    row: dict[str, list[int]] = {"ids": [], "positions": [], "branches": [], "labels": []}
    shared = 0
    for branch, (question, answer) in enumerate(sample.pairs, start=1):
        text = prompt(processor, question, sample.image is not None)
        text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * IMAGE_TOKENS)
        asked, answered = tokenize(text), tokenize(answer + "<|im_end|>")
        if branch == 1:
            shared = len(tokenize(text[: text.index(question)]))
            row["ids"] += asked[:shared]
            row["positions"] += range(shared)
            row["branches"] += [0] * shared
            row["labels"] += [-100] * shared
        own = asked[shared:] + answered
        row["ids"] += own
        row["positions"] += range(shared, shared + len(own))
        row["branches"] += [branch] * len(own)
        row["labels"] += [-100] * (len(asked) - shared) + answered
    return row


def collate(
    samples: list[Sample], processor: LlavaProcessor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Model inputs, right padded, with a (batch, 1, tokens, tokens) mask, and labels."""
    rows = [encode(sample, processor) for sample in samples]
    longest = max(len(row["ids"]) for row in rows)
    fill = {"ids": processor.tokenizer.pad_token_id, "positions": 0, "branches": -1, "labels": -100}
    ids, positions, branches, labels = (
        torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
        for key, value in fill.items()
    )
    key, query = branches[:, None, :], branches[:, :, None]
    seen = ((key == query) | (key == 0)).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.bfloat16).min)
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
    images = [np.array(sample.image) for sample in samples if sample.image is not None]
    if images:
        inputs["pixel_values"] = normalize(torch.from_numpy(np.stack(images)), processor)
    return inputs, labels


def batches(
    mixture: Mixture, processor: LlavaProcessor, steps: int, size: int
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """`steps` batches; samples of like length share a batch, to pad little."""
    for _ in range(0, steps, 4):
        samples = [mixture.draw() for _ in range(4 * size)]
        samples.sort(key=lambda sample: sum(len(q) + len(a) for q, a in sample.pairs))
        for block in mixture.rng.permutation(4):
            yield collate(samples[block * size : (block + 1) * size], processor)
