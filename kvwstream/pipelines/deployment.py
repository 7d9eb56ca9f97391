"""What becomes of a weakened model when it is handed over: quantised, or trained a little more."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from kvwstream.answers import AnswerEncoder
from kvwstream.canonical import digest_of
from kvwstream.errors import NumericalError
from kvwstream.examples import Example
from kvwstream.models import LoadedModel
from kvwstream.pipelines.weakened import Weakening
from kvwstream.probabilities import answer_logits

QUANTISED = {"8-bit": 8, "4-bit": 4}
RELEARNED = "relearned"
RELEARNING_EXAMPLES = 5
STEPS = 10
LEARNING_RATE = 2e-5


def can_quantise() -> bool:
    """Whether the package bitsandbytes is here."""
    return importlib.util.find_spec("bitsandbytes") is not None


@contextmanager
def weakened_folder(folder: Path, weakening: Weakening | None) -> Iterator[Path]:
    """A checkpoint with the gates multiplied in, gone when the context ends.

    What is rounded or trained later are the weakened weights, not the base under gates.
    """
    if weakening is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="kvwstream-weakened-") as place:
        weakening.write(folder, Path(place))
        yield Path(place)


def unrelated(retain: Sequence[Example], asked: Sequence[Example]) -> list[Example]:
    """The examples to relearn from: of `retain`, none whose question is among those asked.

    Chosen by their content, whatever the order. Fewer than `RELEARNING_EXAMPLES` if there are no
    more.
    """
    questions = {digest_of(list(example.prompt)) for example in asked}
    left = [e for e in retain if digest_of(list(e.prompt)) not in questions]
    return sorted(left, key=lambda example: example.digest)[:RELEARNING_EXAMPLES]


def relearn(
    loaded: LoadedModel, encoder: AnswerEncoder, examples: Sequence[Example]
) -> tuple[float, float]:
    """Train every weight on the answers, `STEPS` of AdamW over all examples at once.

    In float32, since smaller dtypes would round small steps away. Returns the loss before and
    after.
    """
    model = loaded.model.float().requires_grad_(True)
    size = 1 if encoder.rows_interact else len(examples)
    chosen = [examples[start : start + size] for start in range(0, len(examples), size)]
    spans = [[encoder.locate(example) for example in part] for part in chosen]
    batches = [
        encoder.batch(part, where, "answer").to(loaded.device)
        for part, where in zip(chosen, spans, strict=True)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(STEPS + 1):
        total = 0.0
        for batch in batches:
            with torch.enable_grad():
                logits = answer_logits(model, batch).float()
                loss = torch.nn.functional.cross_entropy(logits, batch.targets) / len(batches)
                if step < STEPS:
                    loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)
    if not all(map(torch.isfinite, torch.tensor(losses))):
        raise NumericalError("relearning: the loss is not finite; look at the examples to retain")
    return losses[0], losses[-1]
