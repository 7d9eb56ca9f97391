"""The tables of the paper from finished trials, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.paper.results import Results, score_of
from benchmarks.paper.settings import ABLATION, METHODS, Values
from kvwstream.search import Rule

NOT_RUN = "not run"
BROKEN = " ✗"
"""Marks a retain score below 95 % of vanilla's: the paper's red."""
UNFINISHED = " …"
"""Marks a method whose search is not finished: its row is not its best."""


@dataclass(frozen=True)
class Choice:
    """A method's trial as chosen on one fold and what it scores on the other."""

    trial: Values
    test: int
    """The fold that is reported."""
    rule: Rule

    @property
    def forget(self) -> str:
        """Forget score on the reported fold."""
        return f"{score_of(self.trial, self.test).forget:.2f}"

    @property
    def retain(self) -> str:
        """Retain score on the reported fold, marked where it is too low."""
        score = score_of(self.trial, self.test)
        return f"{score.retain:.2f}" + ("" if self.rule.allows(score) else BROKEN)


def choices(results: Results, method: str, budget: int) -> dict[int, Choice]:
    """By reported fold: chosen on the other one."""
    found = {}
    for test in (1, 2):
        if method in ("vanilla", "oracle"):
            trial = results.find(method, {})
        else:
            trial = results.chosen(method, 3 - test, budget)
        if trial:
            found[test] = Choice(trial, test, results.rule(test))
    return found


def main_table(results: Results, extras: dict[str, str], budget: int, oracle: bool) -> str:
    """Tables 1 and 2: both folds side by side; the extras are of the model reported on fold 1."""
    heads = ["Method", "Forget 1", "Retain", "Forget 2", "Retain", *extras.values()]
    rows = []
    for method in ("vanilla", *(["oracle"] if oracle else []), *METHODS):
        found = choices(results, method, budget)
        if len(found) < 2:
            rows.append([method, NOT_RUN, *[""] * (len(heads) - 2)])
            continue
        cells = [text for test in (1, 2) for text in (found[test].forget, found[test].retain)]
        scores = found[1].trial["scores"]
        known = method in ("vanilla", "oracle") or results.finished(method, budget)
        label = method if known else method + UNFINISHED
        rows.append([label, *cells, *[f"{scores[name]:.2f}" for name in extras]])
    return markdown(heads, rows)


def settings_table(results: Results, budget: int) -> str:
    """What was chosen, and after how many trials of the search."""
    rows = []
    for method in METHODS:
        for fold in (1, 2):
            chosen = results.chosen(method, fold, budget)
            if chosen:
                values = ", ".join(f"{k} {v}" for k, v in chosen["settings"].items())
                values += f", γ {chosen['gamma']:.3g}" if "gamma" in chosen else ""
                tried = len(results.searched(method, fold, budget))
                rows.append([method, str(fold), values, f"{tried} of {budget}"])
    return markdown(["Method", "Chosen on fold", "Settings", "Evaluations"], rows)


def ablation_table(results: Results, extras: dict[str, str], budget: int) -> str:
    """Table 3: which positions are measured, and whether the retain set is contrasted."""
    heads = ["Ans only", "w/ retain", "Forget 1", "Forget 2", "Retain", "Retain"]
    rows = []
    for row in ABLATION:
        marks = ["✓" if mark else "" for mark in _marks(row)]
        found = choices(results, row, budget)
        if len(found) < 2:
            rows.append([*marks, NOT_RUN, *[""] * (len(heads) + len(extras) - 3)])
            continue
        one, two = found[1], found[2]
        cells = [one.forget, two.forget, one.retain, two.retain]
        scores = one.trial["scores"]
        rows.append([*marks, *cells, *[f"{scores[name]:.2f}" for name in extras]])
    return markdown([*heads, *extras.values()], rows)


def _marks(row: str) -> tuple[bool, bool]:
    return row.startswith("answers"), row.endswith(", retain")


def answers_table(results: Results, budget: int, sets: Sequence[str]) -> str:
    """Figure 4: the same question to every model that fold 2 chose; fold 1 was not seen then."""
    vanilla = results.find("vanilla", {})
    if not vanilla or "asked" not in vanilla:
        return NOT_RUN
    columns = {"vanilla": vanilla}
    for method in ("oracle", *METHODS):
        found = choices(results, method, budget)
        if 1 in found:
            columns[method] = found[1].trial
    blocks = []
    for name in sets:
        for index, (question, truth) in enumerate(vanilla["asked"][name][:2]):
            rows = [[m, _cell(t["answers"][name][index])] for m, t in columns.items()]
            head = f"**{_cell(question)}** ({name.removesuffix('_1')}; truth: {_cell(truth)})"
            blocks.append(f"{head}\n\n{markdown(['Model', 'Answer'], rows)}")
    return "\n\n".join(blocks)


def cost_table(costs: list[Values]) -> str:
    """Figure 3 in numbers, with the ratio to the plain forward pass and to KVW."""
    rows = []
    for cost in costs:
        rows.append(
            [
                cost["method"],
                f"{cost['gflops_per_batch']:.1f}",
                f"{cost['seconds']:.1f}",
                f"{cost['peak_megabytes']:.0f}",
                cost["what"],
            ]
        )
    return markdown(["Method", "GFLOP per batch", "Seconds", "Peak MB", "What is timed"], rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(nothing)"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [list(heads), ["---"] * len(heads), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_costs(text: str) -> list[Values]:
    """The rows of cost.json."""
    rows: list[Values] = json.loads(text)["rows"]
    return rows
