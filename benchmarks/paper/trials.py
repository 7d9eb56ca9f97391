"""One trial: a method with settings, applied, asked everything, logged as one JSON line.

A trial that is in the log is never made again, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import gradient, kvw, manu
from benchmarks.methods.search import Point
from benchmarks.methods.training import Settings, draw_pairs
from benchmarks.paper.cases import FOLDS, Answered, Case, load
from benchmarks.paper.results import Log, Results, score_of
from benchmarks.paper.settings import ABLATION, KVW, Values, run_search, settings_at
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.coefficients import Float64
from kvwstream.gates import gated
from kvwstream.search import Scores
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength

SHOWN = 3
"""Responses of each set that are kept for Figure 4."""


@dataclass(frozen=True)
class Bench:
    """A case with its log and the folder of its statistics."""

    case: Case
    log: Log
    work: Path
    most_steps: int = 1000
    """Cuts training short where all that counts is that it runs."""

    def trial(self, method: str, settings: Values) -> Values:
        """The finished trial, made now unless it is in the log."""
        found = self.results.find(method, settings)
        if found:
            return found
        start = time.perf_counter()
        try:
            with self.weakened(method, settings) as derived:
                seconds = time.perf_counter() - start
                answered = self.case.ask()
        except FloatingPointError:  # diverged: such a model answers nothing
            derived = {}
            seconds = time.perf_counter() - start
            answered = {
                name: Answered([""] * len(examples), [0.0] * len(examples))
                for name, examples in self.case.questions.items()
            }
        return self._add(method, settings, answered, seconds, **derived)

    @contextmanager
    def weakened(self, method: str, settings: Values) -> Iterator[Values]:
        """The case's model under a method; gives what follows from the settings: KVW's gamma."""
        model = self.case.loaded.model
        if method in gradient.METHODS:
            chosen = Settings(**settings)
            chosen = replace(chosen, steps=min(chosen.steps, self.most_steps))
            pairs = draw_pairs(self.case.encoder, self.case.forget, self.case.retain, chosen)
            with gradient.unlearned(method, model, pairs, chosen):
                yield {}
            return
        if method == "vanilla":
            yield {}
            return
        layers = LayerRange.parse(settings["layers"])
        if method == "MANU":
            gates = manu.gates(self.sites, self.manu_scores(), settings["share"], layers)
            with gated(model, self.sites, gates):
                yield {}
            return
        total = self.ablated(method) if method in ABLATION else self.exponent(method)
        gamma = kvw.gamma_taking(settings["taken"], total)
        with gated(model, self.sites, vector_gates(self.sites, total, gamma, layers)):
            yield {"gamma": gamma}

    def manu_scores(self) -> Float64:
        """(vector,) I_n of MANU."""
        folder = self.statistics("answer")
        forget, retain = (manu.Sums.read(str(folder / f"{k}.zarr")) for k in ("forget", "retain"))
        return manu.score(forget, retain)

    def exponent(self, row: str) -> Float64:
        """S of a row of KVW, in every layer."""
        everywhere = LayerRange(0, self.case.num_layers - 1)
        return Strength(0, everywhere, **KVW[row]).exponent(self.stored("answer"))

    def ablated(self, row: str) -> Float64:
        """S of a row of Table 3; without retain data C_f is set against its mean in the layer."""
        stored = self.stored("all" if row.startswith("all") else "answer")
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
        return self.stored("answer").sites

    def stored(self, tokens: str) -> Statistics:
        """The statistics of a token rule."""
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
        """The model as it is; `LookupError` if the log's trials are of another model or data."""
        found = self.trial("vanilla", {})
        if found["about"] != self.case.digest:
            raise LookupError(
                f"{self.log.path}: its trials of {self.case.name} are of another model or other "
                "data; move the file and the case's folders of statistics away"
            )
        return found

    def oracle(self) -> Values | None:
        """The model that never saw the forget set, where there is one."""
        if self.case.oracle is None:
            return None
        found = self.results.find("oracle", {})
        return found or self._add("oracle", {}, self.case.ask(load(self.case.oracle)), 0.0)

    def _add(
        self,
        method: str,
        settings: Values,
        answered: dict[str, Answered],
        seconds: float,
        **derived: float,
    ) -> Values:
        trial: Values = {
            "case": self.case.name,
            "method": method,
            "settings": settings,
            **derived,
            "scores": {name: round(a.score, 4) for name, a in answered.items()},
            "answers": {name: a.responses[:SHOWN] for name, a in answered.items()},
            "seconds": round(seconds, 1),
        }
        if method == "vanilla":
            trial |= {"about": self.case.digest, "num_layers": self.case.num_layers}
            trial["asked"] = {
                name: [[example.question, example.answer] for example in examples[:SHOWN]]
                for name, examples in self.case.questions.items()
            }
        self.log.add(trial)
        scores = " ".join(f"{name} {value:.2f}" for name, value in trial["scores"].items())
        print(f"{self.case.name} {method} {settings}: {scores} ({seconds:.0f} s)", flush=True)
        return trial

    @property
    def results(self) -> Results:
        """What is finished."""
        return Results.of(self.log, self.case.name)

    def search(self, method: str, budget: int) -> None:
        """The search of every fold; trials that both need are made once."""
        for fold in FOLDS:

            def measure(point: Point, fold: int = fold) -> Scores:
                settings = settings_at(method, point, self.case.num_layers)
                return score_of(self.trial(method, settings), fold)

            run_search(measure, self.results.rule(fold), method, budget)
