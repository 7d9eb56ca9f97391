"""The paper's search for a strength (section 5.1), with gates as hooks on one loaded model.

Every setting is tried once on all questions; which fold a question is in is decided afterwards. A
line of the log per setting holds the score of every question, so a search that was stopped goes on
by being run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvwstream.accessor import LayerRange
from kvwstream.canonical import canonical_json
from kvwstream.checkpoint import Checkpoint
from kvwstream.errors import DataError, OptionError
from kvwstream.examples import Example
from kvwstream.journal import Journal
from kvwstream.models import environment_of, resolve_device
from kvwstream.pipelines.evaluate import CORRECT
from kvwstream.pipelines.recipe import check_base
from kvwstream.pipelines.trials import (
    KINDS,
    SCORES,
    VANILLA,
    Asking,
    Frozen,
    Maker,
    Trier,
    strength_of,
)
from kvwstream.pipelines.views import data_digest
from kvwstream.progress import Progress, Silent
from kvwstream.search import KEEP, Rule, Scores, Setting, Space, Trial, search, two_folds
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics


@dataclass(frozen=True)
class Sweep:
    """What is searched and by which questions it is judged."""

    model: Path
    statistics: str
    forget: Sequence[Example]
    """Questions about what is to be forgotten, in words that were not collected."""
    retain: Sequence[Example]
    """Questions about what is to stay."""
    score: str = CORRECT
    """What answers are judged by: one of `SCORES`."""
    low: float = 0.001
    high: float = 0.05
    layers: LayerRange | None = None
    """None searches the first layer in the first eighth, the last one in the last eighth."""
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further fields of a `Strength` and what each may be, e.g. `power`."""
    keep: float = KEEP
    oracle: Path | None = None
    """A model that never saw the forget data."""
    trials: int = 24
    """Settings that the search on each fold may look at."""
    seed: int = 0
    batch_size: int = 16
    max_new_tokens: int = 20
    dtype: str = "auto"
    device: str = "auto"

    @cached_property
    def stored(self) -> Statistics:
        """The statistics."""
        return Statistics.open(Location(self.statistics))

    @cached_property
    def folds(self) -> dict[str, list[int]]:
        """0 or 1 for each question of either kind: by subject, where examples name one."""
        return {
            kind: two_folds([e.subject or e.id for e in self.questions(kind)], self.seed)
            for kind in KINDS
        }

    def questions(self, kind: str) -> Sequence[Example]:
        """Those to forget or to retain."""
        return self.forget if kind == "forget" else self.retain

    def check(self) -> None:
        """`DataError` or `OptionError` for what cannot be searched; before any model is loaded."""
        for kind, folds in self.folds.items():
            if set(folds) != {0, 1}:
                raise DataError(
                    f"the {kind} questions cannot be divided into two folds: they are "
                    f"{len(folds)} of one subject; give more"
                )
        if self.score not in SCORES:
            raise OptionError(f"score {self.score}: choose {', '.join(SCORES)}")
        if self.trials < 1:
            raise OptionError(f"trials must be at least 1, got {self.trials}")
        Rule(1.0, self.keep)
        self.space(lambda setting: 1.0)
        for name, values in self.choices.items():
            for value in values:
                strength = strength_of({"gamma": 0.0, "start": 0, "stop": 0, name: value})
                strength.check_fits(self.stored)

    def space(self, scale: Callable[[Setting], float]) -> Space:
        """Gamma, layers and what else there is to choose."""
        count = 1 + max(site.layer for site in self.stored.sites)
        if self.layers:
            self.layers.check(count)
            ends: dict[str, list[int]] = {"start": [self.layers.start], "stop": [self.layers.stop]}
        else:
            first = max(1, -(-count // 8))
            ends = {"start": [*range(first)], "stop": [*range(count - first, count)]}
            ends["stop"] = [stop for stop in ends["stop"] if stop >= ends["start"][-1]]
        return Space(self.low, self.high, {**ends, **self.choices}, scale)

    @property
    def asking(self) -> Asking:
        """What every setting is asked."""
        questions = {kind: self.questions(kind) for kind in KINDS}
        how = (self.batch_size, self.max_new_tokens, self.dtype, self.device)
        return Asking(self.model, questions, self.folds, self.score, *how)

    def settings(self) -> dict[str, Any]:
        """What decides a line of the log. How long and where is searched does not."""
        return {
            "model": Checkpoint.open(self.model).digest,
            "statistics": self.stored.digest,
            **{kind: data_digest(self.questions(kind)) for kind in KINDS},
            "score": self.score,
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "dtype": self.dtype,
            **environment_of(resolve_device(self.device)),
        }


@dataclass(frozen=True)
class FoldResult:
    """What was chosen on one fold, and what it does on the other."""

    rule: Rule
    chosen: Trial | None
    """None where no setting keeps enough."""
    other_rule: Rule
    reported: Scores | None

    @property
    def holds(self) -> bool:
        """Whether the retain constraint holds on the other fold, too."""
        return self.reported is not None and self.other_rule.allows(self.reported)


@dataclass(frozen=True)
class Found:
    """Everything that a sweep found."""

    vanilla: Scores
    oracle: Scores | None
    rule: Rule
    """On all questions."""
    trials: list[Trial]
    """Every setting that was tried, on all questions, weakest gamma first."""
    folds: tuple[FoldResult, FoldResult]

    @property
    def best(self) -> Trial | None:
        """By the rule, on all questions."""
        return self.rule.best(self.trials)


def sweep(
    task: Sweep,
    *,
    out: Path | None = None,
    make_gates: Maker | None = None,
    progress: Progress | None = None,
) -> Found:
    """Search on either fold and report on the other; lines go to `out` as settings are tried.

    `make_gates` takes the place of the stored A where gates cannot be made of it. Raises
    `PlanMismatchError` for another model than was measured or a log of other questions, `DataError`
    where the model knows nothing before it is weakened.
    """
    progress = progress or Silent()
    task.check()
    check_base(task.stored, Checkpoint.open(task.model).digest, task.model)
    with Journal(out, task.settings()) as journal:
        trier = Trier(task.asking, task.stored.sites, journal, make_gates or Frozen(task.stored))
        oracle = trier.oracle(task.oracle) if task.oracle else None
        vanilla = trier.line(VANILLA)
        for fold in (0, 1):
            _check_known(trier.scores(vanilla, fold), task.score)
        rules = [
            Rule(
                trier.scores(vanilla, fold).retain,
                task.keep,
                trier.scores(oracle, fold).forget if oracle else None,
            )
            for fold in (0, 1, None)
        ]
        searched: list[list[Trial]] = []
        with progress.task("sweep", 2 * task.trials, "trials") as advance:
            for fold in (0, 1):

                def score(setting: Setting, fold: int = fold) -> Scores:
                    scores = trier.scores(trier.line(setting), fold)
                    advance(1)
                    return scores

                space = task.space(trier.scale)
                searched.append(
                    search(space, score, rules[fold], budget=task.trials, seed=task.seed)
                )
        everything = {canonical_json(dict(t.setting)): t.setting for made in searched for t in made}
        trials = [Trial(s, trier.scores(trier.line(s), None)) for s in everything.values()]
        results = []
        for fold, made in enumerate(searched):
            chosen = rules[fold].best(made)
            reported = trier.scores(trier.line(chosen.setting), 1 - fold) if chosen else None
            results.append(FoldResult(rules[fold], chosen, rules[1 - fold], reported))
        return Found(
            trier.scores(vanilla, None),
            trier.scores(oracle, None) if oracle else None,
            rules[2],
            sorted(trials, key=lambda trial: trial.setting["gamma"]),
            (results[0], results[1]),
        )


def _check_known(vanilla: Scores, score: str) -> None:
    """What is 0 before anything is done says nothing of what forgetting costs, or whether it works.

    95 % of nothing would be kept by a model that is destroyed.
    """
    for kind, value in zip(KINDS, vanilla, strict=True):
        if not value:
            raise DataError(
                f"the model as it is scores 0 on one half of the {kind} questions (by {score}), so "
                "no strength can be judged by them; give questions that it can answer, with a "
                "`keyword` in the data where an answer is a whole sentence, or another --score"
            )
