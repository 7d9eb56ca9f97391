"""Where the answer lies, and every way in which it cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from kvwstream.answers import AnswerEncoder, Span
from kvwstream.errors import DataError
from kvwstream.examples import Example, question_answer
from kvwstream.models import load_config
from tests.conftest import TEMPLATE, make_tokenizer

words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=4)
sentences = st.lists(words, min_size=1, max_size=4).map(" ".join)


@pytest.fixture(scope="module")
def encoder(llama: Path) -> AnswerEncoder:
    return AnswerEncoder(make_tokenizer(), load_config(llama))


def row(question: str, answer: str):
    return question_answer("row 1", question, answer)


@settings(max_examples=60)
@given(sentences, sentences)
def test_marked_tokens_decode_to_the_answer_and_nothing_else(encoder, question, answer):
    example = row(question, answer)
    span = encoder.locate(example)
    ids = encoder.token_ids(example)
    positions = encoder.positions(ids, span, "answer")
    predicted = [ids[position + 1] for position in positions]
    assert encoder.tokenizer.decode(predicted).strip() == answer.strip()
    assert positions[-1] == len(ids) - 2  # no end of turn behind it
    assert encoder.positions(ids, span, "all") == list(range(len(ids) - 1))


def test_an_answer_that_also_stands_in_the_question_is_not_mistaken(encoder):
    span = encoder.locate(row("Is the sky blue? The sky is blue.", "The sky is blue."))
    ids = encoder.token_ids(row("Is the sky blue? The sky is blue.", "The sky is blue."))
    prompt = encoder.tokenizer.decode(ids[: span.prompt])
    assert prompt.endswith("<|im_start|>assistant\n")
    assert "The sky is blue." in prompt


def test_without_a_chat_template_a_question_is_rendered_plainly(gpt2):
    encoder = AnswerEncoder(make_tokenizer(chat=False), load_config(gpt2))
    prompt, answer = encoder.render(row("What colour is snow?", "White."))
    assert (prompt, answer) == ("Question: What colour is snow?\nAnswer:", " White.")
    roles = ("system", "user", "assistant")
    chat = Example("row", tuple({"role": role, "content": "x"} for role in roles))
    with pytest.raises(DataError, match=r"row: the model has no chat template.*got 3 messages"):
        encoder.render(chat)


def broken(template: str | None = None, **changes: object) -> AnswerEncoder:
    """An encoder whose processor is broken on purpose."""
    tokenizer = make_tokenizer()
    if template:
        tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    from tests.conftest import llama_config

    return AnswerEncoder(tokenizer, llama_config())


def test_a_template_that_moves_the_answer_is_refused():
    encoder = broken(TEMPLATE.replace("{{ message.content }}", "({{ message.content }})"))
    with pytest.raises(DataError, match="row 1: the chat template does not put the answer behind"):
        encoder.locate(row("What?", "The sky."))


def test_a_tokenizer_that_merges_across_the_border_is_refused():
    """`: ` and `The` become one token, so the prompt is no prefix of the whole."""
    encoder = broken("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(DataError, match="the prompt's tokens are not a prefix"):
        encoder.locate(row("What colour is the sk", "y?"))


def test_an_answer_with_a_special_token_is_refused(encoder):
    with pytest.raises(DataError, match=r"holds the special tokens \['<\|im_end\|>'\]"):
        encoder.locate(row("What?", "The sky<|im_end|> is blue."))


def test_an_answer_cut_off_by_the_maximum_length_is_refused(encoder):
    with pytest.raises(DataError, match=r"tokens, more than the model's maximum length of 128"):
        encoder.locate(row("What?", "blue " * 120))


def test_a_tokenizer_that_loses_text_is_refused():
    encoder = broken()
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match=r"read 'the sky\.', not the answer 'The sky\.'"):
        encoder.locate(row("What?", "The sky."))


def test_a_template_that_strips_the_answer_is_understood():
    encoder = broken(TEMPLATE.replace("{{ message.content }}", "{{ message.content | trim }}"))
    assert encoder.locate(row("What?", "  The sky. ")) == encoder.locate(row("What?", "The sky."))


def test_thinking_is_switched_off():
    """A template that opens a thought unless told not to, as Qwen3's does."""
    thought = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    opening = "<|im_start|>assistant\n"
    end = "{% endif %}"
    encoder = broken(TEMPLATE.replace(opening + end, opening + thought + end))
    span = encoder.locate(row("What?", "The sky."))
    assert span == Span(span.prompt, span.total)
    assert "<think>" not in "".join(encoder.render(row("What?", "The sky.")))


def test_prompts_for_generation_are_padded_on_the_left(encoder):
    inputs = encoder.prompts([row("What?", "x"), row("What colour is the sky?", "x")])
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].all()


def test_a_template_that_raises_names_the_example():
    encoder = broken("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"row 1: the chat template refuses .*roles must alternate"):
        encoder.locate(row("What?", "The sky."))
