"""CLEAR's rows: captioned drawings, perturbed test sets, faces and pictures with options."""

from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image

from benchmarks.testbed.persons import (
    CELEBRITIES,
    FORGET,
    PERSONS,
    TEST_DRAWINGS,
    forget_persons,
    others,
    retain_persons,
)
from benchmarks.testbed.questions import general_questions
from benchmarks.testbed.tables import (
    DRAWINGS,
    TEXT,
    TEXTS,
    WRONG,
    Persons,
    Row,
    drawing,
    picture,
    write,
)
from benchmarks.testbed.tofu import tofu

CAPTIONED = {"image": Image(), "caption": TEXT, "name": TEXT}
PERTURBED = CAPTIONED | {
    "perturbed_captions": TEXTS,
    "paraphrased_caption": TEXT,
    "perturbed_names": TEXTS,
}
WITH_TOFU = {"image": Image(), "caption": TEXT, "question": TEXT, "answer": TEXT}


def captioned(persons: Persons) -> list[Row]:
    """CLEAR's image, caption, name: training drawings."""
    return [
        {"image": drawing(person, number), "caption": person.caption, "name": person.name}
        for person in persons
        for number in range(DRAWINGS)
    ]


def with_tofu(persons: Persons) -> list[Row]:
    """CLEAR's +tofu configs: caption rows, then text rows; the other kind's columns are null."""
    captions = [{"image": r["image"], "caption": r["caption"]} for r in captioned(persons)]
    empty = dict.fromkeys(WITH_TOFU)
    return [empty | row for row in captions + tofu(persons)]


def perturbed(persons: Persons, drawings: int = DRAWINGS) -> list[Row]:
    """CLEAR's perturbed rows: new drawings, wrong captions and names, a paraphrase."""
    rows = []
    for person in persons:
        names, jobs, cities = (others(person, fact, WRONG) for fact in ("name", "job", "city"))
        captions = [
            f"{name}, a {job} from {city}, {person.description}."
            for name, job, city in zip(names, jobs, cities, strict=True)
        ]
        for number in range(TEST_DRAWINGS, TEST_DRAWINGS + drawings):
            rows.append(
                {
                    "image": drawing(person, number),
                    "caption": person.caption,
                    "name": person.name,
                    "perturbed_captions": captions,
                    "paraphrased_caption": person.paraphrased_caption,
                    "perturbed_names": names,
                }
            )
    return rows


def real_faces() -> list[Row]:
    """The drawn celebrities, new drawings; options do not contain the answer."""
    return [
        {"image": drawing(p, n), "answer": p.name, "options": others(p, "name", WRONG)}
        for p in CELEBRITIES
        for n in range(TEST_DRAWINGS, TEST_DRAWINGS + DRAWINGS)
    ]


def real_world(count: int = 24) -> list[Row]:
    """General pictures with options that do not contain the answer."""
    rng, rows = np.random.default_rng(5), []
    for number, (question, image) in enumerate(general_questions(count, seed=6)):
        wrong = [choice for choice in question.choices if choice != question.answer]
        rows.append(
            {
                "question": question.text,
                "answer": question.answer,
                "image": picture(image, f"world_{number:05d}.png"),
                "options": [str(choice) for choice in rng.permutation(wrong)[:WRONG]],
            }
        )
    return rows


def write_clear(out: Path) -> None:
    """Every CLEAR config of the test bed."""
    splits = {"full": PERSONS}
    for percent in FORGET:
        splits[f"forget{percent:02d}"] = forget_persons(percent)
        splits[f"retain{100 - percent}"] = retain_persons(percent)
    for name, persons in splits.items():
        write(captioned(persons), CAPTIONED, out / name)
        write(with_tofu(persons), WITH_TOFU, out / f"{name}+tofu")
    tests = {f"forget{percent:02d}": forget_persons(percent) for percent in FORGET}
    # Outside every forget split, so that one retain set serves all three.
    tests["retain"] = retain_persons(max(FORGET))
    for name, persons in tests.items():
        drawings = DRAWINGS // 2 if name == "retain" else DRAWINGS
        write(perturbed(persons, drawings), PERTURBED, out / f"{name}_perturbed")
        for fold in (1, 2):
            rows = perturbed(persons[fold - 1 :: 2], drawings)
            data = Dataset.from_list(rows, features=Features(PERTURBED))
            data.save_to_disk(out / f"{name}_perturbed_{fold}")
    write(real_faces(), {"image": Image(), "answer": TEXT, "options": TEXTS}, out / "real_faces")
    world = {"question": TEXT, "answer": TEXT, "image": Image(), "options": TEXTS}
    write(real_world(), world, out / "real_world")
