"""How right a response is by its text alone, under the benchmarks' names. Every score is in [0, 1].

`text_scores` has those that any response with an answer has; what needs more (an option's letter,
spellings) is a function of its own. What needs the model's probabilities is in `probabilities.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

ROUGES = ("rouge1", "rouge2", "rougeL")
TEXT_SCORES = (
    "containment",
    "cloze",
    "bleu",
    *(f"{rouge}_{part}" for rouge in ROUGES for part in ("recall", "f")),
)
"""Names of what `text_scores` gives."""


def clean(text: str) -> str:
    """Letters and digits of any script in one case: CLEAR's cleaning, extended beyond ASCII."""
    return "".join(filter(str.isalnum, text.casefold()))


def clean_ascii(text: str) -> str:
    """CLEAR's cleaning to the letter: what is not a-z, A-Z or 0-9 goes, the rest in lower case."""
    return re.sub("[^a-zA-Z0-9]", "", text).lower()


def contains(response: str, keywords: Sequence[str]) -> bool:
    """Whether some keyword, cleaned by `clean`, stands in the response, cleaned."""
    return any(word in clean(response) for word in map(clean, keywords) if word)


def chooses(response: str, letter: str) -> bool:
    """Option-letter accuracy of one response: its first letter or digit is the option's.

    KVW's evaluation of CLEAR. MLLMU-Bench's takes the first character as it stands, which is the
    same where the response begins with the letter.
    """
    return clean(response)[:1] == clean(letter)


def containment(response: str, answer: str) -> float:
    """CLEAR's containment accuracy: the answer stands in the response, both by `clean_ascii`.

    An answer without an ASCII letter or digit is in no response; in the published script it is in
    every one.
    """
    return float(bool(clean_ascii(answer)) and clean_ascii(answer) in clean_ascii(response))


def cloze(response: str, answer: str) -> float:
    """MLLMU-Bench's cloze accuracy: the answer stands in the response, both in lower case."""
    return float(answer.strip().lower() in response.lower())


def rouge(response: str, answer: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L with Porter stemming, by the package `rouge-score`.

    Recall is what CLEAR and TOFU report, the F-measure what MLLMU-Bench does. Letters beyond ASCII
    count for nothing there.
    """
    scores = _scorer().score(answer, response)
    return {
        f"{name}_{part}": value
        for name, score in scores.items()
        for part, value in (("recall", score.recall), ("f", score.fmeasure))
    }


def bleu(response: str, answer: str) -> float:
    """Sentence BLEU-4 as MLLMU-Bench has it: words by white space, smoothing method 1 of `nltk`."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method1
    score = sentence_bleu([answer.split()], response.split(), smoothing_function=smoothing)
    return float(score)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGES), use_stemmer=True)


def text_scores(response: str, answer: str) -> dict[str, float]:
    """Every score of this module that needs a response and its answer alone, by name."""
    single: dict[str, Callable[[str, str], float]] = {
        "containment": containment,
        "cloze": cloze,
        "bleu": bleu,
    }
    scores = {name: score(response, answer) for name, score in single.items()}
    return {**scores, **rouge(response, answer)}
