"""Which trials each table and figure needs, the cheapest first."""

from __future__ import annotations

from benchmarks.methods.search import Point
from benchmarks.paper.cases import FOLDS
from benchmarks.paper.trials import ABLATION, KVW, METHODS, Bench, Values, score_of, settings_at

ORDER = (*KVW, "MANU", "NPO", "GD", "GA", "KL", "MMU*", "MMU")
assert set(ORDER) == set(METHODS)
RANKED = ("GD", "NPO")
RANKS = (4, 16, 32)
"""Beside 8, which is every method's (Figure 1)."""
RANGES = ("0:27", "3:27", "1:29", "2:28")
"""Figure 6: more starts in the first and ends in the last eighth."""
GAMMAS = (2, 5, 7, 9, 11, 13)
"""Figure 5: rungs of the ladder."""


def run_tables(bench: Bench, budget: int) -> None:
    """Tables 1 and 2: vanilla, oracle, every method's search."""
    bench.vanilla()
    bench.oracle()
    for method in ORDER:
        bench.search(method, budget)


def run_analysis(bench: Bench, budget: int) -> None:
    """Figures 5 and 6, Table 3, Figure 1: around what the searches chose."""
    for rung in GAMMAS:
        bench.trial("KVW", settings_at("KVW", Point(rung)))
    chosen = chosen_on(bench, "KVW", 1)
    for layers in RANGES:
        bench.trial("KVW", {**chosen, "layers": layers})
    for method in RANKED:
        chosen = chosen_on(bench, method, 1)
        for weight in (0.7, 1.0, 2.0):
            bench.trial(method, {**chosen, "weight": weight})
    for row in ABLATION:
        bench.search(row, budget)
    for method in RANKED:
        chosen = chosen_on(bench, method, 1)
        for rank in RANKS:
            bench.trial(method, {**chosen, "rank": rank})


def chosen_on(bench: Bench, method: str, fold: int) -> Values:
    """The settings that the rule chooses on a fold, among the trials of the method's search."""
    return chosen_trial(bench, method, fold)["settings"]


def chosen_trial(bench: Bench, method: str, fold: int) -> Values:
    """The trial that the rule chooses on a fold; what `run_analysis` adds is not chosen from."""
    trials = searched(bench, method)
    return trials[bench.rule(fold).best([score_of(trial, fold) for trial in trials])]


def searched(bench: Bench, method: str) -> list[Values]:
    """Trials of the ladder, without other ranks, layers and gammas."""
    rungs = [settings_at(method, Point(r, s)) for r in range(1, 16) for s in range(3)]
    trials = [t for t in bench.log.read() if t["method"] == method]
    found = [t for t in trials if t["case"] == bench.case.name and t["settings"] in rungs]
    if not found:
        raise LookupError(f"{bench.case.name}: {method} was not tried yet")
    return found


assert FOLDS == (1, 2)
