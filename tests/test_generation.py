"""Greedy answers in batches of like length."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwstream.answers import AnswerEncoder
from kvwstream.examples import question_answer
from kvwstream.generation import generate_answers, length_batches
from kvwstream.models import load_model
from kvwstream.readers import read_examples


@pytest.fixture(scope="module")
def answering(llama):
    loaded = load_model(llama)
    return loaded, AnswerEncoder(loaded.processor, loaded.model.config)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_answers_come_in_the_order_given_whatever_the_batches(answering, data, batch_size):
    loaded, encoder = answering
    examples = read_examples(str(data["retain"]))
    alone = [generate_answers(loaded, encoder, [e], max_new_tokens=6)[0] for e in examples]
    together = generate_answers(loaded, encoder, examples, batch_size=batch_size, max_new_tokens=6)
    assert together == alone
    assert len(set(alone)) > 1  # an order could be told


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 6))
def test_batches_hold_everything_once_and_pad_least(answering, lengths, batch_size):
    _, encoder = answering
    examples = [question_answer(str(n), "sky " * n, "blue") for n in lengths]
    batches = length_batches(encoder, examples, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(examples)))
    assert all(len(batch) <= batch_size for batch in batches)
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths, reverse=True)


def test_rows_that_interact_go_one_by_one(answering, data):
    loaded, _ = answering
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    encoder.rows_interact = True
    examples = read_examples(str(data["forget"]))
    batches = length_batches(encoder, examples, 16)
    assert [len(batch) for batch in batches] == [1] * len(examples)


def test_finished_examples_are_told(answering, data):
    told: list[int] = []
    examples = read_examples(str(data["forget"]))
    generate_answers(*answering, examples, batch_size=2, max_new_tokens=1, advance=told.append)
    assert told == [2, 2, 1]
