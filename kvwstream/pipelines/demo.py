"""The main job end to end on a real language model: forty capitals are forgotten."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from kvwstream.accessor import LayerRange, check_gamma
from kvwstream.examples import Example
from kvwstream.pipelines.main_job import MainJob, Outcome, check_new, run_main_job, show
from kvwstream.progress import Progress, Silent
from kvwstream.readers import read_examples
from kvwstream.smollm2 import smollm2_checkpoint

GAMMA = 0.018
LAYERS = LayerRange(1, 27)
QUESTIONS = {
    "forget": "the 40 capitals to forget, as collected",
    "paraphrases": "the same facts, in words never collected",
    "reversed": "the same facts, asked backwards",
    "neighbours": "16 other capitals, which were to stay",
    "general": "general questions, in neither store",
}


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
) -> Outcome:
    """Collect, reduce, apply and evaluate into the new folder `out`, then print the table.

    `limit` bounds the examples of each kind. `StorageError` if `out` exists.
    """
    check_new(out)
    if gamma is not None:
        check_gamma(gamma)
    job = MainJob(
        model=smollm2_checkpoint(cache),
        forget=facts("forget")[:limit],
        retain=facts("retain")[:limit],
        questions={kind: (text, facts(kind)[:limit]) for kind, text in QUESTIONS.items()},
        gamma=GAMMA if gamma is None else gamma,
        layers=LAYERS,
        max_new_tokens=32,
    )
    outcome = run_main_job(job, out, progress or Silent())
    show(job, outcome, out, talk=("forget", "neighbours", "general"))
    return outcome
