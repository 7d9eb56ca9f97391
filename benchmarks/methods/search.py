"""One search for every method: the paper's rule under one budget of evaluations (section 5.1).

Among the trials that keep at least 95 % of the vanilla retain score the strongest forgetting wins;
with an oracle the closest to its forget score. Every method has a ladder of strengths (learning
rate, gamma, share of neurons), along which forgetting and damage both grow, so that it is bisected;
what is left of the budget tries other second settings (lambda, layers) around the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def search(
    measure: Callable[[Point], Score], rule: Rule, budget: int, num_seconds: int
) -> list[tuple[Point, Score]]:
    """At most `budget` trials, in the order they were made.

    A trial that is allowed and reaches the oracle's forget score ends the bisection upwards.
    """
    tried: list[tuple[Point, Score]] = []

    def attempt(point: Point) -> Score:
        score = measure(point)
        tried.append((point, score))
        return score

    low, high = 0, RUNGS + 1
    bisections = budget - 1 if num_seconds > 1 and budget > 2 else budget
    while high - low > 1 and len(tried) < bisections:
        middle = (low + high) // 2
        score = attempt(Point(middle))
        if rule.allows(score) and score.forget > rule.oracle:
            low = middle
        else:
            high = middle
    best = tried[rule.best([score for _, score in tried])][0].rung if tried else 1
    for second in range(1, num_seconds):
        # The second settings go from mild to strong; a mild one bears a higher rung.
        point = Point(min(RUNGS, best + (2 if second == 1 else 0)), second)
        if len(tried) < budget and not _done(tried, rule):
            attempt(point)
    return tried


def _done(tried: Sequence[tuple[Point, Score]], rule: Rule) -> bool:
    """Nothing can be better than the oracle's own score with everything retained."""
    return any(rule.distance(s) == 0 and s.retain >= rule.vanilla.retain for _, s in tried)
