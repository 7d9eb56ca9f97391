"""A conversation as text, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from kvwstream.errors import DataError, first_line
from kvwstream.examples import Example


class Rendered(NamedTuple):
    """Text of a conversation; what the model reads is the two in one."""

    prompt: str
    answer: str
    """With the white space that the template puts between."""


@contextmanager
def naming(name: str, what: str) -> Iterator[None]:
    """Templates and processors raise what they like; say which example it was."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: {what}: {first_line(error)}") from error


def render_by_template(processor: Any, example: Example, *, with_images: bool) -> Rendered:
    """Prompt and answer as the template of a processor `with_images`, or of a tokenizer, puts them.

    Thinking is switched off. `DataError` if the answer does not stand right behind the prompt,
    white space apart.
    """
    # Given a plain string, some processors' templates render an empty question; and only a
    # tokenizer's template takes options of its own without a word.
    options = {} if with_images else {"enable_thinking": False}
    messages = [_parted(message) if with_images else message for message in example.messages]
    apply = partial(processor.apply_chat_template, tokenize=False, **options)
    with naming(example.id, "the chat template refuses the conversation"):
        prompt: str = apply(messages[:-1], add_generation_prompt=True)
        whole: str = apply(messages)
    rest = whole.removeprefix(prompt) if whole.startswith(prompt) else ""
    gap = rest[: len(rest) - len(rest.lstrip())]
    stripped = example.answer.strip()
    for answer in (example.answer.lstrip(), stripped):
        if rest.startswith(gap + answer):
            return Rendered(prompt, gap + answer)
    # Some templates ask with other white space than they answer with; what counts is what the
    # model sees when it is asked.
    if "".join(whole.split()).startswith("".join((prompt + stripped).split())):
        return Rendered(prompt, stripped)
    raise DataError(
        f"{example.id}: the chat template does not put the answer behind the prompt: "
        f"expected {prompt[-40:] + stripped[:40]!r}, got {whole[-120:]!r}"
    )


def _parted(message: dict[str, Any]) -> dict[str, Any]:
    """The content as a list of parts, of which text is one kind."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return message
