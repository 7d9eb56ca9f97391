"""The paper's search for a setting (section 5.1): a rule, a bisection, and Optuna for the rest.

Knows nothing of models: whoever asks says how a setting is scored. Everything follows from the seed
and the scores, so a search whose scores were kept goes on where it was by being run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvwstream.canonical import digest_of
from kvwstream.errors import OptionError

Setting = Mapping[str, Any]
KEEP = 0.95
"""The paper's share of the vanilla model's retain score."""
CLOSE = 1.06
"""A bisection ends when the two sides differ by less than this factor."""
FAIRLY_CLOSE = 1.25
"""The same for one of many proposals, so that there are many."""
STRIDE = 1.5
"""Factor of the steps from a guess of gamma towards the boundary."""
REFINING = 2
"""Trials of the budget that are kept for the best proposal's gamma, to make it `CLOSE`."""
PROPOSALS = 4
"""Proposals of Optuna per trial of the budget: it may repeat what is known, which costs nothing."""
ROUNDING = 1e-9
"""What 0.95 of a share of questions may be off by."""


class Scores(NamedTuple):
    """What a setting leaves: of what is to be forgotten (low is good) and of what is to stay."""

    forget: float
    retain: float


class Trial(NamedTuple):
    """A setting and its scores."""

    setting: Setting
    scores: Scores


@dataclass(frozen=True)
class Rule:
    """Among settings that keep enough, the strongest forgetting; given an oracle, the closest."""

    vanilla_retain: float
    """Retain score of the model before anything was done to it."""
    keep: float = KEEP
    """Share of it that must be left."""
    oracle_forget: float | None = None
    """Forget score of a model that never saw the forget data."""

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise OptionError(f"keep must be a share from 0 to 1, got {self.keep}")

    @property
    def bound(self) -> float:
        """The lowest retain score that is allowed."""
        return self.keep * self.vanilla_retain

    def allows(self, scores: Scores) -> bool:
        """Whether the retain constraint holds."""
        return scores.retain >= self.bound - ROUNDING

    def distance(self, scores: Scores) -> float:
        """How far the forgetting is from what is wanted: the oracle's, or none left."""
        return abs(scores.forget - (self.oracle_forget or 0.0))

    def too_strong(self, scores: Scores) -> bool:
        """Whether a weaker gamma is to be tried: too little stays, or enough is forgotten."""
        return not self.allows(scores) or scores.forget <= (self.oracle_forget or 0.0)

    def rank(self, scores: Scores) -> tuple[bool, float, float]:
        """Sorts scores, the best first: what is allowed by distance, then by what it keeps.

        What is not allowed comes behind, what keeps most before the rest.
        """
        if self.allows(scores):
            return False, self.distance(scores), -scores.retain
        return True, -scores.retain, 0.0

    def best(self, trials: Iterable[Trial]) -> Trial | None:
        """The allowed trial that ranks first and came first; None of none."""
        allowed = [trial for trial in trials if self.allows(trial.scores)]
        return min(allowed, key=lambda trial: self.rank(trial.scores), default=None)

    def loss(self, trials: Sequence[Trial]) -> float:
        """What a search minimises: the distance of the best, and how far from allowed if none is.

        What is kept decides between equal distances and never outweighs one.
        """
        best = self.best(trials)
        if best is None:
            return 2 - max(trial.scores.retain for trial in trials)
        return self.distance(best.scores) - 1e-3 * best.scores.retain


def two_folds(names: Sequence[str], seed: int = 0) -> list[int]:
    """0 or 1 for each name, equal names together, as many names in the one as in the other.

    Names are subjects, or ids of examples that have none. Which fold a name is in depends on `seed`
    and the set of names, not on their order.
    """
    drawn = sorted(set(names), key=lambda name: digest_of([seed, name]))
    fold = {name: number % 2 for number, name in enumerate(drawn)}
    return [fold[name] for name in names]


def bisection(low: float, high: float, points: int) -> Generator[float, bool]:
    """Gammas to try; send whether each was too strong.

    First `points` between the ends in equal ratios, then halves (of the logarithm) between the last
    one that was not too strong and the one after it, until they are `CLOSE`. Uses that accuracy
    falls as gamma grows; where it does not quite, the points beyond are known all the same.
    """
    grid = [_short(low * (high / low) ** (n / (points - 1))) for n in range(points)]
    verdicts = []
    for gamma in grid:
        verdicts.append((yield gamma))
    edges = [n for n in range(points - 1) if not verdicts[n] and verdicts[n + 1]]
    if edges:
        yield from _halves(grid[edges[-1]], grid[edges[-1] + 1], CLOSE)


