"""Two evaluations of the same questions, example by example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvwstream.errors import DamageError, DataError
from kvwstream.examples import Example
from kvwstream.journal import parse_rows

Key = tuple[str, str, str]
"""State of the model, view, id of the example; the first two are empty in a plain list."""


class Flip(NamedTuple):
    """One question that is answered right in one evaluation and wrong in the other."""

    state: str
    view: str
    id: str
    question: str
    first: str
    second: str
    lost: bool
    """Right in the first and wrong in the second."""


@dataclass(frozen=True)
class Comparison:
    """Questions that stand in both."""

    right: dict[Key, tuple[bool, bool]]
    """Whether each is answered right, in the first and in the second."""
    flips: list[Flip]
    alone: tuple[int, int]
    """Number of questions that stand in the first alone, in the second alone."""

    def counts(self) -> dict[tuple[str, str], tuple[int, int, int, int]]:
        """By state and view: right in both, lost, gained, wrong in both."""
        table: dict[tuple[str, str], list[int]] = {}
        places = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}
        for (state, view, _), pair in self.right.items():
            table.setdefault((state, view), [0, 0, 0, 0])[places[pair]] += 1
        return {key: (row[0], row[1], row[2], row[3]) for key, row in table.items()}


def compare(first: Path, second: Path) -> Comparison:
    """What `evaluate --out` wrote twice. `DataError` if they share no question, or ask an id
    another question."""
    one, two = _read(first), _read(second)
    shared = [key for key in one if key in two]
    if not shared:
        raise DataError(f"{first} and {second} share no question; nothing can be compared")
    flips = []
    for key in shared:
        a, b = one[key], two[key]
        if a["question"] != b["question"]:
            raise DataError(f"{second}: asks {key[2]!r} another question than {first} does")
        if a["correct"] != b["correct"]:
            answers = a["response"], b["response"]
            flips.append(Flip(*key, a["question"], *answers, lost=a["correct"]))
    right = {key: (one[key]["correct"], two[key]["correct"]) for key in shared}
    return Comparison(right, flips, (len(one) - len(shared), len(two) - len(shared)))


def _read(path: Path) -> Mapping[Key, dict[str, Any]]:
    try:
        rows = parse_rows(path.read_bytes(), path)
        return {
            (row.get("state", ""), row.get("view", ""), row["id"]): row
            for row in rows
            if "correct" in row  # others hold scores without a response
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except KeyError as error:
        raise DamageError(f"{path}: a line has no {error}; not what `evaluate` wrote") from error


def read_truth_ratios(path: Path, forget: Sequence[Example]) -> list[float]:
    """What forget quality compares, of the forget data as the oracle's `evaluate --out` has them.

    `DataError` if they have no wrong answers, or the oracle was asked something else.
    """
    if not any(example.perturbed_answers for example in forget):
        raise DataError(
            "forget quality compares truth ratios, and the forget data have no wrong answers "
            "(`perturbed_answers`): leave --oracle out"
        )
    rows = [
        row
        for (state, view, _), row in _read(path).items()
        if view in ("", "forget") and state in ("", "as it is")
    ]
    theirs = Counter((row["question"], row["answer"]) for row in rows)
    ours = Counter((example.question, example.answer) for example in forget)
    if theirs != ours:
        raise DataError(
            f"{path}: holds {theirs.total()} answers to forget data, {(theirs & ours).total()} of "
            f"them to the {ours.total()} questions asked here; evaluate the oracle on the same data"
        )
    return [row["truth_ratio_geometric"] for row in rows if "truth_ratio_geometric" in row]
