"""An example: one conversation whose last message is the answer. Standard library only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from kvwstream.canonical import digest_of
from kvwstream.errors import DataError
from kvwstream.images import ImageSource

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """A conversation with an answer.

    `messages` are `{"role", "content"}` with a string or a list of `{"type": "text" | "image"}`
    parts; the last one is the assistant's answer, as a string. `images` are consumed by the image
    parts in order: encoded bytes, or where they are. `keywords` are the spellings of which one
    must stand in a right answer (default: the whole answer). What follows is for evaluation alone,
    like `keywords`, and no part of the content.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[ImageSource, ...] = ()
    keywords: tuple[str, ...] = ()
    option: str = ""
    """Letter of the right option, where the question has lettered options."""
    subject: str = ""
    """Whom or what it is about: examples of one subject stay together when data are divided."""
    paraphrased_answer: str = ""
    """The right answer in other words, for the truth ratio."""
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers of the same form, for the truth ratio."""

    @property
    def answer(self) -> str:
        """Text of the last message."""
        return str(self.messages[-1]["content"])

    @property
    def question(self) -> str:
        """Text of the message before the answer, images left out."""
        content = self.messages[-2]["content"]
        parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        return " ".join(filter(None, parts))

    @property
    def prompt(self) -> tuple[dict[str, Any], ...]:
        """Every message before the answer."""
        return self.messages[:-1]

    def answered(self, answer: str) -> Example:
        """The same question with another answer."""
        return replace(self, messages=(*self.prompt, {"role": "assistant", "content": answer}))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content (text and image bytes), not of the id."""
        return digest_of({"messages": list(self.messages), "images": self.image_digests})

    @cached_property
    def image_digests(self) -> list[str]:
        """SHA-256 of the bytes of each image."""
        return [
            hashlib.sha256(image if isinstance(image, bytes) else image.read_bytes()).hexdigest()
            for image in self.images
        ]


class BadRow(NamedTuple):
    """A row that was left out, and why."""

    place: str
    reason: str


def question_answer(
    name: str,
    question: str,
    answer: str,
    images: Sequence[ImageSource] = (),
    keywords: Sequence[str] = (),
) -> Example:
    """A question with its images before it, and the answer."""
    content: Any = question
    if images:
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
    messages = ({"role": "user", "content": content}, {"role": "assistant", "content": answer})
    return Example(name, messages, tuple(images), tuple(keywords))


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
