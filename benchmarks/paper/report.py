"""docs/results.md and its figures from the JSON lines of benchmarks/results/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.paper import figures, tables
from benchmarks.paper.cases import PERCENTS
from benchmarks.paper.recipe import recipe_text
from benchmarks.paper.results import Log, Results

CAPITALS = {
    "collected": "Collected wording",
    "reversed": "Reversed",
    "neighbours": "Neighbours",
    "general": "General",
}
PERSONS = {"faces": "RealF", "world": "RealW"}
"""Columns beside forget and retain: set of questions -> head of the column."""

INTRODUCTION = """\
# The paper's comparison, on models that fit two CPU cores

Written by `python -m benchmarks.paper report` from the finished trials in `benchmarks/results/`.
Nothing here was measured on the paper's own models; commands for those are at the end.

    make paper-text     # SmolLM2-135M-Instruct forgets 40 capitals; about 45 minutes on two cores
    make paper          # the vision test bed forgets 5, 10, 15 % of its persons; hours
    make paper-cost     # Figure 3: FLOPs, wall clock, peak memory
    make paper-quick    # everything cut to five minutes, into a temporary folder

Every finished trial is a JSON line; the same command goes on where it was stopped. "{not_run}" is
what was still to come when this page was written, "{not_trained}" an oracle that takes half an hour
of two cores: `python -m benchmarks.testbed.train --without 10 --out
benchmarks/testbed/oracle10.safetensors`, then `make paper` again.

**What is judged.** Forgetting: capitals in wordings, persons in drawings that were neither
collected nor trained. Retaining: questions about what may stay. A response counts if it contains
the truth; greedy, bfloat16, at most 12 (capitals) or 8 (persons) new tokens.

**How settings are chosen.** {budget} evaluations for every method. Along a ladder of 15 strengths:
γ and the pruned share are bisected, then other layers tried (3:26, 0:29 instead of 1:27); learning
rates, along which retaining is not monotone, are taken far apart first, at λ 1 with 10 steps and at
λ 2 with 30, then around the best. Of the trials that keep at least 95 % of vanilla's retain
score the one with the lowest forget score is taken, with an oracle the closest to it; where none
keeps enough, the one that keeps most. Two folds of other capitals and persons: *Forget 1* is
measured on fold 1 by the settings chosen on fold 2, and the other way round. The retain score is
not folded, as in CLEAR's published folds; a *Retain* belongs to the *Forget* before it, the columns
behind to the model of *Forget 1*. ✗ marks a retain score below 95 % of vanilla's, … a search that
is not finished, so that its row is not the method's best. A fold holds 20 capitals, or at 5 % one
person in 8 drawings; the retain score is of 40 questions, or 50.

**What the methods are.** `benchmarks/methods/`, a file each. Gradient methods: steps of 4 forget
and 4 retain examples, AdamW, LoRA of rank 8 on all linear layers (MMU: all parameters), seed 0,
loss on answer tokens. KVW and MANU: `collect --moments abs,signed,square`, frozen schedule, forget
records of one example; "KVW A²" sums the square of A, "KVW energy" is `--shape energy`.
"""
TABLE_3 = """\
## Table 3: answer tokens and retain data

Each row has a search of its own over γ at layers 1:27. "Ans only" off measures every position;
without retain data, C_f of a vector is set against the mean C_f of its layer.
"""
FIGURE_1 = """\
## Figure 1: LoRA rank

Settings chosen on fold 1 at rank 8, other ranks with these settings, accuracies on fold 2.
"""
FIGURE_3 = """\
## Figure 3: cost

One interleaved run, medians; see `benchmarks/paper/cost.py` for what is counted. KVW and MANU rows
are one request to forget, given C_r; its row is paid once, for any number of requests.
"""
FIGURE_5 = """\
## Figure 5: sensitivity to γ

Both folds, layers 1:27. The band: forget accuracy at most 0.05 and at least 95 % of vanilla's
retain, if there is such a γ. Retain is the mean of the retain set and the general sets.
"""
FIGURE_6 = """\
## Figure 6: sensitivity to layers and λ

