"""The log of trials, and what the rule chooses from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.methods.search import Point
from benchmarks.paper.settings import Values, run_search, settings_at
from kvwstream.search import Rule, Scores


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

    @property
    def num_layers(self) -> int:
        """Of the model; `LookupError` before the vanilla model was measured."""
        return int(self._vanilla["num_layers"])

    @property
    def _vanilla(self) -> Values:
        found = self.find("vanilla", {})
        if found is None:
            raise LookupError("the vanilla model was not measured yet")
        return found

    def rule(self, fold: int) -> Rule:
        """The paper's, with the vanilla and the oracle's scores on this fold."""
        oracle = self.find("oracle", {})
        target = oracle["scores"][f"forget_{fold}"] if oracle else None
        return Rule(score_of(self._vanilla, fold).retain, oracle_forget=target)

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
            trial = self.find(method, settings_at(method, point, self.num_layers))
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
