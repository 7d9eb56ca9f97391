"""An example: one conversation whose last message is the answer. Standard library only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvwstream.errors import DataError
from kvwstream.plan import digest_of

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """A conversation with an answer.

    `messages` are `{"role", "content"}` with a string or a list of `{"type": "text" | "image"}`
    parts; the last one is the assistant's answer, as a string. `images` are consumed by the image
    parts in order: encoded bytes, or the path of a file. `keywords` are the spellings of which one
    must stand in a right answer (default: the whole answer).
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[bytes | Path, ...] = ()
    keywords: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        """Text of the last message."""
        return str(self.messages[-1]["content"])

    @property
    def prompt(self) -> tuple[dict[str, Any], ...]:
        """Every message before the answer."""
        return self.messages[:-1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content (text and image bytes), not of the id."""
        images = [
            hashlib.sha256(image if isinstance(image, bytes) else image.read_bytes()).hexdigest()
            for image in self.images
        ]
        return digest_of({"messages": list(self.messages), "images": images})


def example_from_row(row: Any, place: str) -> Example:
    """Example of a JSON object: `question` and `answer`, or `messages`; `id`, `keyword` optional.

    `place` names the row (`data.jsonl:12`) in errors and is the id where the row has none.
    Raises `DataError` naming the place and the field.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
    if row.get("messages") is not None:
        messages = _check_messages(row["messages"], place)
    else:
        question, answer = (_text(row, field, place) for field in ("question", "answer"))
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    keyword = row.get("keyword")
    keywords = [] if keyword is None else [keyword] if isinstance(keyword, str) else keyword
    if not isinstance(keywords, list) or not all(
        isinstance(word, str) and any(map(str.isalnum, word)) for word in keywords
    ):
        raise DataError(f"{place}: `keyword` must be text with letters or digits, or a list of it")
    name = row.get("id")
    return Example(place if name is None else str(name), tuple(messages), keywords=tuple(keywords))


def check_examples(examples: list[Example], source: str) -> None:
    """`DataError` for an empty data set, a duplicate id or duplicate content."""
    if not examples:
        raise DataError(f"{source}: holds no examples")
    for field in ("id", "digest"):
        seen: dict[str, Example] = {}
        for example in examples:
            twin = seen.setdefault(getattr(example, field), example)
            if twin is not example:
                what = "id" if field == "id" else "content"
                raise DataError(
                    f"{source}: examples {twin.id!r} and {example.id!r} have the same {what}; "
                    "every example counts once, remove one of them"
                )


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        found = "missing" if value is None else f"{type(value).__name__}, not text"
        raise DataError(
            f"{place}: field `{field}` is {found}; a row needs `question` and `answer`, "
            "or `messages`"
        )
    if not value.strip():
        raise DataError(f"{place}: field `{field}` is empty")
    return value


def _check_messages(messages: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{place}: `messages` must be a list of at least a question and an answer")
    for number, message in enumerate(messages):
        where = f"{place}: message {number}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"{where}: needs a `role` of {', '.join(ROLES)} and a `content`")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise DataError(f"{where}: `content` must be text and not empty")
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{place}: the last message must be the assistant's answer")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
