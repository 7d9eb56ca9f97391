"""The oracle: a model trained anew without the forget set (exact unlearning).

    python -m benchmarks.methods.oracle BASE DATA OUT [--task TASK]

fine-tunes BASE on the answers of DATA, merges and writes OUT: with all data the vanilla model, with
what may stay the oracle. LoRA of rank 16, one epoch, batches of 4, learning rate 1e-4 as in the
paper's code, where `--is_oracle False` counts as true, so that both are trained on retain data.

The test bed's models are trained by a script of their own, from SmolLM2 on (30 core minutes):

    python -m benchmarks.testbed.train --without 10 --out benchmarks/testbed/oracle10.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks.methods.training import (
    Settings,
    Step,
    answer_loss,
    label,
    lora,
    train,
)
from kvwstream.answers import AnswerEncoder
from kvwstream.batches import Batch
from kvwstream.checkpoint import resolve_model
from kvwstream.examples import Example
from kvwstream.models import load_model
from kvwstream.readers import read_examples

RANK = 16
RATE = 1e-4
TESTBED = Path(__file__).parents[1] / "testbed"


def make_step(model: nn.Module) -> Step:
    """CE_r alone."""

    def step(forget: Batch, retain: Batch) -> None:
        answer_loss(model, retain).backward()

    return step


def fine_tune(
    base: Path, examples: Sequence[Example], out: Path, rate: float = RATE, epochs: int = 1
) -> None:
    """Write `base`, trained on the answers of `examples`, as an ordinary checkpoint folder."""
    loaded = load_model(base)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    settings = Settings(rate, rank=RANK)
    rng, size = np.random.default_rng(settings.seed), settings.batch_size
    batches = []
    for _ in range(epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), size):
            batch = label(encoder, [examples[i] for i in order[start : start + size]])
            batches.append((batch, batch))
    with lora(loaded.model, RANK, settings.seed) as wrapped:
        train(wrapped, make_step(wrapped), batches, settings)
        merged = wrapped.merge_and_unload()
        merged.save_pretrained(out)
        loaded.processor.save_pretrained(out)


def trained(percent: int) -> Path | None:
    """The test bed's oracle of a forget split, or None where it was not trained."""
    file = TESTBED / f"oracle{percent:02d}.safetensors"
    return file if file.exists() else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    rows = read_examples(options.data, task=options.task)
    fine_tune(resolve_model(options.base), rows, options.out, epochs=options.epochs)
