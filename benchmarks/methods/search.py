"""One search for every method: the paper's rule under one budget of evaluations (section 5.1).

Among the trials that keep at least 95 % of the vanilla retain score the strongest forgetting wins;
with an oracle the closest to its forget score. Every method has a ladder of strengths (learning
rate, gamma, share of neurons) and a second setting (lambda, layers). Gates and pruning do more harm
the stronger they are, so that their ladder is bisected; a higher learning rate also learns the
retain data better, so that some learning rates are taken far apart, then the best one's neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from kvwstream.search import Rule, Scores

RUNGS = 15
"""Strengths 1 to 15; 0 is the vanilla model. Four bisections find one."""


@dataclass(frozen=True)
class Point:
    """A rung of the ladder and which of the second settings."""

    rung: int
    second: int = 0


FIRST = (Point(4), Point(8), Point(8, 1), Point(11, 1))
"""Learning rates that are tried first: few steps, then more of them with more retain weight."""


def search(
    measure: Callable[[Point], Scores],
    rule: Rule,
    budget: int,
    num_seconds: int,
    *,
    monotone: bool = True,
) -> list[tuple[Point, Scores]]:
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


Tried = list[tuple[Point, Scores]]
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
        if rule.too_strong(tried[-1][1]):
            high = middle
        else:
            low = middle
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
    return min(tried, key=lambda trial: rule.rank(trial[1]))[0]


def _done(tried: Tried, rule: Rule) -> bool:
    """Nothing can be better than the oracle's own score with everything retained."""
    return any(rule.distance(s) == 0 and s.retain >= rule.vanilla_retain for _, s in tried)
