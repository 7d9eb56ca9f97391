"""What an evaluation of all views comes to: means, and what benchmarks make of many scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvwstream.aggregates import (
    Distance,
    area_under_curve,
    forgotten_truth,
    harmonic_mean,
    kept_truth,
    kolmogorov_smirnov,
)
from kvwstream.examples import Example
from kvwstream.pipelines.evaluate import Evaluation, Judgement

AS_IS = "as it is"
STAYING = ("neighbours", "general")
"""Views whose answers should stay."""


@dataclass
class Report:
    """What was found, by state of the model and view; both hold `AS_IS`."""

    views: Mapping[str, Sequence[Example]]
    asked: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    """Responses and scores, in the order of the data."""
    scored: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    """Scores of answers that no question was put for."""
    taught: frozenset[str] = frozenset()
    """Ids of the examples to retain that were relearned from."""

    @classmethod
    def of_rows(
        cls,
        views: Mapping[str, Sequence[Example]],
        states: Sequence[str],
        asked: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        taught: Sequence[Example] = (),
    ) -> Report:
        """From all lines of a journal; `asked` names the views with responses."""
        found = {(row["state"], row["view"], row["id"]): dict(row) for row in rows}
        report = cls(views, taught=frozenset(example.id for example in taught))
        for state in states:
            report.asked[state], report.scored[state] = {}, {}
            for view, examples in views.items():
                values = [found[state, view, example.id] for example in examples]
                for value in values:
                    del value["state"], value["view"]
                if view in asked:
                    judgements = list(map(Judgement.from_dict, values))
                    report.asked[state][view] = Evaluation(judgements)
                else:
                    report.scored[state][view] = values
        return report

    def text_only(self, state: str) -> Evaluation | None:
        """The general questions that come without a picture; None if there are none."""
        if "general" not in self.views:
            return None
        judgements = self.asked[state]["general"].judgements
        pairs = zip(self.views["general"], judgements, strict=True)
        found = [judgement for example, judgement in pairs if not example.images]
        return Evaluation(found) if found else None

    def perplexity(self, state: str) -> float | None:
        """Of the answers to retain: exp of the mean loss of a token; None if there are none.

        In no state of those that were relearned from, so that states can be compared.
        """
        rows = [r for r in self.scored[state].get("retain", ()) if r["id"] not in self.taught]
        if not rows:
            return None
        tokens = sum(row["num_tokens"] for row in rows)
        return math.exp(sum(row["loss"] * row["num_tokens"] for row in rows) / tokens)

    def truth(self, state: str, view: str, ratio: str = "truth_ratio") -> float | None:
        """Truth ratio of a view, 1 being best; None where no example has wrong answers.

        Of what is to be forgotten the mean of min(R, 1 / R), of the rest that of max(0, 1 - R); R
        is TOFU's `truth_ratio` or CLEAR's `truth_ratio_geometric`.
        """
        ratios = self.asked[state][view].values(ratio)
        if not ratios:
            return None
        return kept_truth(ratios) if view in STAYING else forgotten_truth(ratios)

    def utility(self, state: str) -> float | None:
        """Harmonic mean over the views that should stay of ROUGE-L recall, answer probability and,
        where there are wrong answers, truth; None without such a view.

        The probability of a general question with wrong answers is that among them, as in TOFU.
        """
        values: list[float] = []
        for view in STAYING:
            if evaluation := self.asked[state].get(view):
                among = evaluation.mean("normalised_probability") if view == "general" else None
                alone = evaluation.mean("probability")
                found = [evaluation.mean("rougeL_recall"), alone if among is None else among]
                found.append(self.truth(state, view))
                values += [value for value in found if value is not None]
        return harmonic_mean(values) if values else None

    def membership(self, state: str, score: str) -> float | None:
        """AUC of telling the forget data from those never trained on by `loss` or `min_k`."""
        rows = self.scored[state].get("holdout")
        if not rows:
            return None
        members = self.asked[state]["forget"].values(score)
        return area_under_curve(members, [row[score] for row in rows])

    def forget_quality(self, state: str, oracle: Sequence[float]) -> Distance | None:
        """Truth ratios of the forget data against the `oracle`'s; None where there are none."""
        ratios = self.asked[state]["forget"].values("truth_ratio_geometric")
        return kolmogorov_smirnov(ratios, oracle) if ratios and oracle else None
