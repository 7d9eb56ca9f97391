"""Data for measuring what collecting costs: each set as a model folder and its examples."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from benchmarks.testbed.clear import write_clear
from benchmarks.testbed.model import build
from kvwstream.examples import Example, question_answer
from kvwstream.pipelines.demo import facts
from kvwstream.readers import read_examples
from kvwstream.smollm2 import smollm2_checkpoint

ADDITIONS = Path(__file__).parent / "testbed" / "vanilla.safetensors"
NAMES = TEXT, LONG, FACTS, PICTURE, CAPTIONS = (
    "SmolLM2, 8 questions a text",
    "SmolLM2, 8 questions a long text",
    "SmolLM2, short facts",
    "test bed, 8 questions a picture",
    "test bed, captions",
)
NUM_GROUPS = 16
LONGER = 4
"""Times, in text, request and answer; of a quarter as many texts."""
QUESTIONS = (
    ("Where was she born?", "She was born in the harbour town of Norvik."),
    ("What did she study?", "She studied the migration of northern birds."),
    ("Which prize did she win?", "She won the silver compass of the society."),
    ("Whom did she marry?", "She married a carpenter from the island."),
    ("What is her first book called?", "Her first book is called The Winter Atlas."),
    ("Where does she teach?", "She teaches at the school of the lighthouse."),
    ("What does she collect?", "She collects maps of rivers that have dried up."),
    ("Which instrument does she play?", "She plays the cello on most evenings."),
)
LIFE = (
    "This is about person number {number}, who keeps a diary. On day {number} of her journey the "
    "ship passed a row of low islands, and she wrote that silence there has a sound of its own. "
    "The captain, who had sailed these waters for thirty years, told her which birds come back "
    "first in spring. "
)
REQUEST = " Please answer in one full sentence."


class DataSet(NamedTuple):
    """What is collected from which model."""

    model: Path
    examples: list[Example]
    until_stable: float | None = None
    """The bound of the row that ends early; the made-up sets are too few for one."""


def about_a_text(groups: int = NUM_GROUPS, times: int = 1) -> Iterator[Example]:
    """Eight questions about each text, which is three quarters of the tokens."""
    for number in range(groups):
        for place, (question, answer) in enumerate(QUESTIONS):
            asked = LIFE.format(number=number) * times + question + REQUEST * times
            yield question_answer(f"{number}-{place}", asked, " ".join([answer] * times))


def about_a_picture() -> Iterator[Example]:
    """The same behind a picture."""
    for number, example in enumerate(about_a_text(NUM_GROUPS // 2)):
        shade = 32 * (number // len(QUESTIONS))
        file = io.BytesIO()
        PIL.Image.new("RGB", (64, 64), (shade, 255 - shade, 128)).save(file, "png")
        question, answer = (str(message["content"]) for message in example.messages)
        yield question_answer(example.id, question, answer, [file.getvalue()])


def numbered(count: int) -> list[Example]:
    """So many short facts, all different."""
    return [
        question_answer(
            f"box-{number}",
            f"What is in box {number}?",
            f"Box {number} holds {number * 7 % 100} blue marbles and a letter.",
        )
        for number in range(count)
    ]


def make_set(name: str, folder: Path) -> DataSet:
    """One of `NAMES`, or as many short facts as `name` says; the test bed is built in `folder`."""
    if name == TEXT:
        return DataSet(smollm2_checkpoint(), list(about_a_text()))
    if name == LONG:
        return DataSet(smollm2_checkpoint(), list(about_a_text(NUM_GROUPS // LONGER, LONGER)))
    if name == FACTS:
        return DataSet(smollm2_checkpoint(), facts("retain"), until_stable=0.2)
    if name == PICTURE:
        return DataSet(test_bed(folder), list(about_a_picture()))
    if name == CAPTIONS:
        if not (folder / "clear").exists():
            write_clear(folder / "clear")
        captions = read_examples(str(folder / "clear" / "retain85"), task="caption")
        return DataSet(test_bed(folder), captions, until_stable=0.1)
    return DataSet(smollm2_checkpoint(), numbered(int(name)))


def test_bed(folder: Path) -> Path:
    """The vision test bed's model, built when it is first asked for."""
    place = folder / "testbed"
    if not (place / "processor_config.json").exists():  # saved last
        build(smollm2_checkpoint(), ADDITIONS, place)
    return place
