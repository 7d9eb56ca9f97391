"""The log of trials, what the settings of a search mean, and what the rule chooses from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.methods import gradient
from benchmarks.methods.search import Point, search
from kvwstream.search import Rule, Scores

Values = dict[str, Any]
TRAINING: tuple[Values, ...] = (
    {"weight": 1.0},
    {"weight": 2.0, "steps": 30},
    {"weight": 0.7},
    {"weight": 0.7, "steps": 30},
)
"""Second settings of gradient methods: lambda, and steps where they are not 10."""
LAYERS = ("1:27", "3:26", "0:29")
"""Starts in the first and ends in the last eighth of 30 layers: usual, mild, strong."""
KVW = {"KVW": {}, "KVW A²": {"power": 2.0}, "KVW energy": {"shape": "energy"}}
"""Rows of KVW and what they add to gamma and layers."""
LADDERS = {
    "MMU": (5e-7, 0.5),
    **dict.fromkeys(gradient.LORA_STEPS, (1.25e-5, 0.5)),
    "MMU*": (1.25e-5, 0.5),
    "MANU": (1e-4, 0.6),
    "KVW A²": (0.002, 0.6),
    "KVW energy": (0.0002, 1.0),
    "all, no retain": (0.0005, 0.6),
    "answers, no retain": (0.0005, 0.6),
}
"""The lowest strength, and how often the next one is doubled; else `USUAL_GAMMAS`."""
USUAL_GAMMAS = (0.004, 0.45)
METHODS = (*gradient.METHODS, "MANU", *KVW)
ABLATION = ("all, no retain", "answers, no retain", "all, retain")
"""Table 3 without its last row, which is KVW."""


def settings_at(method: str, point: Point) -> Values:
    """What a rung of a method's ladder and a second setting mean."""
    lowest, step = LADDERS.get(method, USUAL_GAMMAS)
    strength = float(f"{lowest * 2 ** (step * (point.rung - 1)):.3g}")
    if method in gradient.METHODS:
        return {"learning_rate": strength, **TRAINING[point.second]}
    if method == "MANU":
        return {"share": strength, "layers": LAYERS[::-1][point.second]}
    return {"gamma": strength, "layers": LAYERS[point.second]}


def num_seconds(method: str) -> int:
    """Second settings of a method: none for GA, which retains nothing, and in the ablation."""
    return 1 if method == "GA" or method in ABLATION else 3


def run_search(measure: Callable[[Point], Scores], rule: Rule, method: str, budget: int) -> None:
    """A method's search."""
    monotone = method == "GA" or method not in gradient.METHODS
    search(measure, rule, budget, num_seconds(method), monotone=monotone)


@dataclass(frozen=True)
class Log:
    """Finished trials of every case, a JSON line each."""

    path: Path

    def read(self) -> list[Values]:
        """All trials; a line that a killed process left unfinished does not count."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def add(self, trial: Values) -> None:
        """Append a line, after cutting off an unfinished one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in [*self.read(), trial])
        draft = self.path.with_suffix(".draft")
        draft.write_text(whole, encoding="utf-8")
        draft.replace(self.path)


def score_of(trial: Values, fold: int) -> Scores:
    """What a trial scored: forget on one fold, retain on all, as in CLEAR's published folds."""
    retain = fmean(trial["scores"][f"retain_{either}"] for either in (1, 2))
    return Scores(trial["scores"][f"forget_{fold}"], retain)


@dataclass(frozen=True)
class Results:
    """The finished trials of one case."""

    trials: Sequence[Values]

    @classmethod
    def of(cls, log: Log, case: str) -> Results:
        """Those of `case`."""
        return cls([trial for trial in log.read() if trial["case"] == case])

    def find(self, method: str, settings: Values) -> Values | None:
        """A finished trial."""
        wanted = (method, settings)
        return next((t for t in self.trials if (t["method"], t["settings"]) == wanted), None)

    def by(self, method: str) -> list[Values]:
        """Every trial of a method."""
        return [trial for trial in self.trials if trial["method"] == method]

    def rule(self, fold: int) -> Rule:
        """The paper's, with the vanilla and the oracle's scores on this fold."""
        vanilla, oracle = self.find("vanilla", {}), self.find("oracle", {})
        if vanilla is None:
            raise LookupError("the vanilla model was not measured yet")
        target = oracle["scores"][f"forget_{fold}"] if oracle else None
        return Rule(score_of(vanilla, fold).retain, oracle_forget=target)

    def searched(self, method: str, fold: int, budget: int) -> list[Values]:
        """The trials of a fold's search in its order, as far as they are finished.

        The search is run again on the log, so that nothing else that was tried is chosen from.
        """
        return self._search(method, fold, budget)[0]

    def finished(self, method: str, budget: int) -> bool:
        """Whether both folds' searches came to their end."""
        return all(self._search(method, fold, budget)[1] for fold in (1, 2))

    def _search(self, method: str, fold: int, budget: int) -> tuple[list[Values], bool]:
        used: list[Values] = []

        def look_up(point: Point) -> Scores:
            trial = self.find(method, settings_at(method, point))
            if trial is None:
                raise LookupError(f"{method} at {point} is still to be tried")
            used.append(trial)
            return score_of(trial, fold)

        rule = self.rule(fold)
        try:
            run_search(look_up, rule, method, budget)
        except LookupError:
            return used, False
        return used, True

    def chosen(self, method: str, fold: int, budget: int) -> Values | None:
        """What the rule chooses on a fold; None where the method was not tried yet."""
        trials = self.searched(method, fold, budget)
        if not trials:
            return None
        rule = self.rule(fold)
        return min(trials, key=lambda trial: rule.rank(score_of(trial, fold)))
