"""Collect, reduce, apply and evaluate in one go, timed, with a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from kvwstream.accessor import LayerRange
from kvwstream.errors import StorageError
from kvwstream.examples import Example
from kvwstream.models import load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.cost import cost_ratios
from kvwstream.pipelines.evaluate import Evaluation, judge
from kvwstream.pipelines.preparation import Preparation
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.progress import Progress
from kvwstream.strength import Strength


@dataclass(frozen=True)
class MainJob:
    """What to forget, what to retain, how strongly, and what to ask before and after."""

    model: Path
    forget: Sequence[Example]
    retain: Sequence[Example]
    questions: dict[str, tuple[str, Sequence[Example]]]
    """By short name: what the table calls them, and the examples. `forget` is one of them."""
    gamma: float
    layers: LayerRange
    max_new_tokens: int


@dataclass
class Outcome:
    """What a main job measured."""

    before: dict[str, Evaluation] = field(default_factory=dict)
    after: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    relative_cost: float = 0.0
    """Seconds to measure retain records over seconds of plain forward passes, median."""

    @contextmanager
    def timed(self, verb: str) -> Iterator[None]:
        """Note the seconds that a verb takes."""
        start = time.perf_counter()
        yield
        self.seconds[verb] = time.perf_counter() - start


def check_new(out: Path) -> None:
    """`StorageError` if `out` exists."""
    if out.exists():
        raise StorageError(f"{out}: exists already; remove it, or choose another with --out")


def run_main_job(job: MainJob, out: Path, progress: Progress) -> Outcome:
    """Everything through the code of the real commands, into the new folder `out`."""
    check_new(out)
    outcome = Outcome()
    stores = {kind: str(out / f"{kind}.zarr") for kind in ("retain", "forget")}
    measured: dict[str, Preparation] = {}
    for kind, examples in (("retain", job.retain), ("forget", job.forget)):
        with outcome.timed(f"collect {kind}"):
            measured[kind] = prepare(str(job.model), examples)
            collect(measured[kind], stores[kind], progress=progress)
    statistics, weakened = str(out / "statistics.zarr"), out / "weakened"
    with outcome.timed("reduce"):
        reduce([stores["retain"]], statistics, [stores["forget"]], progress=progress)
    with outcome.timed("apply"):
        apply(job.model, statistics, weakened, Strength(job.gamma, job.layers))
    for when, folder, answers in (
        ("before", job.model, outcome.before),
        ("after", weakened, outcome.after),
    ):
        with outcome.timed(f"evaluate {when}"):
            loaded = load_model(folder)
            for kind, (_, examples) in job.questions.items():
                answers[kind] = judge(
                    loaded, examples, max_new_tokens=job.max_new_tokens, progress=progress
                )
                answers[kind].write(out / "answers" / f"{kind}-{when}.jsonl")
    outcome.relative_cost = median(
        cost_ratios(load_model(job.model), measured["retain"], measured["retain"].plan.part(0))
    )
    return outcome


def accuracy_table(job: MainJob, outcome: Outcome) -> Table:
    """Accuracy before and after, a row per kind of question."""
    title = f"{job.model.name}, gamma {job.gamma}, layers {job.layers}"
    table = Table(title=title, title_style="bold")
    table.add_column("questions about")
    for name in ("asked", "before", "after"):
        table.add_column(name, justify="right")
    for kind, (text, examples) in job.questions.items():
        before, after = outcome.before[kind].accuracy, outcome.after[kind].accuracy
        style = "bold green" if kind == "forget" and after <= 0.05 < before else ""
        table.add_row(text, str(len(examples)), f"{before:.2f}", f"{after:.2f}", style=style)
    return table


def answer_table(outcome: Outcome, kinds: Sequence[str], each: int = 2) -> Table:
    """Some questions that were answered right before, with both answers."""
    table = Table(title="the same question, before and after", title_style="bold")
    for name in ("question", "before", "after"):
        table.add_column(name)
    for kind in kinds:
        old, new = outcome.before[kind].judgements, outcome.after[kind].judgements
        right = [pair for pair in zip(old, new, strict=True) if pair[0].correct]
        for before, after in right[:each]:
            table.add_row(before.question, before.response, after.response)
    return table


def show(job: MainJob, outcome: Outcome, out: Path, talk: Sequence[str]) -> None:
    """Print the tables, where the artefacts lie and what to try next."""
    console = Console(highlight=False, width=100)
    console.print()
    console.print(accuracy_table(job, outcome))
    console.print(answer_table(outcome, talk))
    times = Table(title="seconds", title_style="bold", show_header=False)
    for verb, seconds in outcome.seconds.items():
        times.add_row(verb, f"{seconds:.1f}")
    console.print(times)
    console.print(
        f"A collected record costs {outcome.relative_cost:.2f} of a plain forward pass over it.\n\n"
        f"What was made lies in {out}: retain.zarr, forget.zarr, statistics.zarr, answers/, and\n"
        "the weakened checkpoint weakened/. Try next:\n"
        f"  kvwstream audit {out}/retain.zarr {out}/forget.zarr {out}/statistics.zarr "
        f"{out}/weakened \\\n      --base {job.model} --statistics {out}/statistics.zarr\n"
        f"  kvwstream apply {job.model} {out}/statistics.zarr {out}/weaker \\\n"
        f"      --gamma {job.gamma / 2:g} --layers 5:20",
        soft_wrap=True,
        markup=False,
    )
