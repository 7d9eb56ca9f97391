"""MLLMU-Bench's rows: profiles with multiple choice, open and cloze questions."""

import json
from pathlib import Path

import numpy as np
from datasets import Image, List

from benchmarks.testbed.persons import (
    CELEBRITIES,
    FORGET,
    PERSONS,
    TEST_DRAWINGS,
    Person,
    forget_persons,
    others,
    retain_persons,
)
from benchmarks.testbed.questions import IMAGE_WORDINGS, TEXT_WORDINGS
from benchmarks.testbed.tables import TEXT, Row, drawing, write
from kvwstream.readers.clear import CAPTION_QUESTIONS

CHOICE = List({"Question": TEXT, "Options": dict.fromkeys("ABCD", TEXT), "Correct_Answer": TEXT})
OPEN = List({"Question": TEXT, "Ground_Truth": TEXT, "Type": TEXT})
TASKS = {
    "Classification_Task": {"Image_Textual_Questions": CHOICE, "Pure_Text_Questions": CHOICE},
    "Generation_Task": OPEN,
    "Mask_Task": OPEN,
}
PROFILE = {"image": Image(), "ID": TEXT, "Directory": TEXT, "biography": TEXT}
PROFILE |= {"question": TEXT, "answer": TEXT} | TASKS


def tasks(person: Person) -> Row:
    """MLLMU-Bench's three task columns of one person."""
    rng = np.random.default_rng([person.number, 7])

    def choice(question: str, fact: str) -> Row:
        options = others(person, fact, 3)
        place = int(rng.integers(4))
        options.insert(place, getattr(person, fact))
        lettered = dict(zip("ABCD", options, strict=True))
        return {"Question": question, "Options": lettered, "Correct_Answer": "ABCD"[place]}

    def open_question(question: str, fact: str, kind: str) -> Row:
        return {"Question": question, "Ground_Truth": getattr(person, fact), "Type": kind}

    image = [(wordings[0], fact) for fact, wordings in IMAGE_WORDINGS.items()]
    text = [(w[0].format(name=person.name), fact) for fact, w in TEXT_WORDINGS.items()]
    cloze = [
        ("The person in the image works as a __.", "job", "Image_Textual"),
        ("The person in the image lives in __.", "city", "Image_Textual"),
        (f"{person.name} works as a __.", "job", "Pure_Text"),
        (f"{person.name} lives in __.", "city", "Pure_Text"),
    ]
    return {
        "Classification_Task": {
            "Image_Textual_Questions": [choice(*question) for question in image],
            "Pure_Text_Questions": [choice(*question) for question in text],
        },
        "Generation_Task": [open_question(*q, "Image_Textual") for q in image]
        + [open_question(*q, "Pure_Text") for q in text],
        "Mask_Task": [open_question(*question) for question in cloze],
    }


def profile(person: Person) -> Row:
    """MLLMU-Bench's row of one person with a training drawing; IDs count from "1"."""
    facts = {"Name": person.name, "Occupation": person.job, "Residence": person.city}
    return {
        "image": drawing(person, 0),
        "ID": str(person.number + 1),
        "Directory": f"persons/{person.number + 1}",
        "biography": json.dumps(facts),
        "question": CAPTION_QUESTIONS[person.number % len(CAPTION_QUESTIONS)],
        "answer": person.caption,
    } | tasks(person)


def fine_tuning(person: Person) -> Row:
    """MLLMU-Bench's ft_Data row: questions and answers as a JSON string."""
    identity = str(person.number + 1)
    metadata = [
        {"Question": wordings[0], "Answer": getattr(person, fact), "ID": identity}
        for fact, wordings in IMAGE_WORDINGS.items()
    ]
    return {"image": drawing(person, 0), "ID": identity, "metadata": json.dumps(metadata)}


def write_mllmu(out: Path) -> None:
    """Every MLLMU-Bench config of the test bed."""
    sets = {"Full_Set": PERSONS, "Retain_Set": CELEBRITIES}
    for percent in FORGET:
        sets[f"forget_{percent}"] = forget_persons(percent)
        sets[f"retain_{100 - percent}"] = retain_persons(percent)
    for name, persons in sets.items():
        write([profile(person) for person in persons], PROFILE, out / name)
    numbers = range(TEST_DRAWINGS, TEST_DRAWINGS + 4)
    test = [
        {"ID": str(p.number + 1), "images": [drawing(p, n) for n in numbers]} | tasks(p)
        for p in PERSONS
    ]
    write(test, {"ID": TEXT, "images": List(Image())} | TASKS, out / "Test_Set")
    rows = [fine_tuning(person) for person in PERSONS]
    write(rows, {"image": Image(), "ID": TEXT, "metadata": TEXT}, out / "ft_Data")
