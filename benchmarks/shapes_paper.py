"""Shapes of the accessor in the cases of the paper's comparison, each at the same forgetting.

    python -m benchmarks.shapes_paper [text 5 10 15] [--shapes NAME ...] [--work FOLDER] [--table]

The comparison gives every method eight evaluations. Here each shape has a bisection of its own: the
mean share that is taken from the knowledge vectors of layers 1:27, until a quarter of the questions
to forget is still answered, folds 1 and 2 together. A trial is a line of the results' file; the
same command goes on after the last one. The table stands in docs/shapes.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.methods.kvw import gamma_taking, permuted
from benchmarks.paper.beds import capitals, persons
from benchmarks.paper.cases import FOLDS
from benchmarks.paper.command import RESULTS, WORK
from benchmarks.paper.published import PERCENTS
from benchmarks.paper.results import Log
from benchmarks.paper.trials import Bench
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.coefficients import Float64
from kvwstream.gates import gated
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength

LAYERS = LayerRange(1, 27)
LEFT = 0.25
"""Share of the questions to forget that may still be answered."""
SHARES, STEPS = (0.004, 0.5), 6
KINDS = ("forget", "retain")

Shape = Callable[[Statistics], Float64]


def raised(power: float, shape: str = "paper", threshold: float = 0) -> Shape:
    """A shape of the library's above a threshold, to a power."""
    strength = Strength(0, LAYERS, power, threshold, shape=shape)
    return strength.exponent


SHAPES: dict[str, Shape] = {
    "A": raised(1),
    "A^2": raised(2),
    "A^3": raised(3),
    "A^4": raised(4),
    "A above 0.25, squared": raised(2, threshold=0.25),
    "A above 0.5, squared": raised(2, threshold=0.5),
    "coherent": raised(1, "coherent"),
    "E": raised(0.5, "energy"),
    "energy (E^2)": raised(1, "energy"),
    "A^2, permuted": lambda stored: permuted(raised(2)(stored), stored.sites),
}


def measure(bench: Bench, name: str, log: Log) -> None:
    """One shape's bisection."""
    where, stored = (bench.case.name, name), bench.stored("answer")
    total = SHAPES[name](stored)
    inside = np.concatenate([total[s.vectors] for s in stored.sites if s.layer in LAYERS])
    known = {t["share"]: t["forget"] for t in log.read() if (t["case"], t["shape"]) == where}
    low, high = map(math.log, SHARES)
    for _ in range(STEPS):
        share = math.exp((low + high) / 2)
        if share not in known:
            gamma = gamma_taking(share, inside)
            values = vector_gates(stored.sites, total, gamma, LAYERS)
            with gated(bench.case.loaded.model, stored.sites, values):
                scores = {kind: answered.score for kind, answered in bench.case.ask().items()}
            forget, retain = (fmean(scores[f"{k}_{fold}"] for fold in FOLDS) for k in KINDS)
            line = {"case": bench.case.name, "shape": name, "share": share, "gamma": gamma}
            log.add({**line, "forget": forget, "retain": retain, "scores": scores})
            known[share] = forget
        low, high = (math.log(share), high) if known[share] > LEFT else (low, math.log(share))


def table(trials: list[dict[str, Any]]) -> str:
    """Of each bisection the trial that keeps most where at most `LEFT` is left, as Markdown."""
    cases = list(dict.fromkeys(trial["case"] for trial in trials))
    heads = "".join(f" {case}: forget | retain |" for case in cases)
    lines = [f"| shape |{heads}", "|---" * (1 + 2 * len(cases)) + "|"]
    for shape in SHAPES:
        cells = []
        for case in cases:
            found = [t for t in trials if (t["case"], t["shape"]) == (case, shape)]
            enough = [t for t in found if t["forget"] <= LEFT]
            best = max(enough, key=lambda t: (t["retain"], -t["forget"]), default=None)
            cells += [f"{best[kind]:.2f}" for kind in KINDS] if best else ["", ""]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = ("text", *map(str, PERCENTS))
    parser.add_argument("cases", nargs="*", default=known, help="text, or a per cent of persons")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--work", type=Path, default=WORK, help="models and stores")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="show what is there, run nothing")
    options = parser.parse_args()
    log = Log(options.results / "shapes-paper.jsonl")
    for chosen in () if options.table else options.cases:
        case = capitals() if chosen == "text" else persons(int(chosen), options.work)
        done = [(t["case"], t["shape"]) for t in log.read()]
        for name in options.shapes:
            if done.count((case.name, name)) < STEPS:
                measure(Bench(case, log, options.work), name, log)
    print(table(log.read()))


if __name__ == "__main__":
    main()