def gallop(start: float, low: float, high: float) -> Generator[float, bool]:
    """The same from a guess on: in steps of `STRIDE` to where the verdict turns, then halves."""
    gamma = _short(min(max(start, low), high))
    too_strong = yield gamma
    stride = 1 / STRIDE if too_strong else STRIDE
    while low <= (following := _short(gamma * stride)) <= high:
        if (yield following) != too_strong:
            weak, strong = sorted((gamma, following))
            yield from _halves(weak, strong, FAIRLY_CLOSE)
            return
        gamma = following


def _halves(weak: float, strong: float, close: float) -> Generator[float, bool]:
    while strong / weak > close:
        middle = _short(math.sqrt(weak * strong))
        if (yield middle):
            strong = middle
        else:
            weak = middle


def _short(gamma: float) -> float:
    """Three digits: what stands in a command line is what was tried."""
    return float(f"{gamma:.3g}")


@dataclass(frozen=True)
class Space:
    """What is searched: gamma within a range, the rest among choices."""

    low: float
    high: float
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By name of the option. Numbers are ordered, so that their neighbours are thought alike."""
    scale: Callable[[Setting], float] = lambda setting: 1.0
    """Factor of the range of gamma for given choices, since some change the size of S."""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise OptionError(
                f"gammas must be like 0.001:0.05 (from:to, both above 0), got "
                f"{self.low:g}:{self.high:g}"
            )
        if empty := [name for name, values in self.choices.items() if not values]:
            raise OptionError(f"no choices for {', '.join(empty)}")

    @property
    def is_gamma_alone(self) -> bool:
        """Whether nothing else is left to choose."""
        return all(len(values) == 1 for values in self.choices.values())


def search(
    space: Space,
    score: Callable[[Setting], Scores],
    rule: Rule,
    *,
    budget: int,
    points: int = 5,
    seed: int = 0,
) -> list[Trial]:
    """At most `budget` trials, in the order in which they were made.

    Gamma alone: `points` over the range, then a bisection. With more to choose, Optuna's TPE
    proposes the choices and each proposal is judged by the best of a rough bisection of its own,
    which begins at the gamma that was best before; the best of all is bisected further.
    `OptionError` where Optuna is needed and not installed.
    """
    trials: list[Trial] = []

    def follow(chosen: Setting, gammas: Generator[float, bool], budget: int) -> list[Trial]:
        """The trials of a bisection for fixed choices, as far as the budget goes."""
        made: list[Trial] = []
        gamma: float | None = next(gammas)
        while gamma is not None and len(trials) < budget:
            setting = {**chosen, "gamma": gamma}
            made.append(Trial(setting, score(setting)))
            trials.append(made[-1])
            try:
                gamma = gammas.send(rule.too_strong(made[-1].scores))
            except StopIteration:
                gamma = None
        return made

    if space.is_gamma_alone:
        chosen = {name: values[0] for name, values in space.choices.items()}
        factor = space.scale(chosen)
        follow(chosen, bisection(space.low * factor, space.high * factor, points), budget)
        return trials
    study = _study(seed)
    losses: dict[tuple[int, ...], float] = {}
    guess, rough = math.sqrt(space.low * space.high), max(1, budget - REFINING)
    for _ in range(PROPOSALS * budget):
        if len(trials) == rough:
            break
        proposal = study.ask()
        places = tuple(_suggest(proposal, *item) for item in space.choices.items())
        if places not in losses:
            items = zip(space.choices.items(), places, strict=True)
            chosen = {name: values[place] for (name, values), place in items}
            factor = space.scale(chosen)
            gammas = gallop(guess * factor, space.low * factor, space.high * factor)
            made = follow(chosen, gammas, rough)
            losses[places] = rule.loss(made)
            if best := rule.best(made):
                guess = best.setting["gamma"] / factor
        study.tell(proposal, losses[places])
    if best := rule.best(trials):
        chosen = {name: best.setting[name] for name in space.choices}
        stronger = [
            trial.setting["gamma"]
            for trial in trials
            if {**trial.setting, "gamma": 0} == {**chosen, "gamma": 0}
            and trial.setting["gamma"] > best.setting["gamma"]
        ]
        if stronger and not rule.too_strong(best.scores):
            follow(chosen, _halves(best.setting["gamma"], min(stronger), CLOSE), budget)
    return trials


def _study(seed: int) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise OptionError(
            "a search over more than gamma needs the package optuna: pip install "
            "'kvwstream[sweep]'; or fix the layers with --layers and the power with --power"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=2)
    return optuna.create_study(sampler=sampler)


def _suggest(proposal: Any, name: str, values: Sequence[Any]) -> int:
    """Place of the proposed value among the choices."""
    ordered = all(isinstance(value, int | float) for value in values)
    if ordered:
        return int(proposal.suggest_int(name, 0, len(values) - 1))
    return int(proposal.suggest_categorical(name, range(len(values))))
