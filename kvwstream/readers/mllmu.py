"""MLLMU-Bench: fictitious and celebrity profiles, in both published layouts.

`question`/`answer` columns hold one question a row; `metadata` holds a JSON list of many. The three
task columns hold the evaluation questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvwstream.errors import DataError
from kvwstream.examples import Example, question_answer
from kvwstream.images import ImageSource
from kvwstream.readers.fields import image_source, plain, text

TASK_COLUMNS = {
    "generation": "Generation_Task",
    "cloze": "Mask_Task",
    "classification": "Classification_Task",
}
TASKS = ("questions", *TASK_COLUMNS)
ONE_SENTENCE = "Answer the question based on your trained knowledge in one sentence"
BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."
LETTER = "Just give ONE letter representing the answer directly."


def is_mllmu(columns: set[str]) -> bool:
    """Whether rows with these columns are MLLMU-Bench's."""
    return "ID" in columns and bool(columns & {"metadata", "biography", *TASK_COLUMNS.values()})


def mllmu_examples(row: dict[str, Any], place: str, task: str) -> Iterator[Example]:
    """The examples of a profile: its training questions, or those of an evaluation task.

    Evaluation prompts are those of the benchmark; of several `images` the first is shown. Ids are
    the row's `ID` and a running number; the subject is the `ID`.
    """
    for example in _examples(row, place, task):
        option = example.answer if task == "classification" else ""
        yield replace(example, subject=str(row.get("ID")), option=option)


def _examples(row: dict[str, Any], place: str, task: str) -> Iterator[Example]:
    images = [_image(row, place)]
    name = f"{place} (ID {row.get('ID')})"
    if task in TASK_COLUMNS:
        for number, (question, answer, visual) in enumerate(_task(row, task, place)):
            shown = images if visual else []
            yield question_answer(f"{name}/{number}", question, answer, shown)
    elif row.get("metadata") is not None:
        for number, pair in enumerate(_metadata(row, place)):
            question, answer = (
                text(pair, field, f"{name}/{number}") for field in ("Question", "Answer")
            )
            yield question_answer(f"{name}/{number}", question, answer, images)
    else:
        yield question_answer(
            name, text(row, "question", place), text(row, "answer", place), images
        )


def _image(row: dict[str, Any], place: str) -> ImageSource:
    if row.get("image") is not None:
        return image_source(row, "image", place)
    shown = plain(row.get("images"))
    if not shown:
        raise DataError(f"{place}: has no image")
    return image_source({"images": shown[0]}, "images", place)


def _metadata(row: dict[str, Any], place: str) -> list[dict[str, Any]]:
    try:
        pairs = json.loads(row["metadata"])
    except (ValueError, TypeError) as error:
        raise DataError(f"{place}: `metadata` is not valid JSON: {error}") from error
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, dict) for p in pairs):
        raise DataError(f"{place}: `metadata` must be a JSON list of questions and answers")
    return pairs


def _task(row: dict[str, Any], task: str, place: str) -> Iterator[tuple[str, str, bool]]:
    """Question, answer, and whether the image is shown."""
    column = TASK_COLUMNS[task]
    value = plain(row.get(column))
    if not value:
        raise DataError(f"{place}: column `{column}` is missing or empty")
    if task == "classification":
        for kind in ("Image_Textual_Questions", "Pure_Text_Questions"):
            for item in value.get(kind) or []:
                letter = text(item, "Correct_Answer", place)
                options = {k: v for k, v in (item.get("Options") or {}).items() if v is not None}
                if letter not in options:
                    raise DataError(f"{place}: {column}: no option {letter!r} among {[*options]}")
                lines = [f"{key}: {option}" for key, option in options.items()]
                question = "\n".join([text(item, "Question", place), *lines, LETTER])
                yield question, letter, kind.startswith("Image")
        return
    for item in value:
        visual = item.get("Type") == "Image_Textual"
        question, truth = text(item, "Question", place), text(item, "Ground_Truth", place)
        if task == "cloze":
            question = f"{question.replace('__', '[Blank]')}\n{BLANK}"
        else:
            manner = "accurately in ENGLISH." if visual else "in ENGLISH."
            question = f"{question}\n{ONE_SENTENCE} {manner}"
        yield question, truth, visual
