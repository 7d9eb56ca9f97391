"""CLEAR and MLLMU-Bench as they are published, on models that were fine-tuned on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.cases import FOLDS, Case
from kvwstream.examples import Example
from kvwstream.readers import read_examples

PERCENTS = (5, 10, 15)


def clear(
    data: Path, vanilla: Path, oracle: Path | None, percent: int, *, faces: str | None = None
) -> Case:
    """Table 2: forgotten from captions, asked for names; `faces` is the task of the real ones.

    `data` holds CLEAR's configurations as folders, the folds beside them (`folds.py`).
    """

    def read(name: str, task: str | None) -> list[Example]:
        return read_examples(str(data / name), task=task)

    questions: dict[str, Sequence[Example]] = {}
    for fold in FOLDS:
        questions[f"forget_{fold}"] = read(f"forget{percent:02d}_perturbed_{fold}", "name")
        questions[f"retain_{fold}"] = read(f"retain_perturbed_{fold}", "name")
    questions["faces"] = read("real_faces", faces)
    questions["world"] = read("real_world", faces)
    return Case(
        f"clear-{percent:02d}",
        f"CLEAR, forget {percent} %",
        vanilla,
        oracle,
        read(f"forget{percent:02d}", "caption"),
        read(f"retain{100 - percent}", "caption"),
        questions,
        {"faces": "RealF", "world": "RealW"},
        50,
    )


def mllmu(data: Path, vanilla: Path, oracle: Path | None, percent: int) -> Case:
    """Table 1: open questions by ROUGE-L, also about the celebrities that the model knew before."""

    def read(name: str, task: str) -> list[Example]:
        return read_examples(str(data / name), task=task)

    questions: dict[str, Sequence[Example]] = {}
    for fold in FOLDS:
        questions[f"forget_{fold}"] = read(f"forget_{percent}_{fold}", "generation")
        questions[f"retain_{fold}"] = read(f"retain_{100 - percent}_{fold}", "generation")
    questions["celebrities"] = read("Retain_Set", "generation")
    return Case(
        f"mllmu-{percent:02d}",
        f"MLLMU-Bench, forget {percent} %",
        vanilla,
        oracle,
        read(f"forget_{percent}", "questions"),
        read(f"retain_{100 - percent}", "questions"),
        questions,
        {"celebrities": "Celebrities"},
        50,
        judged_by="rougeL_f",
    )


PUBLISHED = {"clear": clear, "mllmu": mllmu}