KVW at the chosen γ with other layer ranges; GD and NPO at the chosen learning rate with other λ.
"""
RECIPES = """\
## On the paper's benchmarks

Not run here: commands for a machine with a GPU, from a checkout with `pip install -e '.[dev]'`.
`python -m benchmarks.paper recipe` prints them. Other forget ratios: put `forget10` and `retain90`
(`forget_10`, `retain_90`) in the place of `forget05` and `retain95`.

{recipes}
"""
Bed = tuple[str, Results, dict[str, str], tuple[str, ...]]


def write_report(results: Path, out: Path, figure_folder: Path, budget: int) -> None:
    """`out` and the SVG files that it shows."""
    text = Log(results / "paper-text.jsonl")
    vision = Log(results / "paper-vision.jsonl")
    capitals = Results.of(text, "text")
    persons = {percent: Results.of(vision, f"vision-{percent:02d}") for percent in PERCENTS}
    link = figure_folder.name
    parts = [_introduction(budget)]

    def show(title: str, case: Results, extras: dict[str, str], oracle: bool) -> None:
        if case.find("vanilla", {}) is None:
            parts.append(f"### {title}\n\n{tables.NOT_RUN}")
            return
        table = tables.main_table(case, extras, budget, oracle)
        chosen = tables.settings_table(case, budget)
        parts.append(f"### {title}\n\n{table}\n\nChosen settings:\n\n{chosen}")

    parts.append("## Tables 1 and 2")
    show("SmolLM2, 40 capitals", capitals, CAPITALS, oracle=False)
    for percent, case in persons.items():
        show(f"Vision test bed, forget {percent} %", case, PERSONS, oracle=True)

    beds: dict[str, Bed] = {
        "text": ("SmolLM2, 40 capitals", capitals, CAPITALS, ("general",)),
        "vision": ("Vision test bed, forget 5 %", persons[5], PERSONS, ("faces", "world")),
    }
    parts.append(TABLE_3)
    for title, case, extras, _ in beds.values():
        if case.find("vanilla", {}):
            parts.append(f"### {title}\n\n{tables.ablation_table(case, extras, budget)}")

    def draw(name: str, figure: Callable[[Results, tuple[str, ...], str], str | None]) -> None:
        for kind, (title, case, _, kept) in beds.items():
            file = figure(case, kept, f"{name}-{kind}") if case.find("vanilla", {}) else None
            shown = f"![{name}]({link}/{file})" if file else tables.NOT_RUN
            parts.append(f"{title}:\n\n{shown}")

    parts.append(FIGURE_1)
    draw("ranks", lambda case, _, name: figures.rank_figure(case, budget, name, figure_folder))
    parts.append(FIGURE_3)
    cost = results / "paper-cost.json"
    if cost.exists():
        rows = tables.read_costs(cost.read_text())
        parts.append(tables.cost_table(rows))
        parts.append(f"![cost]({link}/{figures.cost_figure(rows, 'cost', figure_folder)})")
    else:
        parts.append(tables.NOT_RUN)
    parts.append("## Figure 4: the same question to every model")
    for title, case, _, _ in beds.values():
        if case.find("vanilla", {}):
            asked = ("forget_1", "retain_1")
            parts.append(f"### {title}\n\n{tables.answers_table(case, budget, asked)}")
    parts.append(FIGURE_5)
    draw("gamma", lambda case, kept, name: figures.gamma_figure(case, kept, name, figure_folder))
    parts.append(FIGURE_6)
    draw("layers", lambda case, _, name: figures.layers_figure(case, budget, name, figure_folder))
    parts.append(RECIPES.format(recipes=recipe_text()))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def _introduction(budget: int) -> str:
    names = {"not_run": tables.NOT_RUN, "not_trained": tables.NOT_TRAINED}
    return INTRODUCTION.format(budget=budget, **names)
