"""One search for every method: the paper's rule under one budget of evaluations (section 5.1).

Among the trials that keep at least 95 % of the vanilla retain score the strongest forgetting wins;
with an oracle the closest to its forget score. Every method has a ladder of strengths (learning
rate, share taken or pruned) and a second setting (lambda, layers). Gates and pruning do more harm
the stronger they are, and so does training on the forget data alone: a grid, then a bisection.
With a retain loss a higher learning rate also learns the retain data better, so that some learning
rates are taken far apart; then lower ones until one is allowed, or the best one's neighbours, and
another lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from kvwstream.search import Rule, Scores

RUNGS = 15
"""Strengths 1 to 15; halving may go below 1."""
GRID = (4, 7, 10, 13)
"""Rungs that are tried first where strengths are bisected."""


@dataclass(frozen=True)
class Point:
    """A rung of the ladder and which of the second settings."""

    rung: float
    """Parts of a rung lie between two strengths."""
    second: int = 0


FIRST = (Point(8), Point(12), Point(12, 1), Point(15, 1))
"""Learning rates that are tried first: few steps, then more of them with more retain weight."""
OTHER_WEIGHT = {0: 2, 1: 3}
"""As many steps with another lambda."""


def search(
    measure: Callable[[Point], Scores],
    rule: Rule,
    budget: int,
    shifts: Sequence[float] | None = None,
) -> list[tuple[Point, Scores]]:
    """At most `budget` trials, in the order they were made.

    `shifts` are given where more strength always does more harm, so that it is bisected: for each
    further second setting, how many rungs above the best of the first one it is tried. A trial that
    is allowed and reaches the oracle's forget score ends the way up. Nothing more is tried once a
    trial cannot be beaten.
    """
    plan = _spread(rule) if shifts is None else _bisection(rule, budget, shifts)
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


def _bisection(rule: Rule, budget: int, shifts: Sequence[float]) -> Plan:
    """A grid, halves above the strongest that is not too strong, then the second settings.

    A score of few questions does not fall evenly: a bisection from the first trial on would be led
    astray by a single question.
    """
    strengths = max(1, budget - len(shifts))
    low, high = 0.0, RUNGS + 1.0
    for rung in GRID[:strengths]:
        tried = yield Point(rung)
        if not rule.too_strong(tried[-1][1]):
            low, high = rung, RUNGS + 1.0
        elif high > RUNGS:
            high = rung
    for _ in range(strengths - len(GRID)):
        tried = yield Point((low + high) / 2)
        if rule.too_strong(tried[-1][1]):
            high = tried[-1][0].rung
        else:
            low = tried[-1][0].rung
    best = _best(tried, rule)
    for second, shift in enumerate(shifts, 1):
        yield Point(min(RUNGS, best.rung + shift), second)


def _spread(rule: Rule) -> Plan:
    for point in FIRST:
        tried = yield point
    for rung in (6, 4, 2):
        if any(rule.allows(scores) for _, scores in tried):
            break
        tried = yield Point(rung)
    for step in (-2, 2):
        tried = yield _beside(tried, rule, step)
    best = _best(tried, rule)
    tried = yield Point(best.rung, OTHER_WEIGHT[best.second])
    for step in (1, -1):
        tried = yield _beside(tried, rule, step)


def _beside(tried: Tried, rule: Rule, step: int) -> Point:
    """The nearest rung that was not tried, from the best one in a direction, or the other way."""
    best, seen = _best(tried, rule), {point for point, _ in tried}
    rung = int(best.rung)
    ways = [range(rung + way, RUNGS + 1 if way > 0 else 0, way) for way in (step, -step)]
    rungs = [*ways[0], *ways[1], *range(1, RUNGS + 1)]
    return next(p for p in (Point(rung, best.second) for rung in rungs) if p not in seen)


def _best(tried: Tried, rule: Rule) -> Point:
    """Of equals the strongest if it is allowed, as the nearest to the edge; else the first."""

    def order(trial: tuple[Point, Scores]) -> tuple[tuple[bool, float, float], float]:
        point, scores = trial
        return rule.rank(scores), -point.rung if rule.allows(scores) else 0.0

    return min(tried, key=order)[0]


def _done(tried: Tried, rule: Rule) -> bool:
    """Nothing can be better than the oracle's own score with everything retained."""
    return any(rule.distance(s) == 0 and s.retain >= rule.vanilla_retain for _, s in tried)
