"""One trial: a method with settings, applied, asked everything, logged as one JSON line.

A trial that is in the log is never made again, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import gradient, kvw, manu
from benchmarks.methods.search import Point, Rule, Score, search
from benchmarks.methods.training import Settings, draw_pairs
from benchmarks.paper.cases import FOLDS, Answered, Case, load
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.coefficients import Float64
from kvwstream.gates import gated
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength

Values = dict[str, Any]
SHOWN = 3  # responses of each set that are kept for Figure 4
WEIGHTS = (1.0, 2.0, 0.7)
LAYERS = ("1:27", "3:26", "0:29")
"""Starts in the first and ends in the last eighth of 30 layers: usual, mild, strong."""
KVW = {"KVW": {}, "KVW A²": {"power": 2.0}}
"""Rows of KVW and what they add to gamma and layers."""
METHODS = (*gradient.METHODS, "MANU", *KVW)
ABLATION = ("all, no retain", "answers, no retain", "all, retain")
"""Table 3 without its last row, which is KVW."""


def settings_at(method: str, point: Point) -> Values:
    """What a rung of a method's ladder and a second setting mean."""
    rise = point.rung - 1
    if method in ("MMU", *gradient.LORA_STEPS, "MMU*"):
        lowest = 2e-6 if method == "MMU" else 5e-5
        return {"learning_rate": _round(lowest * 2 ** (rise / 2)), "weight": WEIGHTS[point.second]}
    if method == "MANU":
        return {"share": _round(5e-4 * 2 ** (rise / 2)), "layers": LAYERS[::-1][point.second]}
    lowest = 0.002 if method == "KVW A²" else 0.004
    return {"gamma": _round(lowest * 2 ** (0.45 * rise)), "layers": LAYERS[point.second]}


def num_seconds(method: str) -> int:
    """Second settings of a method: none for GA, which retains nothing, and in the ablation."""
    return 1 if method == "GA" or method in ABLATION else 3


def _round(value: float) -> float:
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class Log:
    """Finished trials of every case, a JSON line each."""

    path: Path

    def read(self) -> list[Values]:
        """All trials; a line that a killed process left unfinished does not count."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def find(self, case: str, method: str, settings: Values) -> Values | None:
        """A finished trial."""
        wanted = (case, method, settings)
        found = (t for t in self.read() if (t["case"], t["method"], t["settings"]) == wanted)
        return next(found, None)

    def add(self, trial: Values) -> None:
        """Append a line, after cutting off an unfinished one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in [*self.read(), trial])
        draft = self.path.with_suffix(".draft")
        draft.write_text(whole, encoding="utf-8")
        draft.replace(self.path)


