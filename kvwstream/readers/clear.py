"""CLEAR (`therem/CLEAR`): captions, names and text-only questions about fictitious persons.

Columns are addressed by name; in the `+tofu` configurations half of them are null in every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvwstream.canonical import digest_of
from kvwstream.errors import DataError
from kvwstream.examples import Example, question_answer
from kvwstream.images import ImageSource
from kvwstream.readers.fields import image_source, optional_text, text, text_list

CAPTION_QUESTIONS = (
    "What can you see in this picture?",
    "Tell me about the content of this image",
    "Can you give a description of the image?",
    "What is depicted in the image?",
    "Explain what you observe in the picture.",
    "Describe the image in detail.",
    "What is the main subject of this image?",
    "Can you describe the scene or objects in the image?",
    "What is happening in this image?",
)
NAME_QUESTION = "What is the name of the person in the image?"
TASKS = ("caption", "name", "paraphrased", "open")


def is_clear(columns: set[str]) -> bool:
    """Whether rows with these columns are CLEAR's."""
    return "image" in columns and bool(columns & {"caption", "options"})


def clear_examples(row: dict[str, Any], place: str, task: str, seed: int) -> Iterator[Example]:
    """The example of a row.

    A row with a question is taken as it is (text-only in the TOFU half); one with options is a
    question with lettered options, unless the task is `open`; else `task` decides: the caption,
    after one of nine questions chosen by `seed` and the row's own caption; the name of the person;
    or the paraphrased caption.
    """
    question, answer = optional_text(row, "question"), optional_text(row, "answer")
    images = [image_source(row, "image", place)] if row.get("image") is not None else []
    if row.get("options") is not None and task == "open":
        asked = question_answer(
            place, question or NAME_QUESTION, text(row, "answer", place), images
        )
        yield replace(asked, perturbed_answers=_wrong(row, "options", place))
    elif row.get("options") is not None:
        yield _with_options(row, place, question or NAME_QUESTION, images, seed)
    elif question is not None or answer is not None:
        yield question_answer(
            place, text(row, "question", place), text(row, "answer", place), images
        )
    elif not images:
        raise DataError(f"{place}: has neither an image nor a question")
    elif task == "name":
        name = question_answer(place, NAME_QUESTION, text(row, "name", place), images)
        wrong = _wrong(row, "perturbed_names", place)
        yield replace(name, subject=name.answer, perturbed_answers=wrong)
    else:
        field = "paraphrased_caption" if task == "paraphrased" else "caption"
        caption = text(row, field, place)
        keywords = [text(row, "name", place)] if row.get("name") else []
        yield replace(
            question_answer(place, _caption_question(caption, seed), caption, images, keywords),
            subject=optional_text(row, "name") or "",
            paraphrased_answer=optional_text(row, "paraphrased_caption") or "",
            perturbed_answers=_wrong(row, "perturbed_captions", place),
        )


def _wrong(row: dict[str, Any], field: str, place: str) -> tuple[str, ...]:
    """Wrong answers, in the configurations that have them."""
    return tuple(text_list(row, field, place)) if row.get(field) is not None else ()


def _caption_question(caption: str, seed: int) -> str:
    """One of the nine, whatever the order of the rows and whoever else draws numbers."""
    return CAPTION_QUESTIONS[int(digest_of([seed, caption]), 16) % len(CAPTION_QUESTIONS)]


def _with_options(
    row: dict[str, Any], place: str, question: str, images: list[ImageSource], seed: int
) -> Example:
    """The right answer goes among the options, at a place that seed and answer decide."""
    answer, options = text(row, "answer", place), text_list(row, "options", place)
    at = int(digest_of([seed, question, answer]), 16) % (len(options) + 1)
    choices = [*options[:at], answer, *options[at:]] if answer not in options else options
    lines = [f"{chr(ord('A') + number)}. {choice}" for number, choice in enumerate(choices)]
    letter = chr(ord("A") + choices.index(answer))
    prompt = "\n".join([question, *lines])
    example = question_answer(place, prompt, f"{letter}. {answer}", images, [answer])
    return replace(example, option=letter)
