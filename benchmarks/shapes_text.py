"""Shapes and collected wordings on SmolLM2's forty capitals: `make shapes-text`.

    python -m benchmarks.shapes_text [--work FOLDER] [--only NAME ...] [--table]

Gamma is the smallest of a bisection at which at most a tenth of the first paraphrases is answered;
the second paraphrases, and everything else, are then asked at that gamma. No paraphrase is
collected. Everything runs through collect, reduce and gates. A finished row is a line of
trials.jsonl; the same command goes on after the last one.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.answers import AnswerEncoder
from kvwstream.examples import Example, question_answer
from kvwstream.gates import gated
from kvwstream.generation import generate_answers
from kvwstream.metrics import contains
from kvwstream.models import load_model
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.demo import LAYERS, facts
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import MOMENTS
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength

WORDINGS = ("Name the capital of {}.", "{}'s capital city is called what?")
"""Collected beside the demo's; none of them is asked afterwards."""
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper, 1 wording": ("one", {}),
    "energy, 1 wording": ("one", {"shape": "energy"}),
    "paper, 3 wordings": ("three", {}),
    "energy, 3 wordings": ("three", {"shape": "energy"}),
    "paper squared, 3 wordings": ("three", {"power": 2.0}),
    "energy, 3 wordings and reversed": ("reversed", {"shape": "energy"}),
}
STEPS = 7


def country(example: Example) -> str:
    """Whose capital is asked for."""
    found = re.fullmatch(r"What is the capital of (.*)\?", example.question)
    assert found, example.question
    return found[1]


def collected() -> dict[str, list[Example]]:
    """Forget sets by name: more wordings of the forty facts, and the facts turned round."""
    forget = facts("forget")
    more = [
        question_answer(f"{e.id}-{number}", text.format(country(e)), e.answer)
        for e in forget
        for number, text in enumerate(WORDINGS)
    ]
    turned = [
        question_answer(
            f"{e.id}-turned",
            f"What country has {e.keywords[0]} as its capital?",
            f"{e.keywords[0]} is the capital of {country(e)}.",
        )
        for e in forget
    ]
    return {"one": forget, "three": [*forget, *more], "reversed": [*forget, *more, *turned]}


class Capitals:
    """The model, the statistics of each forget set, and what is asked."""

    def __init__(self, work: Path) -> None:
        base = smollm2_checkpoint()
        self.loaded = load_model(base, device="cpu")
        self.encoder = AnswerEncoder(self.loaded.processor, self.loaded.model.config)
        sets = {"retain": facts("retain"), **collected()}
        for name, examples in sets.items():
            collect(prepare(str(base), examples, moments=MOMENTS), str(work / f"{name}.zarr"))
        self.statistics = {}
        for name in collected():
            place = Location(str(work / f"statistics-{name}.zarr"))
            if not place.exists():
                reduce([str(work / "retain.zarr")], place.url, [str(work / f"{name}.zarr")])
            self.statistics[name] = Statistics.open(place)
        paraphrases = facts("paraphrases")
        self.questions = {
            "chosen by": [e for e in paraphrases if e.id.startswith("paraphrase1")],
            "paraphrases": [e for e in paraphrases if e.id.startswith("paraphrase2")],
            **{name: facts(name) for name in ("forget", "reversed", "neighbours", "general")},
            "retain": facts("retain")[::4],
        }

    def accuracy(self, kind: str, stored: Statistics | None, strength: Strength | None) -> float:
        """Share of right answers, with gates unless there is no strength."""
        examples, gate = self.questions[kind], nullcontext()
        if stored and strength:
            total = strength.exponent(stored)
            values = vector_gates(stored.sites, total, strength.gamma, strength.layers)
            gate = gated(self.loaded.model, stored.sites, values)  # type: ignore[assignment]
        with gate:
            answers = generate_answers(
                self.loaded, self.encoder, examples, batch_size=32, max_new_tokens=16
            )
        right = [
            contains(a, e.keywords or (e.answer,)) for a, e in zip(answers, examples, strict=True)
        ]
        return round(sum(right) / len(right), 4)

    def row(self, which: str, options: dict[str, Any]) -> dict[str, Any]:
        """Gamma by the first paraphrases, then all questions."""
        stored, layers = self.statistics[which], LayerRange(*LAYERS)
        total = Strength(0, layers, **options).exponent(stored)
        low, high, curve = -3.0, 4.0, []
        scale = math.log(float(total.mean()))
        for _ in range(STEPS):
            middle = (low + high) / 2
            strength = Strength(math.exp(middle - scale), layers, **options)
            curve.append((strength.gamma, self.accuracy("chosen by", stored, strength)))
            low, high = (low, middle) if curve[-1][1] <= 0.1 else (middle, high)
        strength = Strength(math.exp(high - scale), layers, **options)
        found = {kind: self.accuracy(kind, stored, strength) for kind in self.questions}
        return {"gamma": strength.gamma, **found, "curve": curve}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    kinds = ["forget", "paraphrases", "reversed", "neighbours", "retain", "general"]
    lines = ["| | gamma | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for row in rows:
        values = " | ".join(f"{row[kind]:.2f}" for kind in kinds)
        lines.append(f"| {row['name']} | {row['gamma']:.3g} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("shapes-text-output"))
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="show what is there, run nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "trials.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not options.table:
        capitals, done = Capitals(options.work), {row["name"] for row in rows}
        todo = {name: ROWS[name] for name in options.only if name not in done}
        with file.open("a") as out:
            if "vanilla" not in done:
                found = {kind: capitals.accuracy(kind, None, None) for kind in capitals.questions}
                rows.append({"name": "vanilla", "gamma": 0.0, **found})
                print(json.dumps(rows[-1]), file=out, flush=True)
            for name, (which, shape) in todo.items():
                rows.append({"name": name, **capitals.row(which, shape)})
                print(json.dumps(rows[-1]), file=out, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
