"""Shapes of the accessor on the vision test bed, each at the same forgetting: `make shapes`.

    python -m benchmarks.shapes [--work FOLDER] [--sets N] [--shapes NAME ...] [--additions FILE]

One collection of all persons (two of whom are forgotten at a time, the others are the retain data)
serves every shape. For each set and shape gamma is searched until the forgotten persons' answers
have a probability of 0.08 on fold 1; fold 2 is then asked at that gamma: other drawings of the
forgotten, other retain persons. No drawing of either fold was collected. A trial is a line of
trials.jsonl; the same command goes on after the last one. The table stands in docs/shapes.md. With
--additions it is another trained test bed (benchmarks.testbed.train --seed 1), which needs a --work
of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.methods.kvw import permuted
from benchmarks.testbed.mixture import Sample, collate
from benchmarks.testbed.model import build, make_processor
from benchmarks.testbed.persons import PERSONS, TEST_DRAWINGS
from benchmarks.testbed.questions import FACTS, IMAGE_WORDINGS, person_questions
from kvwstream.accessor import EPSILON, LayerRange, accessor, coherent, energy, vector_gates
from kvwstream.coefficients import Float64
from kvwstream.examples import question_answer
from kvwstream.gates import gated
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.plan import MOMENTS
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores.collected import CollectStore

ADDITIONS = Path(__file__).parent / "testbed" / "vanilla.safetensors"
LAYERS = LayerRange(1, 27)
SETS = tuple((first, first + 1) for first in (10, 12, 14, 16, 0, 4, 6, 8))
"""Persons forgotten together; the last four chose the shape, the first four report it."""
TARGET, TOLERANCE, TRIES = 0.08, 0.15, 8
DRAWINGS = 3

Shape = Callable[["View"], Float64]


class View:
    """The records of all persons, parted into those to forget and those to retain."""

    def __init__(self, store: CollectStore, forgotten: tuple[int, ...]) -> None:
        parts = [store.read_records(number) for number in range(store.plan.num_parts)]
        counts = np.concatenate([part.counts[:, 0] for part in parts]).astype(np.float64)
        person = np.array([int(name[1:3]) for name in store.record_names()])
        chosen = np.isin(person, forgotten)
        self.sites = store.sites
        self.layer = np.concatenate([np.full(site.width, site.layer) for site in store.sites])
        self.forget, self.retain, self.means = {}, {}, {}
        for moment in MOMENTS:
            sums = np.concatenate([part.sums[moment] for part in parts]).astype(np.float64)
            self.forget[moment] = sums[chosen] / counts[chosen, None]
            self.retain[moment] = sums[~chosen] / counts[~chosen, None]
            self.means[moment] = sums[~chosen].sum(0) / counts[~chosen].sum()
        self.everywhere = np.ones(len(self.layer), bool)

    def rows(self, reference: Float64 | None = None) -> Float64:
        """A of each record against C_r, or against another reference."""
        above = self.means["abs"] if reference is None else reference
        return accessor(self.forget["abs"], above, self.everywhere)

    def energies(self) -> Float64:
        """Rows of the shape `energy`."""
        means = (self.means["abs"], self.means["square"])
        return energy(self.forget["abs"], self.forget["signed"], *means, self.everywhere)

    def coherent(self) -> Float64:
        """Rows of the shape `coherent`."""
        return coherent(self.rows(), self.forget["abs"], self.forget["signed"])

    def deviations(self) -> Float64:
        """As energy, of what differs from the retain data's signed mean."""
        moved = self.forget["signed"] - self.means["signed"]
        means = (self.means["abs"], self.means["square"])
        return energy(self.forget["abs"], moved, *means, self.everywhere)

    def spread(self, deviations: float) -> Float64:
        """C_r and so many standard deviations between retain records."""
        above: Float64 = self.means["abs"] + deviations * self.retain["abs"].std(0)
        return above

    def normalised(self, total: Float64) -> Float64:
        """S over its mean in each layer."""
        sums = np.bincount(self.layer, total) / np.bincount(self.layer)
        scaled: Float64 = total / (sums[self.layer] + EPSILON)
        return scaled


def quantile(view: View, share: float) -> Float64:
    """Of the retain records' token means; 1 is the largest."""
    return np.quantile(view.retain["abs"], share, axis=0)


SHAPES: dict[str, Shape] = {
    "paper": lambda v: v.rows().sum(0),
    "energy": lambda v: v.energies().sum(0),
    "coherent": lambda v: v.coherent().sum(0),
    "control": lambda v: permuted(v.energies().sum(0), v.sites),
    "paper, control": lambda v: permuted(v.rows().sum(0), v.sites),
    "A^2": lambda v: (v.rows() ** 2).sum(0),
    "A^4": lambda v: (v.rows() ** 4).sum(0),
    "A above 1": lambda v: np.maximum(v.rows() - 1, 0).sum(0),
    "A above 2": lambda v: np.maximum(v.rows() - 2, 0).sum(0),
    "A above 1, squared": lambda v: (np.maximum(v.rows() - 1, 0) ** 2).sum(0),
    "coherent above 1": lambda v: np.maximum(v.coherent() - 1, 0).sum(0),
    "exp(A) - 1": lambda v: np.expm1(v.rows()).sum(0),
    "energy, power 2": lambda v: (v.energies() ** 2).sum(0),
    "deviation": lambda v: v.deviations().sum(0),
    "spread 2": lambda v: v.rows(v.spread(2)).sum(0),
    "spread 3": lambda v: v.rows(v.spread(3)).sum(0),
    "quantile 0.9": lambda v: np.expm1(v.rows(quantile(v, 0.9))).sum(0),
    "largest": lambda v: np.expm1(v.rows(quantile(v, 1.0))).sum(0),
    "A^2, layers alike": lambda v: v.normalised((v.rows() ** 2).sum(0)),
}


