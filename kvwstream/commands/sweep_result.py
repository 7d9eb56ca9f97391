"""What `sweep` shows: a table of at most 80 columns and a picture; and how its options are read."""

from __future__ import annotations

import importlib.util
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kvwstream.errors import OptionError, StorageError
from kvwstream.pipelines.sweep import Found, Sweep
from kvwstream.pipelines.trials import strength_of
from kvwstream.search import Scores, Trial
from kvwstream.strength import SHAPE

FORMATS = (".svg", ".png", ".pdf")
NEAR = 0.05
"""A feasible gamma keeps enough and forgets at most this less than the chosen one."""


def parse_gammas(text: str) -> tuple[float, float]:
    """`"0.001:0.05"`; `OptionError` for anything else."""
    first, colon, last = text.partition(":")
    try:
        return float(first), float(last if colon else "")
    except ValueError:
        raise OptionError(f"gammas must be like 0.001:0.05 (from:to), got {text!r}") from None


def parse_numbers(name: str, text: str) -> list[float]:
    """`"1"` or `"1,1.5,2"`, without repetition; `OptionError` for anything else."""
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise OptionError(f"{name} must be like 1 or 1,1.5,2, got {text!r}") from None


def check_plot(path: Path) -> None:
    """`OptionError` for a picture that could not be drawn; before the search."""
    if path.suffix not in FORMATS:
        raise OptionError(f"{path}: a picture's name ends with {', '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("a picture needs the package matplotlib: pip install 'kvwstream[sweep]'")


def show(found: Found, task: Sweep) -> None:
    """Vanilla and oracle, either fold, and the choice on all questions."""
    console = Console(width=80, highlight=False, markup=False)
    table = Table(title="forget and retain accuracy", title_style="bold")
    for name in ("", "gamma", "layers", "shape"):
        table.add_column(name)
    for name in ("chosen on", "reported on"):
        table.add_column(name, justify="right")
    table.add_row("vanilla", "0", "", "", _pair(found.vanilla), "")
    if found.oracle:
        table.add_row("oracle", "", "", "", _pair(found.oracle), "")
    for number, fold in enumerate(found.folds, start=1):
        reported = f"{_pair(fold.reported)}{'' if fold.holds else ' !'}" if fold.reported else ""
        table.add_row(f"fold {number}", *_setting(fold.chosen), _scores(fold.chosen), reported)
    table.add_row("all", *_setting(found.best), _scores(found.best), "")
    console.print(table)
    rule = f"At least {task.keep:g} of the vanilla retain accuracy is kept; among these "
    rule += "the closest to the oracle." if found.oracle else "the least is left to forget."
    console.print(f"{rule} A fold's setting is chosen on it and reported on the other.")
    if any(fold.reported and not fold.holds for fold in found.folds):
        console.print("! keeps less than that on the fold that it was not chosen on.")
    best = found.best
    if best and best.setting["gamma"] == max(trial.setting["gamma"] for trial in found.trials):
        console.print(
            "The strongest gamma tried is the best: widen --gammas, or give more --trials."
        )
    console.print(f"{len(found.trials)} settings were tried.")


def _pair(scores: Scores) -> str:
    return f"{scores.forget:.3f} {scores.retain:.3f}"


def _scores(trial: Trial | None) -> str:
    return _pair(trial.scores) if trial else "none keeps enough"


def _setting(trial: Trial | None) -> tuple[str, str, str]:
    if trial is None:
        return "", "", ""
    rest = {k: v for k, v in trial.setting.items() if k not in ("gamma", "start", "stop")}
    shape = ", ".join(f"{name} {value}" for name, value in rest.items() if value != SHAPE[name])
    return f"{trial.setting['gamma']:g}", str(strength_of(trial.setting).layers), shape or "paper"


def draw(found: Found, path: Path) -> None:
    """Forget against retain, and both against gamma, with the feasible band (Figure 5)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    plane, curve = figure.subplots(1, 2)
    bound, best = found.rule.bound, found.best
    plane.axhspan(bound, 1.02, color="tab:green", alpha=0.15, label="kept enough")
    plane.plot(*zip(*(t.scores for t in found.trials), strict=True), "o", ms=4, label="settings")
    plane.plot(*found.vanilla, "ks", label="vanilla")
    if found.oracle:
        plane.plot(*found.oracle, "b^", label="oracle")
    if best:
        plane.plot(*best.scores, "r*", ms=12, label="chosen")
    plane.set(xlabel="forget accuracy", ylabel="retain accuracy", ylim=(-0.02, 1.02))
    plane.legend(fontsize="small")
    _draw_curve(curve, found)
    figure.suptitle("forget and retain accuracy, all questions")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error


def _draw_curve(axes: Any, found: Found) -> None:
    """Against gamma, for the layers and shape that were chosen; what is feasible is shaded."""
    best = found.best or found.trials[0]
    fixed = {k: v for k, v in best.setting.items() if k != "gamma"}
    line = [t for t in found.trials if {**t.setting, **fixed} == dict(t.setting)]
    gammas = [trial.setting["gamma"] for trial in line]
    axes.plot(gammas, [trial.scores.forget for trial in line], "o-", label="forget")
    axes.plot(gammas, [trial.scores.retain for trial in line], "s-", label="retain")
    wanted = found.rule.distance(best.scores) + NEAR
    for feasible, run in groupby(line, lambda trial: _is_feasible(trial.scores, found, wanted)):
        if feasible:
            among = [trial.setting["gamma"] for trial in run]
            axes.axvspan(among[0], among[-1], color="tab:green", alpha=0.15, lw=2)
    axes.axhline(found.rule.bound, color="gray", ls=":")
    layers = strength_of(best.setting).layers
    axes.set(xscale="log", xlabel=f"gamma, layers {layers}; shaded: feasible", ylim=(-0.02, 1.02))
    axes.legend(fontsize="small")


def _is_feasible(scores: Scores, found: Found, wanted: float) -> bool:
    return found.rule.allows(scores) and found.rule.distance(scores) <= wanted
