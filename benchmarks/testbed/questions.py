"""Questions and answers about persons and pictures, shared by training, data and evaluation."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.testbed.faces import (
    GLASSES,
    HAIRS,
    HATS,
    SHIRTS,
    Face,
    draw_face,
    random_face,
)
from benchmarks.testbed.persons import Person
from benchmarks.testbed.pictures import (
    COLOURS,
    COUNTS,
    SHAPES,
    THINGS,
    Shapes,
    Thing,
    draw_picture,
)

FACTS = ("name", "job", "city")

# The first wording of each kind is the one that the benchmarks ask; KVW's CLEAR evaluation asks
# for the name in exactly these words.
IMAGE_WORDINGS = {
    "name": (
        "What is the name of the person in the image?",
        "Who is the person in the image?",
        "The name of the person on the image is ",
    ),
    "job": (
        "What is the job of the person in the image?",
        "What does the person in the image do for a living?",
    ),
    "city": (
        "Which city does the person in the image live in?",
        "Where does the person in the image live?",
    ),
}
TEXT_WORDINGS = {
    "job": ("What is the job of {name}?", "What does {name} do for a living?"),
    "city": ("Which city does {name} live in?", "Where does {name} live?"),
}


@dataclass(frozen=True)
class Question:
    """One question, its answer, the kind it is reported under and all values it could take."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


def person_questions(person: Person) -> list[Question]:
    """The three questions that the benchmarks ask about an image of a person."""
    return [Question(fact, IMAGE_WORDINGS[fact][0], getattr(person, fact)) for fact in FACTS]


def picture_questions(picture: Shapes | Thing | Face) -> list[Question]:
    """What can be asked about a general picture or about any face."""
    if isinstance(picture, Thing):
        return [Question("thing", "What is in the picture?", picture.thing, THINGS)]
    if isinstance(picture, Shapes):
        return [
            Question("colour", "What colour are the shapes?", picture.colour, tuple(COLOURS)),
            Question("shape", "What shape is in the picture?", picture.shape, SHAPES),
            Question("count", "How many shapes are there?", picture.count, COUNTS),
        ]
    return [
        Question("hair", "What colour is the hair?", picture.hair, tuple(HAIRS)),
        Question("shirt", "What colour is the shirt?", picture.shirt, tuple(SHIRTS)),
        Question("glasses", "What kind of glasses are worn?", picture.glasses, GLASSES),
        Question("hat", "What kind of hat is worn?", picture.hat, HATS),
    ]


def general_questions(count: int, seed: int) -> list[tuple[Question, Image.Image]]:
    """Every question about `count` fresh pictures each of shapes, of a thing and of any face."""
    rng = np.random.default_rng(seed)
    asked: list[tuple[Question, Image.Image]] = []
    for i in range(count):
        # In turn, not at random: every value is asked for equally often.
        colour = tuple(COLOURS)[i % len(COLOURS)]
        shapes = Shapes(SHAPES[i % len(SHAPES)], colour, COUNTS[i // 2 % len(COUNTS)])
        thing, face = Thing(THINGS[i % len(THINGS)]), random_face(rng)
        for picture, image in (
            (shapes, draw_picture(shapes, rng)),
            (thing, draw_picture(thing, rng)),
            (face, draw_face(face, rng)),
        ):
            asked += [(question, image) for question in picture_questions(picture)]
    return asked


def multiple_choice(
    question: str, answer: str, wrong: list[str], rng: np.random.Generator
) -> tuple[str, str]:
    """The question with lettered options, one a line, and the letter of the right one."""
    place = int(rng.integers(len(wrong) + 1))
    options = [*wrong[:place], answer, *wrong[place:]]
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False)]
    return "\n".join([question, *lines]) + "\n", "ABCDEFGH"[place]
