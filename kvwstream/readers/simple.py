"""kvwstream's own rows: a question with its answer, or a conversation; with images or without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvwstream.errors import DataError
from kvwstream.examples import ROLES, Example, question_answer
from kvwstream.images import ImageSource
from kvwstream.readers.fields import image_source, plain, text, text_list

NEEDED = "a row needs `question` and `answer`, or `messages`"


def simple_examples(row: Any, place: str, folder: Path | None) -> Iterator[Example]:
    """The example of a row: `question`, `answer` or `messages`; the other fields are optional.

    `image` (or `images`, a list) are paths relative to `folder`, or encoded bytes; in `messages`
    they belong to the `{"type": "image"}` parts, in order. `place` names the row (`data.jsonl:12`)
    in errors and is the id where the row has none. Raises `DataError` naming place and field.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
    images = [_image(value, place, folder) for value in _image_values(row, place)]
    keywords = _keywords(row, place)
    extras = _evaluation_fields(row, place)
    name = place if row.get("id") is None else str(row["id"])
    if row.get("messages") is not None:
        messages = _check_messages(plain(row["messages"]), place, len(images))
        yield Example(name, tuple(messages), tuple(images), tuple(keywords), **extras)
        return
    try:
        question, answer = (text(row, field, place) for field in ("question", "answer"))
    except DataError as error:
        raise DataError(f"{error}; {NEEDED}") from error
    yield replace(question_answer(name, question, answer, images, keywords), **extras)


def _image_values(row: dict[str, Any], place: str) -> list[Any]:
    one, many = row.get("image"), plain(row.get("images"))
    if one is not None and many is not None:
        raise DataError(f"{place}: has both `image` and `images`; give one of them")
    if one is not None:
        return [one]
    if many is not None and not isinstance(many, list):
        raise DataError(f"{place}: `images` must be a list")
    return many or []


def _image(value: Any, place: str, folder: Path | None) -> ImageSource:
    if not isinstance(value, str):
        return image_source({"image": value}, "image", place)
    if folder is None:
        raise DataError(f"{place}: image {value!r}: a path, but the data are in no folder")
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{place}: image {value!r}: leaves the folder of the data, {folder}")
    if not path.is_file():
        raise DataError(f"{place}: image {value!r}: no such file in {folder}")
    return path


def _keywords(row: dict[str, Any], place: str) -> list[str]:
    keyword = plain(row.get("keyword"))
    keywords = [] if keyword is None else [keyword] if isinstance(keyword, str) else keyword
    if not isinstance(keywords, list) or not all(
        isinstance(word, str) and any(map(str.isalnum, word)) for word in keywords
    ):
        raise DataError(f"{place}: `keyword` must be text with letters or digits, or a list of it")
    return keywords


def _evaluation_fields(row: dict[str, Any], place: str) -> dict[str, Any]:
    """What only `evaluate` and `sweep` read, where the row has it."""
    names = ("option", "subject", "paraphrased_answer")
    found: dict[str, Any] = {n: text(row, n, place) for n in names if row.get(n) is not None}
    if row.get("perturbed_answers") is not None:
        found["perturbed_answers"] = tuple(text_list(row, "perturbed_answers", place))
    return found


def _check_messages(messages: Any, place: str, num_images: int) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{place}: `messages` must be a list of at least a question and an answer")
    checked = []
    for number, message in enumerate(messages):
        where = f"{place}: message {number}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"{where}: needs a `role` of {', '.join(ROLES)} and a `content`")
        content = _content(plain(message.get("content")), where)
        checked.append({"role": message["role"], "content": content})
    if checked[-1]["role"] != "assistant" or not isinstance(checked[-1]["content"], str):
        raise DataError(f"{place}: the last message must be the assistant's answer, as text")
    parts = [p for m in checked if isinstance(m["content"], list) for p in m["content"]]
    marked = sum(part["type"] == "image" for part in parts)
    if marked != num_images:
        raise DataError(
            f"{place}: {num_images} images for {marked} image parts in `messages`; put a "
            '{"type": "image"} part where each belongs'
        )
    return checked


def _content(content: Any, where: str) -> str | list[dict[str, str]]:
    """Text, or a list of text and image parts; a list of one text becomes that text."""
    if isinstance(content, str):
        if not content.strip():
            raise DataError(f"{where}: `content` must be text and not empty")
        return content
    if not isinstance(content, list) or not content:
        raise DataError(f"{where}: `content` must be text and not empty, or a list of parts")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            parts.append({"type": "image"})
        elif kind == "text":
            parts.append({"type": "text", "text": text(part, "text", where)})
        else:
            raise DataError(f"{where}: parts are of type text or image, got {part!r}")
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts
