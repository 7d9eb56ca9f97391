"""TOFU's rows: what is known of a person without an image."""

import json
from pathlib import Path

from benchmarks.testbed.persons import FORGET, PERSONS, forget_persons, others, retain_persons
from benchmarks.testbed.questions import TEXT_WORDINGS
from benchmarks.testbed.tables import WRONG, Persons, Row


def tofu(persons: Persons) -> list[Row]:
    """TOFU's question and answer: what is known of a person without an image."""
    return [
        {"question": wording.format(name=person.name), "answer": getattr(person, fact)}
        for person in persons
        for fact, wordings in TEXT_WORDINGS.items()
        for wording in wordings
    ]


def tofu_perturbed(persons: Persons) -> list[Row]:
    """TOFU's perturbed rows: paraphrases of question and answer, wrong answers."""
    return [
        {
            "question": wordings[0].format(name=person.name),
            "answer": getattr(person, fact),
            "paraphrased_question": wordings[1].format(name=person.name),
            "paraphrased_answer": f"{getattr(person, fact)}, as far as known",
            "perturbed_answer": others(person, fact, WRONG),
        }
        for person in persons
        for fact, wordings in TEXT_WORDINGS.items()
    ]


def write_tofu(out: Path) -> None:
    """TOFU's JSON-lines files about the same persons."""
    files = {"full": tofu(PERSONS), "retain_perturbed": tofu_perturbed(retain_persons(15))}
    for percent in FORGET:
        files[f"forget{percent:02d}"] = tofu(forget_persons(percent))
        files[f"retain{100 - percent}"] = tofu(retain_persons(percent))
        files[f"forget{percent:02d}_perturbed"] = tofu_perturbed(forget_persons(percent))
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (out / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
