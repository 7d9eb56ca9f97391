"""TOFU (`locuslab/TOFU`): questions about fictitious authors, with paraphrases in some files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvwstream.examples import Example, question_answer
from kvwstream.readers.fields import optional_text, text, text_list

TASKS = ("questions", "paraphrased")


def is_tofu(columns: set[str]) -> bool:
    """Whether rows with these columns are of TOFU's perturbed files; the others are plain rows."""
    return {"question", "answer", "perturbed_answer"} <= columns


def tofu_examples(row: dict[str, Any], place: str, task: str) -> Iterator[Example]:
    """The question as trained, or its paraphrase with the paraphrased answer.

    Wrong answers go with either; the files on authors and the world have no paraphrased answer.
    """
    prefix = "paraphrased_" if task == "paraphrased" else ""
    question, answer = (text(row, prefix + field, place) for field in ("question", "answer"))
    yield replace(
        question_answer(place, question, answer),
        paraphrased_answer=optional_text(row, "paraphrased_answer") or "",
        perturbed_answers=tuple(text_list(row, "perturbed_answer", place)),
    )
