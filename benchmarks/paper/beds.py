"""What can be run on two CPU cores: SmolLM2's capitals and the vision test bed's persons.

Forgetting is judged by what was neither collected nor trained: capitals in other words, persons in
new drawings. The two folds hold different capitals and persons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.cases import FOLDS, Case, spread
from benchmarks.paper.published import clear
from benchmarks.testbed.data import write_all
from benchmarks.testbed.model import build
from kvwstream.examples import Example
from kvwstream.pipelines.demo import facts
from kvwstream.smollm2 import smollm2_checkpoint

TESTBED = Path(__file__).parents[1] / "testbed"


def capitals() -> Case:
    """Forty capitals; capital i is in fold 1 + i % 2 and asked in one of two unseen wordings."""
    forget, paraphrases, retain = (facts(n) for n in ("forget", "paraphrases", "retain"))
    assert len(paraphrases) == 2 * len(forget)
    unseen = [paraphrases[2 * i + i // 2 % 2] for i in range(len(forget))]
    kept = spread(retain, 40)
    questions: dict[str, Sequence[Example]] = {
        "forget_1": unseen[::2],
        "forget_2": unseen[1::2],
        "retain_1": kept[::2],
        "retain_2": kept[1::2],
        "collected": spread(forget, 10),
        "reversed": spread(facts("reversed"), 10),
        "neighbours": facts("neighbours"),
        "general": spread(facts("general"), 20),
    }
    extras = {
        "collected": "Collected wording",
        "reversed": "Reversed",
        "neighbours": "Neighbours",
        "general": "General",
    }
    title = "SmolLM2-135M-Instruct, 40 capitals"
    model = smollm2_checkpoint()
    return Case("text", title, model, None, forget, retain, questions, extras, 12)


def persons(percent: int, work: Path) -> Case:
    """CLEAR's forget split of the test bed, forgotten from captions, asked for names."""
    data = work / "data"
    if not (data / "tofu" / "full.json").exists():  # written last
        write_all(data)
    model, oracle = (built(name, work) for name in ("vanilla", f"oracle{percent:02d}"))
    case = clear(data / "clear", model, oracle, percent, faces="open")
    asked = dict(case.questions)
    for fold in FOLDS:  # two of the four drawings of each person
        asked[f"retain_{fold}"] = [q for i, q in enumerate(asked[f"retain_{fold}"]) if i % 4 < 2]
    asked |= {"faces": asked["faces"][::4], "world": asked["world"][::8]}
    return replace(
        case,
        name=f"vision-{percent:02d}",
        title=f"vision test bed, forget {percent} %",
        questions=asked,
        max_new_tokens=8,
    )


def built(name: str, work: Path) -> Path:
    """The checkpoint folder of a test bed's model, made once."""
    folder = work / name
    if not (folder / "processor_config.json").exists():  # saved last
        build(smollm2_checkpoint(), TESTBED / f"{name}.safetensors", folder)
    return folder