@dataclass(frozen=True)
class Bench:
    """A case with its log and the folder of its statistics."""

    case: Case
    log: Log
    work: Path
    steps: int = 10

    def trial(self, method: str, settings: Values) -> Values:
        """The finished trial, made now unless it is in the log."""
        found = self.log.find(self.case.name, method, settings)
        if found:
            return found
        start = time.perf_counter()
        try:
            with self.weakened(method, settings):
                seconds = time.perf_counter() - start
                answered = self.case.ask()
            note = None
        except FloatingPointError as error:  # diverged: it answers nothing
            seconds, note = time.perf_counter() - start, str(error)
            answered = {
                name: Answered([""] * len(e), [False] * len(e))
                for name, e in self.case.questions.items()
            }
        trial = {
            "case": self.case.name,
            "method": method,
            "settings": settings,
            "scores": {name: round(a.accuracy, 4) for name, a in answered.items()},
            "right": {n: "".join("01"[r] for r in a.right) for n, a in answered.items()},
            "answers": {name: a.responses[:SHOWN] for name, a in answered.items()},
            "seconds": round(seconds, 1),
        }
        if note:
            trial["note"] = note
        self.log.add(trial)
        scores = " ".join(f"{name} {value:.2f}" for name, value in trial["scores"].items())
        print(f"{self.case.name} {method} {settings}: {scores} ({seconds:.0f} s)", flush=True)
        return trial

    @contextmanager
    def weakened(self, method: str, settings: Values) -> Iterator[None]:
        """The case's model under a method while the context is open."""
        model = self.case.loaded.model
        if method in gradient.METHODS:
            chosen = Settings(**{"steps": self.steps, **settings})
            pairs = draw_pairs(self.case.encoder, self.case.forget, self.case.retain, chosen)
            with gradient.unlearned(method, model, pairs, chosen):
                yield
            return
        context: AbstractContextManager[None] = nullcontext()
        if method != "vanilla":
            context = gated(model, self.sites, self.gates(method, settings))
        with context:
            yield

    def gates(self, method: str, settings: Values) -> Float64:
        """(vector,) of a method without training."""
        layers = LayerRange.parse(settings["layers"])
        if method == "MANU":
            folder = self.statistics("answer")
            forget, retain = (
                manu.Sums.read(str(folder / f"{k}.zarr")) for k in ("forget", "retain")
            )
            return manu.gates(self.sites, manu.score(forget, retain), settings["share"], layers)
        if method in ABLATION:
            return vector_gates(self.sites, self.ablated(method), settings["gamma"], layers)
        values = {k: v for k, v in settings.items() if k not in ("gamma", "layers")}
        strength = Strength(settings["gamma"], layers, **KVW.get(method, {}), **values)
        return kvw.gates(self.statistics("answer") / "statistics.zarr", strength)

    def ablated(self, row: str) -> Float64:
        """S of a row of Table 3; without retain data C_f is set against its mean in the layer."""
        stored = self._open("all" if row.startswith("all") else "answer")
        if row.endswith(", retain"):
            return stored.exponent()
        total = np.zeros_like(stored.exponent())
        for record in stored.rows("forget_mean", stored.num_forget_records):
            for site in stored.sites:
                mean = record[site.vectors]
                total[site.vectors] += np.maximum(np.log(mean + 1e-12) - np.log(mean.mean()), 0)
        return total

    @cached_property
    def sites(self) -> Any:
        """The value projections."""
        return self._open("answer").sites

    def _open(self, tokens: str) -> Statistics:
        return Statistics.open(Location(str(self.statistics(tokens) / "statistics.zarr")))

    def statistics(self, tokens: str) -> Path:
        """The folder with stores and statistics of a token rule, collected once."""
        folder = self.work / f"{self.case.name}-{tokens}"
        return kvw.collect_both(
            self.case.folder,
            self.case.forget,
            self.case.retain,
            folder,
            dtype="bfloat16",
            tokens=tokens,
        )

    def vanilla(self) -> Values:
        """The model as it is."""
        return self.trial("vanilla", {})

    def oracle(self) -> Values | None:
        """The model that never saw the forget set, where there is one."""
        if self.case.oracle is None:
            return None
        found = self.log.find(self.case.name, "oracle", {})
        if found:
            return found
        answered = self.case.ask(load(self.case.oracle))
        trial = {
            "case": self.case.name,
            "method": "oracle",
            "settings": {},
            "scores": {name: round(a.accuracy, 4) for name, a in answered.items()},
            "right": {n: "".join("01"[r] for r in a.right) for n, a in answered.items()},
            "answers": {name: a.responses[:SHOWN] for name, a in answered.items()},
            "seconds": 0.0,
        }
        self.log.add(trial)
        return trial

    def rule(self, fold: int) -> Rule:
        """The paper's, with the scores of this fold."""
        oracle = self.oracle()
        target = oracle["scores"][f"forget_{fold}"] if oracle else 0.0
        return Rule(score_of(self.vanilla(), fold), target)

    def search(self, method: str, budget: int) -> None:
        """The search of every fold; trials that both need are made once."""
        for fold in FOLDS:

            def measure(point: Point, fold: int = fold) -> Score:
                return score_of(self.trial(method, settings_at(method, point)), fold)

            search(measure, self.rule(fold), budget, num_seconds(method))


def score_of(trial: Values, fold: int) -> Score:
    """What a trial scored on one fold."""
    return Score(trial["scores"][f"forget_{fold}"], trial["scores"][f"retain_{fold}"])
