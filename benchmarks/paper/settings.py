"""What a search's rungs and second settings mean, method by method."""

from __future__ import annotations

from collections.abc import Callable
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
KVW: dict[str, Values] = {
    "KVW": {},
    "KVW A²": {"power": 2.0},
    "KVW energy": {"shape": "energy"},
    "KVW coherent": {"shape": "coherent"},
}
"""Rows of KVW and what they add to the share taken and layers."""
METHODS = (*gradient.METHODS, "MANU", *KVW)
ABLATION = ("all, no retain", "answers, no retain", "all, retain", "answers, retain")
"""Table 3; the last row is KVW, but at the usual layers like the others."""
LADDERS = {
    **dict.fromkeys(gradient.METHODS, (1.25e-5, 0.5)),
    "MMU": (5e-7, 0.5),
    "MANU": (1e-4, 0.6),
}
"""The lowest strength, and how often the next one is doubled; else `TAKEN`."""
TAKEN = (0.003, 0.5)
"""KVW's strength is the mean share taken were all layers weakened, up to 38 %; gamma follows."""


def layer_ranges(num_layers: int) -> tuple[str, str, str]:
    """Starts in the first and ends in the last eighth: usual, mild, strong."""
    return f"1:{num_layers - 3}", f"3:{num_layers - 4}", f"0:{num_layers - 1}"


def settings_at(method: str, point: Point, num_layers: int) -> Values:
    """What a rung of a method's ladder and a second setting mean for a model."""
    lowest, step = LADDERS.get(method, TAKEN)
    strength = float(f"{lowest * 2 ** (step * (point.rung - 1)):.3g}")
    if method in gradient.METHODS:
        return {"learning_rate": strength, **TRAINING[point.second]}
    ranges = layer_ranges(num_layers)
    if method == "MANU":  # prunes few neurons: the other way round
        return {"share": strength, "layers": ranges[::-1][point.second]}
    return {"taken": strength, "layers": ranges[point.second]}


def shifts(method: str) -> tuple[float, ...] | None:
    """Rungs by which further settings are shifted: mild layers up, KVW's strong ones down.

    GA has none, since it retains nothing, nor has the ablation. None where more strength does not
    always do more harm: training with a retain loss.
    """
    if method == "GA" or method in ABLATION:
        return ()
    if method in gradient.METHODS:
        return None
    return (2, 0) if method == "MANU" else (1, -1)


def run_search(measure: Callable[[Point], Scores], rule: Rule, method: str, budget: int) -> None:
    """A method's search."""
    search(measure, rule, budget, shifts(method))
