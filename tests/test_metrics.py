"""Scores of a response's text: hand-computed cases, and the packages that define them."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from kvwstream.metrics import (
    TEXT_SCORES,
    bleu,
    chooses,
    clean,
    cloze,
    containment,
    contains,
    rouge,
    text_scores,
)


@pytest.mark.parametrize(
    ("response", "keywords", "right"),
    [
        ("The capital is Paris.", ["Paris"], True),
        ("the capital is PARIS", ["Paris"], True),
        ("São Tomé it is", ["sao tome", "São Tomé"], True),
        ("New-York", ["New York"], True),
        ("It is 東京.", ["東京"], True),
        ("London", ["Paris", "Rome"], False),
        ("", ["Paris"], False),
    ],
)
def test_containment(response, keywords, right):
    assert contains(response, keywords) is right


@given(st.text(), st.text(), st.text(min_size=1).filter(clean))
def test_whatever_contains_the_keyword_is_right(before, after, keyword):
    assert contains(before + keyword + after, [keyword])
    assert not contains("", [keyword])


@pytest.mark.parametrize(
    ("response", "letter", "right"),
    [("B", "B", True), ("b. pilot", "B", True), ("(B)", "B", True), ("A cab", "B", False)],
)
def test_an_option_is_chosen_by_its_letter_alone(response, letter, right):
    assert chooses(response, letter) is right


def test_a_keyword_of_signs_is_in_no_response():
    assert not contains("anything", ["?!"])


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("This is Ann-Marie Lee.", "Ann Marie Lee", 1),
        ("THIS IS ANNMARIELEE", "Ann-Marie Lee", 1),
        ("Jose Garcia", "José García", 0),  # "jos garca" for them
        ("Jos Garca", "José García", 1),
        ("Ann", "Ann Lee", 0),
        ("anything", "東京", 0),  # nothing is left of it
    ],
)
def test_containment_is_cleaned_as_clear_does(response, answer, right):
    assert containment(response, answer) == right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [("He lives in ROME.", "Rome", 1), ("Rome", "Rome.", 0), ("New-York", "New York", 0)],
)
def test_a_cloze_answer_stands_in_the_response_as_it_is_spelt(response, answer, right):
    assert cloze(response, answer) == right


def test_rouge_by_hand():
    scores = rouge("the cat sat on a mat", "the cat sat on the mat today")
    # Seven words of the answer, six of the response; the, cat, sat, on, mat are common (the twice
    # in the answer, once in the response); pairs: the cat, cat sat, sat on.
    assert scores["rouge1_recall"] == pytest.approx(5 / 7)
    assert scores["rouge1_f"] == pytest.approx(2 * 5 / (6 + 7))
    assert scores["rouge2_recall"] == pytest.approx(3 / 6)
    assert scores["rouge2_f"] == pytest.approx(2 * 3 / (5 + 6))
    assert scores["rougeL_recall"] == pytest.approx(5 / 7)
    assert scores["rougeL_f"] == pytest.approx(2 * 5 / (6 + 7))


VOCABULARY = ["the", "cats", "sat", "on", "mats", "and", "running", "ran"]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=12)


@given(WORDS, WORDS)
def test_rouge_is_that_of_the_package(response, answer):
    texts = " ".join(answer), " ".join(response)
    for name, score in RougeScorer(["rouge1", "rouge2", "rougeL"], True).score(*texts).items():
        found = rouge(texts[1], texts[0])
        assert found[f"{name}_recall"] == score.recall
        assert found[f"{name}_f"] == score.fmeasure


def test_bleu_by_hand():
    # Precisions 3/4, 2/3, 1/2 and, smoothed, 0.1/1; one word shorter than the answer.
    by_hand = exp(1 - 5 / 4) * (3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** (1 / 4)
    assert bleu("a b c x", "a b c d e") == pytest.approx(by_hand)
    assert bleu("a b c d e", "a b c d e") == pytest.approx(1)
    assert bleu("", "a b") == 0


@given(WORDS.filter(len), WORDS.filter(len))
def test_bleu_is_that_of_the_package(response, answer):
    expected = sentence_bleu([answer], response, smoothing_function=SmoothingFunction().method1)
    assert bleu(" ".join(response), " ".join(answer)) == pytest.approx(expected)


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_are_shares(response, answer):
    assert all(0 <= score <= 1 + 1e-12 for score in text_scores(response, answer).values())


def test_the_names_are_those_of_the_scores():
    assert sorted(TEXT_SCORES) == sorted(text_scores("a response", "an answer"))
