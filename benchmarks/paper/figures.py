"""The figures of the paper from finished trials, as small SVG files."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.paper.results import Results
from benchmarks.paper.runs import RANKED, RANKS
from benchmarks.paper.settings import Values, layer_ranges
from kvwstream.search import KEEP

# The same data give the same file: no date, no random identifiers, text as text.
plt.rcParams.update({"svg.hashsalt": "kvwstream", "svg.fonttype": "none", "font.size": 9})
EFFECTIVE = 0.05
"""Forget accuracy from which forgetting counts as effective in Figure 5."""


def save(name: str, folder: Path) -> str:
    """Write the current figure; its file name."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.tight_layout()
    plt.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close()
    return f"{name}.svg"


def forget_of(trial: Values) -> float:
    """Mean forget accuracy over both folds."""
    return fmean(trial["scores"][f"forget_{fold}"] for fold in (1, 2))


def retain_of(trial: Values, kept: tuple[str, ...]) -> float:
    """Mean of the retain accuracy and of the sets `kept`, as in the paper's Figure 5."""
    retain = fmean(trial["scores"][f"retain_{fold}"] for fold in (1, 2))
    return fmean([retain, *(trial["scores"][name] for name in kept)])


def gamma_figure(results: Results, kept: tuple[str, ...], name: str, folder: Path) -> str | None:
    """Figure 5: forget and retain against gamma at the usual layers; None without trials."""
    vanilla = results.find("vanilla", {})
    if vanilla is None:
        return None
    layers = layer_ranges(results.num_layers)[0]
    usual = [t for t in results.by("KVW") if t["settings"]["layers"] == layers]
    trials = sorted(usual, key=lambda trial: trial["gamma"])
    if len(trials) < 2:
        return None
    gammas = [trial["gamma"] for trial in trials]
    _, axes = plt.subplots(figsize=(4.6, 3))
    axes.plot(gammas, [forget_of(t) for t in trials], "o-", label="forget")
    axes.plot(gammas, [retain_of(t, kept) for t in trials], "s-", label="retain")
    floor = KEEP * retain_of(vanilla, kept)
    axes.axhline(floor, ls=":", color="grey", label="95 % of vanilla retain")
    good = [t for t in trials if forget_of(t) <= EFFECTIVE and retain_of(t, kept) >= floor]
    if good:
        band = [trial["gamma"] for trial in good]
        axes.axvspan(min(band) * 0.93, max(band) * 1.07, alpha=0.2, label="feasible")
    axes.set(xscale="log", xlabel="γ", ylabel="accuracy", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7)
    return save(name, folder)


def layers_figure(results: Results, budget: int, name: str, folder: Path) -> str | None:
    """Figure 6: KVW under other layer ranges, gradient methods under other lambda."""
    groups: dict[str, list[Values]] = {}
    kvw = results.chosen("KVW", 1, budget)
    if kvw:
        taken = kvw["settings"]["taken"]
        groups["KVW, layers"] = [t for t in results.by("KVW") if t["settings"]["taken"] == taken]
    for method in RANKED:
        chosen = results.chosen(method, 1, budget)
        if chosen:
            same = {**chosen["settings"], "weight": None}
            groups[f"{method}, λ"] = [
                t for t in results.by(method) if {**t["settings"], "weight": None} == same
            ]
    if not groups:
        return None
    _, axes = plt.subplots(figsize=(4.6, 3))
    for (label, trials), marker in zip(groups.items(), "osD", strict=False):
        forget = [forget_of(trial) for trial in trials]
        axes.plot(forget, [retain_of(t, ()) for t in trials], marker, alpha=0.7, label=label)
    axes.set(xlabel="forget accuracy", ylabel="retain accuracy", ylim=(-0.03, 1.03))
    axes.legend(fontsize=7)
    return save(name, folder)


def rank_figure(results: Results, budget: int, name: str, folder: Path) -> str | None:
    """Figure 1: forget accuracy on fold 2 by LoRA rank, settings chosen on fold 1 at rank 8."""
    _, axes = plt.subplots(figsize=(4.6, 3))
    drawn = False
    for method in RANKED:
        chosen = results.chosen(method, 1, budget)
        if not chosen:
            continue
        points = [(8, chosen)]
        for rank in RANKS:
            trial = results.find(method, {**chosen["settings"], "rank": rank})
            if trial:
                points.append((rank, trial))
        points.sort(key=lambda point: point[0])
        _ranks(axes, method, points)
        drawn = True
    if not drawn:
        plt.close()
        return None
    axes.set(xscale="log", xlabel="LoRA rank", ylabel="accuracy on fold 2", ylim=(-0.03, 1.03))
    axes.set_xticks([8, *RANKS], [str(rank) for rank in (8, *RANKS)])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    return save(name, folder)


def _ranks(axes: Axes, method: str, points: list[tuple[int, Values]]) -> None:
    ranks = [rank for rank, _ in points]
    (line,) = axes.plot(
        ranks, [t["scores"]["forget_2"] for _, t in points], "o-", label=f"{method}, forget"
    )
    retain = [trial["scores"]["retain_2"] for _, trial in points]
    axes.plot(ranks, retain, "s:", color=line.get_color(), label=f"{method}, retain")


def cost_figure(costs: list[Values], name: str, folder: Path) -> str:
    """Figure 3: three bar charts."""
    panels = {
        "gflops_per_batch": "GFLOP per batch",
        "seconds": "seconds",
        "peak_megabytes": "peak MB",
    }
    _, row = plt.subplots(1, len(panels), figsize=(8.4, 2.8), sharey=True)
    for axes, (field, label) in zip(row, panels.items(), strict=True):
        axes.barh([c["method"] for c in costs], [c[field] for c in costs])
        axes.set_xlabel(label)
    row[0].invert_yaxis()
    return save(name, folder)
