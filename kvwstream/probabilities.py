"""What a model thinks of given answers: log-probabilities of their tokens, and scores made of them.

One forward pass a batch, teacher-forced. The output layer runs at the answer positions alone, so
that no logits of the prompt are computed. The end of turn is not part of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvwstream.answers import AnswerEncoder
from kvwstream.batches import Batch
from kvwstream.coefficients import Float64
from kvwstream.collector import module_inputs, select_rows
from kvwstream.errors import ModelError, NumericalError
from kvwstream.examples import Example
from kvwstream.models import LoadedModel, inference

MIN_K = 0.2
"""Share of the tokens that Min-K looks at (Shi et al. 2024 found 20 % best)."""
ROWS = 256
"""Answer positions whose float32 logits are held at a time."""


@dataclass(frozen=True)
class AnswerScores:
    """One answer, token by token: `log_probs` (token,) float64, natural logarithm."""

    log_probs: Float64
    best: npt.NDArray[np.bool_]
    """(token,) whether the model finds no other token likelier."""

    @property
    def loss(self) -> float:
        """Mean negative log-probability of a token; low for members of the training data."""
        return float(-self.log_probs.mean())

    @property
    def probability(self) -> float:
        """P(answer | question)^(1 / tokens), TOFU's and CLEAR's answer probability."""
        return float(np.exp(-self.loss))

    @property
    def min_k(self) -> float:
        """Mean negative log-probability of the `MIN_K` least likely tokens, one at least."""
        count = max(1, int(MIN_K * len(self.log_probs)))
        return float(-np.sort(self.log_probs)[:count].mean())

    @property
    def exact_memorisation(self) -> float:
        """Share of the tokens that are the likeliest given all before them."""
        return float(self.best.mean())

    @property
    def extraction_strength(self) -> float:
        """1 - k / tokens, where k tokens must be given before greedy decoding says the rest."""
        wrong = np.flatnonzero(~self.best)
        given = 0 if not len(wrong) else int(wrong[-1]) + 1
        return 1 - given / len(self.best)

    def scores(self) -> dict[str, float]:
        """All of them by name, and `num_tokens`."""
        names = ("loss", "probability", "min_k", "exact_memorisation", "extraction_strength")
        values = {name: getattr(self, name) for name in names}
        return {**values, "num_tokens": len(self.log_probs)}


def answer_scores(
    loaded: LoadedModel, encoder: AnswerEncoder, examples: Sequence[Example]
) -> list[AnswerScores]:
    """The answers of one batch of examples, in order.

    Raises `DataError` where an answer cannot be located, `NumericalError` where a log-probability
    is not finite.
    """
    batch = encoder.batch(examples, [encoder.locate(e) for e in examples], "answer")
    batch = batch.to(loaded.device)
    with inference(loaded.model):
        logits = answer_logits(loaded.model, batch)
        targets = batch.targets.to(logits.device)
        likely, best = [], []
        for rows, ids in zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True):
            chosen = rows.float().log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
            likely.append(chosen.double())
            best.append(rows.argmax(dim=-1) == ids)
        log_probs, hits = torch.cat(likely).cpu().numpy(), torch.cat(best).cpu().numpy()
    ends = np.cumsum(batch.counts)[:-1]
    result = []
    for example, values, right in zip(
        examples, np.split(log_probs, ends), np.split(hits, ends), strict=True
    ):
        if not np.isfinite(values).all():
            raise NumericalError(
                f"example {example.id!r}: a log-probability of its answer is not finite; look at "
                "the example, or use a wider dtype (--dtype float32)"
            )
        result.append(AnswerScores(values, right))
    return result


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """Logits (row, token of the vocabulary) at the rows of a batch, in the dtype of the model."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__}: has no output layer to ask for probabilities")
    with module_inputs([head], lambda _, hidden: select_rows(hidden, batch.rows)):
        logits = model(**batch.inputs, use_cache=False).logits
    return logits.reshape(-1, logits.shape[-1])  # type: ignore[no-any-return]
