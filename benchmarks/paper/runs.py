"""Which trials each table and figure needs, the cheapest first."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.methods.search import Point
from benchmarks.paper.settings import ABLATION, KVW, METHODS, Values, settings_at
from benchmarks.paper.trials import Bench

ORDER = (*KVW, "MANU", "NPO", "GD", "GA", "KL", "MMU*", "MMU")
assert set(ORDER) == set(METHODS)
RANKED = ("GD", "NPO")
LAMBDAS = (0.7, 1.0, 2.0)
"""Figure 6."""
RANKS = (4, 16, 32)
"""Beside 8, which is every method's (Figure 1)."""
ENDS = ((0, 3), (3, 3), (1, 1), (2, 2))
"""Figure 6: first layer, and the last one from behind; more of the first and the last eighth."""
CURVE = (4, 6, 8, 10, 12, 14)
"""Figure 5: rungs of the ladder, each with its gamma."""


def run_tables(bench: Bench, budget: int, methods: Sequence[str] | None = None) -> None:
    """Tables 1 and 2: vanilla, oracle, the search of every method or of `methods`."""
    bench.vanilla()
    bench.oracle()
    for method in ORDER if methods is None else methods:
        bench.search(method, budget)


def run_analysis(bench: Bench, budget: int, *, quick: bool = False) -> None:
    """Figures 5 and 6, Table 3, Figure 1: around what the searches chose."""
    for rung in CURVE[:2] if quick else CURVE:
        bench.trial("KVW", settings_at("KVW", Point(rung), bench.case.num_layers))
    for first, behind in ENDS[:1] if quick else ENDS:
        layers = f"{first}:{bench.case.num_layers - behind}"
        bench.trial("KVW", {**chosen(bench, "KVW", budget), "layers": layers})
    for method in RANKED:
        for weight in LAMBDAS[:2] if quick else LAMBDAS:
            bench.trial(method, {**chosen(bench, method, budget), "weight": weight})
    for row in ABLATION:
        bench.search(row, budget)
    for method in RANKED:
        for rank in RANKS[:1] if quick else RANKS:
            bench.trial(method, {**chosen(bench, method, budget), "rank": rank})


def chosen(bench: Bench, method: str, budget: int) -> Values:
    """The settings that the rule chooses on fold 1."""
    trial = bench.results.chosen(method, 1, budget)
    assert trial, "run_tables comes first"
    return dict(trial["settings"])
