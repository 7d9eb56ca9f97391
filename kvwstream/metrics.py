"""How right a response is, by the benchmarks' measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rouge(NamedTuple):
    """ROUGE-L with Porter stemming: F-measure (MLLMU-Bench) and recall (CLEAR, TOFU)."""

    f_measure: float
    recall: float


def clean(text: str) -> str:
    """Letters and digits in one case: CLEAR's cleaning, extended beyond ASCII."""
    return "".join(filter(str.isalnum, text.casefold()))


def contains(response: str, keywords: Sequence[str]) -> bool:
    """Containment accuracy of one response: some keyword, cleaned, stands in it, cleaned."""
    return any(word in clean(response) for word in map(clean, keywords) if word)


def chooses(response: str, letter: str) -> bool:
    """Option-letter accuracy of one response: its first letter or digit is the option's."""
    return clean(response)[:1] == clean(letter)


def rouge_l(response: str, answer: str) -> Rouge:
    """ROUGE-L of a response against its answer, by the package `rouge-score`."""
    from rouge_score.rouge_scorer import RougeScorer

    score = RougeScorer(["rougeL"], use_stemmer=True).score(answer, response)["rougeL"]
    return Rouge(score.fmeasure, score.recall)
