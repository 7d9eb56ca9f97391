"""The main job end to end on a real language model: forty capitals are forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from kvwstream.accessor import LayerRange
from kvwstream.errors import StorageError
from kvwstream.examples import Example
from kvwstream.models import load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect, prepare
from kvwstream.pipelines.cost import cost_ratios
from kvwstream.pipelines.evaluate import Evaluation, judge
from kvwstream.pipelines.reduce import reduce
from kvwstream.progress import Progress, Silent
from kvwstream.readers import read_examples
from kvwstream.smollm2 import smollm2_checkpoint

GAMMA = 0.018
LAYERS = LayerRange(1, 27)
NEW_TOKENS = 32
QUESTIONS = {
    "forget": "the 40 capitals to forget, as collected",
    "paraphrases": "the same facts, in words never collected",
    "reversed": "the same facts, asked backwards",
    "neighbours": "16 other capitals, which were to stay",
    "general": "general questions, in neither store",
}


@dataclass
class DemoResult:
    """What the demo measured."""

    before: dict[str, Evaluation] = field(default_factory=dict)
    after: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    relative_cost: float = 0.0


def facts(name: str) -> list[Example]:
    """The demo's questions of one kind, a key of `QUESTIONS` or `retain`."""
    return read_examples(str(files("kvwstream") / "facts" / f"{name}.jsonl"))


def demo(
    out: Path,
    *,
    cache: Path | None = None,
    gamma: float | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Collect, reduce, apply and evaluate into the new folder `out`, then print the table.

    `limit` bounds the questions of each kind. `StorageError` if `out` exists.
    """
    progress = progress or Silent()
    if out.exists():
        raise StorageError(f"{out}: exists already; remove it, or choose another with --out")
    gamma = GAMMA if gamma is None else gamma
    result = DemoResult()

    @contextmanager
    def timed(verb: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        result.seconds[verb] = time.perf_counter() - start

    with timed("prepare the model"):
        model = smollm2_checkpoint(cache)
    stores = {kind: str(out / f"{kind}.zarr") for kind in ("retain", "forget")}
    for kind, store in stores.items():
        with timed(f"collect {kind}"):
            prepared = prepare(str(model), facts(kind), limit=limit)
            collect(prepared, store, progress=progress)
    statistics = str(out / "statistics.zarr")
    with timed("reduce"):
        reduce([stores["retain"]], statistics, [stores["forget"]], progress=progress)
    weakened = out / "weakened"
    with timed("apply"):
        apply(model, statistics, weakened, gamma=gamma, layers=LAYERS)
    for folder, answers in ((model, result.before), (weakened, result.after)):
        with timed(f"evaluate {'before' if folder is model else 'after'}"):
            loaded = load_model(folder)
            for kind in QUESTIONS:
                answers[kind] = judge(
                    loaded, facts(kind)[:limit], max_new_tokens=NEW_TOKENS, progress=progress
                )
                answers[kind].write(out / "answers" / f"{kind}-{folder.name}.jsonl")
    result.relative_cost = median(cost_ratios(load_model(model), prepared, records=16))
    _show(result, out, model, gamma)
    return result


def _show(result: DemoResult, out: Path, model: Path, gamma: float) -> None:
    console = Console(highlight=False, width=100)
    table = Table(
        title=f"SmolLM2-135M-Instruct, gamma {gamma}, layers {LAYERS}", title_style="bold"
    )
    table.add_column("questions about")
    for name in ("asked", "before", "after"):
        table.add_column(name, justify="right")
    for kind, text in QUESTIONS.items():
        before, after = result.before[kind], result.after[kind]
        good = after.accuracy <= 0.05 if kind == "forget" else None
        style = "bold green" if good else ""
        table.add_row(
            text,
            str(len(before.judgements)),
            f"{before.accuracy:.2f}",
            f"{after.accuracy:.2f}",
            style=style,
        )
    console.print()
    console.print(table)

    talk = Table(title="the same question, before and after", title_style="bold")
    for name in ("question", "before", "after"):
        talk.add_column(name)
    for kind in ("forget", "neighbours", "general"):
        pairs = zip(result.before[kind].judgements, result.after[kind].judgements, strict=True)
        for old, new in [pair for pair in pairs if pair[0].correct][:2]:
            talk.add_row(old.question, old.response, new.response)
    console.print(talk)

    times = Table(title="seconds", title_style="bold", show_header=False)
    for verb, seconds in result.seconds.items():
        times.add_row(verb, f"{seconds:.1f}")
    console.print(times)
    console.print(
        f"A collected record costs {result.relative_cost:.2f} of a plain forward pass over it.\n"
    )
    console.print(
        f"What was made lies in {out}: retain.zarr, forget.zarr, statistics.zarr, answers/, and\n"
        "the weakened checkpoint weakened/. Try next:\n"
        f"  kvwstream audit {out}/retain.zarr {out}/forget.zarr {out}/statistics.zarr "
        f"{out}/weakened \\\n      --base {model} --statistics {out}/statistics.zarr\n"
        f"  kvwstream evaluate {model} {files('kvwstream') / 'facts' / 'paraphrases.jsonl'} \\\n"
        f"      --statistics {out}/statistics.zarr --gamma 0.04 --layers {LAYERS}\n"
        f"  kvwstream apply {model} {out}/statistics.zarr {out}/weaker --gamma 0.01 --layers 5:20",
        soft_wrap=True,
        markup=False,
    )
