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
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.methods.kvw import permuted
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.answers import AnswerEncoder
from kvwstream.coefficients import Float64
from kvwstream.examples import Example, question_answer
from kvwstream.gates import gated
from kvwstream.generation import generate_answers
from kvwstream.metrics import contains
from kvwstream.models import load_model
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.demo import LAYERS, facts
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import MOMENTS, Site
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength

WORDINGS = ("Name the capital of {}.", "{}'s capital city is called what?")
"""Collected beside the demo's; none of them is asked afterwards."""


class Row(NamedTuple):
    """What is collected, and what is made of it."""

    forget: str = "one"
    """A key of `collected`."""
    options: dict[str, Any] | None = None
    """Fields of a `Strength`."""
    tokens: str = "answer"
    layers: LayerRange = LayerRange(*LAYERS)
    permuted: bool = False
    """S dealt out anew within each layer: the control."""


ENERGY, COHERENT, SQUARED = {"shape": "energy"}, {"shape": "coherent"}, {"power": 2.0}
ABOVE = {"threshold": 1.0}
ROWS = {
    "paper, 1 wording": Row(),
    "A^2, 1 wording": Row(options=SQUARED),
    "energy, 1 wording": Row(options=ENERGY),
    "coherent, 1 wording": Row(options=COHERENT),
    "energy, permuted": Row(options=ENERGY, permuted=True),
    "paper, 3 wordings": Row("three"),
    "A^2, 3 wordings": Row("three", SQUARED),
    "energy, 3 wordings": Row("three", ENERGY),
    "A^2, 3 wordings and reversed": Row("reversed", SQUARED),
    "energy, 3 wordings and reversed": Row("reversed", ENERGY),
    "A^2, question tokens": Row(options=SQUARED, tokens="question"),
    "A^2, all tokens": Row(options=SQUARED, tokens="all"),
    "coherent, all tokens": Row(options=COHERENT, tokens="all"),
    "A above 1, squared, 1 wording": Row(options={**SQUARED, **ABOVE}),
    "A above 1, squared, all tokens": Row(options={**SQUARED, **ABOVE}, tokens="all"),
    "coherent above 1, all tokens": Row(options={**COHERENT, **ABOVE}, tokens="all"),
    "A^2, layers 1 to 13": Row(options=SQUARED, layers=LayerRange(1, 13)),
    "A^2, layers 14 to 27": Row(options=SQUARED, layers=LayerRange(14, 27)),
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
    """The model, what is collected, and what is asked."""

    def __init__(self, work: Path) -> None:
        self.work, self.base = work, smollm2_checkpoint()
        self.loaded = load_model(self.base, device="cpu")
        self.encoder = AnswerEncoder(self.loaded.processor, self.loaded.model.config)
        self.sets = {"retain": facts("retain"), **collected()}
        paraphrases = facts("paraphrases")
        self.questions = {
            "chosen by": [e for e in paraphrases if e.id.startswith("paraphrase1")],
            "paraphrases": [e for e in paraphrases if e.id.startswith("paraphrase2")],
            **{name: facts(name) for name in ("forget", "reversed", "neighbours", "general")},
            "retain": facts("retain")[::4],
        }

    def statistics(self, forget: str, tokens: str) -> Statistics:
        """Of a forget set and a token rule; collected once."""
        place = Location(str(self.work / f"statistics-{forget}-{tokens}.zarr"))
        if not place.exists():
            stores = {kind: str(self.work / f"{kind}-{tokens}.zarr") for kind in ("retain", forget)}
            for kind, store in stores.items():
                examples = self.sets[kind]
                collect(prepare(str(self.base), examples, moments=MOMENTS, tokens=tokens), store)
            reduce([stores["retain"]], place.url, [stores[forget]])
        return Statistics.open(place)

    def accuracy(
        self, kind: str, sites: Sequence[Site] = (), gates: Float64 | None = None
    ) -> float:
        """Share of right answers."""
        examples = self.questions[kind]
        with nullcontext() if gates is None else gated(self.loaded.model, sites, gates):
            answers = generate_answers(
                self.loaded, self.encoder, examples, batch_size=32, max_new_tokens=16
            )
        right = [
            contains(a, e.keywords or (e.answer,)) for a, e in zip(answers, examples, strict=True)
        ]
        return round(sum(right) / len(right), 4)

    def row(self, row: Row) -> dict[str, Any]:
        """Gamma by the first paraphrases, then all questions."""
        stored = self.statistics(row.forget, row.tokens)
        total = Strength(0, row.layers, **(row.options or {})).exponent(stored)
        if row.permuted:
            total = permuted(total, stored.sites)
        low, high, curve = -3.0, 4.0, []
        scale = math.log(float(total.mean()))

        def accuracy(kind: str, place: float) -> tuple[float, float]:
            gamma = math.exp(place - scale)
            gates = vector_gates(stored.sites, total, gamma, row.layers)
            return gamma, self.accuracy(kind, stored.sites, gates)

        for _ in range(STEPS):
            middle = (low + high) / 2
            curve.append(accuracy("chosen by", middle))
            low, high = (low, middle) if curve[-1][1] <= 0.1 else (middle, high)
        found = {kind: accuracy(kind, high)[1] for kind in self.questions}
        return {"gamma": math.exp(high - scale), **found, "curve": curve}


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
                found = {kind: capitals.accuracy(kind) for kind in capitals.questions}
                rows.append({"name": "vanilla", "gamma": 0.0, **found})
                print(json.dumps(rows[-1]), file=out, flush=True)
            for name, row in todo.items():
                rows.append({"name": name, **capitals.row(row)})
                print(json.dumps(rows[-1]), file=out, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
