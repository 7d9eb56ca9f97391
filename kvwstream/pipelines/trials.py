"""Settings of a search, each tried once on one loaded model and noted as a line of a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.answers import AnswerEncoder
from kvwstream.canonical import canonical_json
from kvwstream.checkpoint import Checkpoint
from kvwstream.coefficients import Float64
from kvwstream.errors import OptionError
from kvwstream.examples import Example
from kvwstream.gates import gated
from kvwstream.generation import generate_answers
from kvwstream.journal import Journal
from kvwstream.metrics import TEXT_SCORES
from kvwstream.models import LoadedModel, load_model
from kvwstream.pipelines.evaluate import CORRECT, judged
from kvwstream.plan import Site
from kvwstream.search import Scores, Setting
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength

KINDS = ("forget", "retain")
SCORES = (CORRECT, *TEXT_SCORES)
"""What an answer can be judged by: the accuracy of its kind of question, or a score of its text."""
VANILLA: Setting = {"gamma": 0.0}
ORACLE = "oracle"
Maker = Callable[[Strength], Float64]
"""Gates (vector,) of a strength."""


def strength_of(setting: Setting) -> Strength:
    """A setting of the search as `apply` takes it."""
    rest = {k: v for k, v in setting.items() if k not in ("gamma", "start", "stop")}
    return Strength(setting["gamma"], LayerRange(setting["start"], setting["stop"]), **rest)


@dataclass(frozen=True)
class Asking:
    """Which questions are put to which model, and how."""

    model: Path
    questions: Mapping[str, Sequence[Example]]
    """By kind, `KINDS`."""
    folds: Mapping[str, Sequence[int]]
    """0 or 1 for each of them."""
    score: str
    """One of `SCORES`."""
    batch_size: int
    max_new_tokens: int
    dtype: str
    device: str


class Frozen:
    """Gates of stored A; S is read once for each shape."""

    def __init__(self, stored: Statistics) -> None:
        self.stored = stored
        self.sites: list[Site] = stored.sites
        self._exponents: dict[bytes, Float64] = {}

    def exponent(self, strength: Strength) -> Float64:
        """S (vector,), which depends on neither gamma nor layers."""
        values = strength.to_dict()
        key = canonical_json({k: v for k, v in values.items() if k not in ("gamma", "layers")})
        if key not in self._exponents:
            self._exponents[key] = strength.exponent(self.stored)
        return self._exponents[key]

    def __call__(self, strength: Strength) -> Float64:
        """Gates (vector,)."""
        total = self.exponent(strength)
        return vector_gates(self.sites, total, strength.gamma, strength.layers)


class Trier:
    """One loaded model, and how it scored at each setting."""

    def __init__(
        self, asking: Asking, sites: Sequence[Site], journal: Journal, make_gates: Maker
    ) -> None:
        self.asking, self.sites = asking, sites
        self.journal, self.make_gates = journal, make_gates
        self.known = {canonical_json(row["setting"]): row for row in journal.rows}

    @cached_property
    def loaded(self) -> LoadedModel:
        """Loaded when the first setting is tried that no line tells of."""
        return load_model(self.asking.model, self.asking.dtype, self.asking.device)

    def line(self, setting: Setting) -> Mapping[str, Any]:
        """The line of a setting: the score of every question of each kind."""
        key = canonical_json(dict(setting))
        if key not in self.known:
            if setting == VANILLA:
                answers = self._ask(self.loaded)
            else:
                gates = self.make_gates(strength_of(setting))
                with gated(self.loaded.model, self.sites, gates):
                    answers = self._ask(self.loaded)
            self._note(key, dict(setting), answers)
        return self.known[key]

    def oracle(self, folder: Path) -> Mapping[str, Any]:
        """The line of a model that never saw the forget data."""
        setting = {ORACLE: Checkpoint.open(folder).digest}
        key = canonical_json(setting)
        if key not in self.known:
            loaded = load_model(folder, self.asking.dtype, self.asking.device)
            self._note(key, setting, self._ask(loaded))
        return self.known[key]

    def scores(self, line: Mapping[str, Any], fold: int | None) -> Scores:
        """Means over one fold, or over all questions."""
        means = []
        for kind in KINDS:
            pairs = zip(line[kind], self.asking.folds[kind], strict=True)
            means.append(fmean(score for score, own in pairs if fold is None or own == fold))
        return Scores(*means)

    def scale(self, chosen: Setting) -> float:
        """What brings the mean of gamma * S to that of the paper's shape.

        `OptionError` where the threshold leaves nothing of S, so that no gamma would do anything.
        """
        if not isinstance(self.make_gates, Frozen):
            return 1.0
        strength = strength_of({**chosen, "gamma": 1.0})
        paper = Strength(1.0, strength.layers)
        means = [self.make_gates.exponent(each).mean() for each in (paper, strength)]
        if means[0] and not means[1]:
            raise OptionError(
                f"threshold {strength.threshold:g}: no A of shape {strength.shape} is above it, "
                "so that no gamma would weaken anything; choose a lower one"
            )
        return float(means[0] / means[1]) if means[0] else 1.0

    def _ask(self, loaded: LoadedModel) -> dict[str, list[float]]:
        encoder = AnswerEncoder(loaded.processor, loaded.model.config)
        examples = [example for kind in KINDS for example in self.asking.questions[kind]]
        responses = generate_answers(
            loaded,
            encoder,
            examples,
            batch_size=self.asking.batch_size,
            max_new_tokens=self.asking.max_new_tokens,
        )
        judgements = map(judged, examples, responses)
        scores = [judgement.score(self.asking.score) for judgement in judgements]
        count = len(self.asking.questions["forget"])
        return {"forget": scores[:count], "retain": scores[count:]}

    def _note(self, key: bytes, setting: dict[str, Any], answers: dict[str, list[float]]) -> None:
        row = {"setting": setting, **answers}
        self.journal.add([row])
        self.known[key] = row