class Bed:
    """The test bed's model, and questions with their answers packed round each drawing."""

    def __init__(self, work: Path, additions: Path = ADDITIONS) -> None:
        base = smollm2_checkpoint()
        self.processor = make_processor(base)
        self.model = build(base, additions, work / "testbed").eval()
        examples = [
            question_answer(
                f"p{person.number:02d}-{question.kind}-{number}",
                *(question.text, question.answer, [png(person.drawing(number))]),
            )
            for person in PERSONS
            for number in range(DRAWINGS)
            for question in person_questions(person)
        ]
        prepared = prepare(str(work / "testbed"), examples, moments=MOMENTS)
        self.store = collect(prepared, str(work / "persons.zarr"))

    @torch.no_grad()
    def ask(self, persons: tuple[int, ...], fold: int, drawings: int, values: Float64) -> Any:
        """Share of answers whose every token is the likeliest, and their mean probability."""
        samples = [
            Sample(PERSONS[person].drawing(TEST_DRAWINGS + 100 * fold + number), pairs)
            for person in persons
            for number in range(drawings)
            for pairs in [questions(person, number + fold)]
        ]
        inputs, labels = collate(samples, self.processor)
        with gated(self.model, self.store.sites, values):
            hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        rows, places = torch.nonzero(labels != -100, as_tuple=True)
        targets = labels[rows, places]
        scores = torch.log_softmax(self.model.lm_head(hidden[rows, places - 1]), -1)
        ends = targets == self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        answer = (torch.cumsum(ends, 0) - ends.long())[~ends]
        right = (scores.argmax(-1) == targets)[~ends].float()
        logs = scores.gather(1, targets[:, None])[~ends, 0]
        count = int(answer.max()) + 1
        exact = torch.ones(count).scatter_reduce(0, answer, right, "amin")
        total = torch.zeros(count).scatter_add(0, answer, logs)
        return round(float(exact.mean()), 4), round(float(total.exp().mean()), 4)


def questions(person: int, wording: int) -> list[tuple[str, str]]:
    """Name, job and city, asked in one wording or another, with the answers."""
    who = PERSONS[person]
    return [(IMAGE_WORDINGS[fact][wording % 2], getattr(who, fact)) for fact in FACTS]


def png(image: Any) -> bytes:
    """The bytes of a drawing."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def trial(bed: Bed, total: Float64, forgotten: tuple[int, ...]) -> dict[str, Any]:
    """Gamma for the target on fold 1 (regula falsi in logarithms), then both folds."""

    def gates_at(place: float) -> Float64:
        return vector_gates(bed.store.sites, total, math.exp(place), LAYERS)

    inside = np.quantile(total, 0.97) or total.max()
    place, low, high, curve = -math.log(inside), None, None, list[Any]()
    while len(curve) < TRIES:
        exact, probability = bed.ask(forgotten, 1, 4, gates_at(place))
        error = math.log((probability + 1e-6) / TARGET)
        curve.append((place, exact, probability))
        if abs(error) < TOLERANCE:
            break
        low, high = ((place, error), high) if error > 0 else (low, (place, error))
        if low and high:
            share = min(0.85, max(0.15, low[1] / (low[1] - high[1])))
            place = low[0] + share * (high[0] - low[0])
        else:
            place += min(1.5, max(0.25, 0.3 * abs(error))) * (1 if error > 0 else -1)
    place = min(curve, key=lambda point: abs(math.log((point[2] + 1e-6) / TARGET)))[0]
    kept = [person for person in range(len(PERSONS)) if person not in forgotten]
    folds = {
        f"{kind} {fold}": bed.ask(persons, fold, drawings, gates_at(place))
        for fold in (1, 2)
        for kind, persons, drawings in (
            ("forget", forgotten, 4),
            ("retain", tuple(kept[fold - 1 :: 2]), 1),
        )
    }
    return {"gamma": math.exp(place), **folds, "curve": curve}


def read(file: Path) -> dict[tuple[str, tuple[int, ...]], dict[str, Any]]:
    """Finished trials by shape and set."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {(t["shape"], tuple(t["set"])): t for t in map(json.loads, lines)}


def table(trials: dict[tuple[str, tuple[int, ...]], dict[str, Any]]) -> str:
    """Means over sets on fold 2, a row per shape, as Markdown."""
    lines = ["| shape | sets | forget | retain | retain probability |", "|---|---|---|---|---|"]
    for shape in dict.fromkeys(name for name, _ in trials):
        found = [t for (name, _), t in trials.items() if name == shape]
        cells = (("forget 2", 0), ("retain 2", 0), ("retain 2", 1))
        means = (f"{fmean(t[field][which] for t in found):.2f}" for field, which in cells)
        lines.append(f"| {shape} | {len(found)} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("shapes-output"))
    parser.add_argument("--sets", type=int, default=len(SETS), help="only the first so many")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--additions", type=Path, default=ADDITIONS, help="the trained test bed")
    parser.add_argument("--table", action="store_true", help="show what is there, run nothing")
    options = parser.parse_args()
    file = options.work / "trials.jsonl"
    trials = read(file)
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        bed = Bed(options.work, options.additions)
        for forgotten in SETS[: options.sets]:
            view = View(bed.store, forgotten)
            for name in options.shapes:
                if (name, forgotten) in trials:
                    continue
                made = trial(bed, SHAPES[name](view), forgotten)
                trials[name, forgotten] = {"shape": name, "set": forgotten, **made}
                with file.open("a") as out:
                    out.write(json.dumps(trials[name, forgotten]) + "\n")
    print(table(trials))


if __name__ == "__main__":
    main()
