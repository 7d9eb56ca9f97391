"""`kvwstream sweep`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwstream.commands.shown import quiet_transformers
from kvwstream.options import Device, Dtype, LogJson, Model

if TYPE_CHECKING:
    from kvwstream.search import Trial


def sweep(
    model: Model,
    statistics: Annotated[str, typer.Option(help="What `reduce` wrote.")],
    forget: Annotated[str, typer.Option(help="Questions to forget, in words not collected.")],
    retain: Annotated[str, typer.Option(help="Questions that should stay.")],
    gammas: Annotated[str, typer.Option(help="Range of gamma, for the paper's shape.")] = (
        "0.001:0.05"
    ),
    layers: Annotated[
        str | None, typer.Option(help="Fixed layers; default: first and last eighth are searched.")
    ] = None,
    power: Annotated[str, typer.Option(help="One power, or several to choose from: 1,1.5,2.")] = (
        "1"
    ),
    threshold: Annotated[
        str, typer.Option(help="What A must exceed to count: one, or several: 0,0.5,1.")
    ] = "0",
    shape: Annotated[str, typer.Option(help="One shape of A, or several: paper,energy.")] = "paper",
    score: Annotated[
        str, typer.Option(help="Judge by this: correct, or as rougeL_f a score of the text.")
    ] = "correct",
    keep: Annotated[float, typer.Option(help="Share of the retain score that must be left.")] = (
        0.95
    ),
    oracle: Annotated[
        str | None, typer.Option(help="A model without the forget data: come closest to it.")
    ] = None,
    collected: Annotated[
        str | None, typer.Option(help="Forget data or store as collected: none of it is asked.")
    ] = None,
    run_progressive: Annotated[
        bool, typer.Option("--run-progressive", help="Collect anew for every gamma.")
    ] = False,
    trials: Annotated[int, typer.Option(min=1, help="Settings to try on each fold.")] = 24,
    out: Annotated[Path, typer.Option(help="Log of the trials; the same command goes on.")] = Path(
        "sweep.jsonl"
    ),
    plot: Annotated[Path | None, typer.Option(help="Picture (.svg, .png) of the trials.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first of each.")] = None,
    seed: Annotated[int, typer.Option(help="Decides folds and proposals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 20,
    dtype: Dtype = "auto",
    device: Device = "auto",
    log_json: LogJson = False,
) -> None:
    """Search the strength that forgets most and keeps enough; nothing is collected or written.

    Chosen on one half of the questions and reported on the other, both ways. PATH#TASK chooses
    among a benchmark's questions.
    """
    from kvwstream.accessor import LayerRange
    from kvwstream.checkpoint import resolve_model
    from kvwstream.commands.sweep_result import check_plot, draw, parse_gammas, parse_numbers, show
    from kvwstream.errors import OptionError
    from kvwstream.pipelines import sweep as pipeline
    from kvwstream.pipelines import sweep_progressive as progressive
    from kvwstream.pipelines.unseen import check_unasked
    from kvwstream.progress import progress_for
    from kvwstream.readers import read_questions

    quiet_transformers()
    progress = progress_for(log_json=log_json)
    low, high = parse_gammas(gammas)
    if plot:
        check_plot(plot)
    task = pipeline.Sweep(
        model=resolve_model(model),
        statistics=statistics,
        forget=read_questions(forget)[:limit],
        retain=read_questions(retain)[:limit],
        score=score,
        low=low,
        high=high,
        layers=LayerRange.parse(layers) if layers else None,
        choices={
            "power": parse_numbers("power", power),
            "threshold": parse_numbers("threshold", threshold),
            "shape": sorted(set(shape.split(","))),
        },
        keep=keep,
        oracle=resolve_model(oracle) if oracle else None,
        trials=trials,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
    )
    passes: progressive.Passes | None = None
    if not progressive.is_frozen(task.stored):
        if not run_progressive or collected is None or task.stored.num_forget_records:
            raise progressive.refuse(model, statistics, task.stored, collected)
        folder = out.with_name(f"{out.stem}-progressive")
        passes = progressive.Passes(
            model, statistics, read_questions(collected), folder, dtype, device, progress
        )
        passes.check(task.choices)
    elif run_progressive:
        raise OptionError(f"{statistics}: is frozen and serves every gamma: no --run-progressive")
    for line in check_unasked(task.forget, task.stored, collected):
        progress.tell(f"warning: {line}")
    found = pipeline.sweep(task, out=out, make_gates=passes, progress=progress)
    show(found, task)
    if plot:
        draw(found, plot)
    if found.best is None:
        typer.echo(f"no setting keeps {keep:g} of the retain score: widen --gammas downwards")
        return
    for line in chosen_commands(model, statistics, collected if passes else None, found.best):
        typer.echo(line)


def chosen_commands(model: str, statistics: str, collected: str | None, best: Trial) -> list[str]:
    """What writes the chosen strength."""
    from kvwstream.pipelines.sweep_progressive import commands
    from kvwstream.pipelines.trials import strength_of

    strength = strength_of(best.setting)
    if collected:
        return commands(model, statistics, collected, strength.gamma, str(strength.layers))
    words = ["kvwstream", "apply", model, statistics, "weakened"]
    words += ["--gamma", f"{strength.gamma:g}", "--layers", str(strength.layers)]
    for name, value in best.setting.items():
        if name not in ("gamma", "start", "stop"):
            words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return [shlex.join(words)]
