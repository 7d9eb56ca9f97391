"""One search for every method: the paper's rule under one budget of evaluations (section 5.1).

Among the trials that keep at least 95 % of the vanilla retain score the strongest forgetting wins;
with an oracle the closest to its forget score. Every method has a ladder of strengths (learning
rate, gamma, share of neurons) and a second setting (lambda, layers). Gates and pruning do more harm
the stronger they are, so that their ladder is bisected; a higher learning rate also learns the
retain data better, so that some learning rates are taken far apart, then the best one's neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

RUNGS = 15
"""Strengths 1 to 15; 0 is the vanilla model. Four bisections find one."""
KEEP = 0.95


@dataclass(frozen=True)
class Score:
    """Accuracies on one fold."""

    forget: float
    retain: float


@dataclass(frozen=True)
class Rule:
    """What is wanted: the vanilla retain score to keep, the forget score to come close to."""

    vanilla: Score
    oracle: float = 0.0
    keep: float = KEEP

    def allows(self, score: Score) -> bool:
        """Whether enough is retained."""
        return score.retain >= self.keep * self.vanilla.retain - 1e-9

    def distance(self, score: Score) -> float:
        """From the oracle's forget score; without an oracle that is 0: forget everything."""
        return abs(score.forget - self.oracle)

    def best(self, scores: Sequence[Score]) -> int:
        """Index of the winner; where nothing is allowed, of what retains most."""
        allowed = [i for i, score in enumerate(scores) if self.allows(score)]
        if not allowed:
            return max(range(len(scores)), key=lambda i: scores[i].retain)
        return min(allowed, key=lambda i: (self.distance(scores[i]), -scores[i].retain))


@dataclass(frozen=True)
class Point:
    """A rung of the ladder and which of the second settings."""

    rung: int
    second: int = 0


FIRST = (Point(4), Point(8), Point(8, 1), Point(11, 1))
"""Learning rates that are tried first: few steps, then more of them with more retain weight."""


def search(
    measure: Callable[[Point], Score],
    rule: Rule,
    budget: int,
    num_seconds: int,
    *,
    monotone: bool = True,
) -> list[tuple[Point, Score]]:
    """At most `budget` trials, in the order they were made.

    `monotone` strengths are bisected; a trial that is allowed and reaches the oracle's forget score
    ends the way up. Nothing more is tried once a trial cannot be beaten.
    """
    plan = _bisection(rule, budget, num_seconds) if monotone else _spread(rule, num_seconds)
    tried: Tried = []
    point = next(plan)
    while len(tried) < budget and not _done(tried, rule):
        tried.append((point, measure(point)))
        try:
            point = plan.send(tried)
        except StopIteration:
            break
    return tried


Tried = list[tuple[Point, Score]]
Plan = Generator[Point, Tried]
"""Yields what to try next, and is sent everything that was tried."""


def _bisection(rule: Rule, budget: int, num_seconds: int) -> Plan:
    low, high, best = 0, RUNGS + 1, 1
    last = budget - 1 if num_seconds > 1 and budget > 2 else budget
    for _ in range(last):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        tried = yield Point(middle)
        score = tried[-1][1]
        if rule.allows(score) and score.forget > rule.oracle:
            low = middle
        else:
            high = middle
        best = _best(tried, rule).rung
    for second in range(1, num_seconds):
        # Second settings are usual, mild, strong; a mild one bears a higher rung.
        yield Point(min(RUNGS, best + (2 if second == 1 else 0)), second)


def _spread(rule: Rule, num_seconds: int) -> Plan:
    for point in FIRST:
        if point.second < num_seconds:
            tried = yield point
    best = _best(tried, rule)
    for step in (-2, 2, -1, 1):
        beside = Point(min(RUNGS, max(1, best.rung + step)), best.second)
        if beside not in [point for point, _ in tried]:
            tried = yield beside
    if num_seconds > 2:
        yield Point(_best(tried, rule).rung, 2)


def _best(tried: Tried, rule: Rule) -> Point:
    return tried[rule.best([score for _, score in tried])][0]


def _done(tried: Sequence[tuple[Point, Score]], rule: Rule) -> bool:
    """Nothing can be better than the oracle's own score with everything retained."""
    return any(rule.distance(s) == 0 and s.retain >= rule.vanilla.retain for _, s in tried)
