"""The oracle: a model trained anew without the forget set (exact unlearning).

    python -m benchmarks.methods.oracle BASE DATA OUT [--task TASK] [--rate R] [--epochs N]

fine-tunes BASE on the answers of DATA, merges and writes OUT: with all data the vanilla model, with
what may stay the oracle. As in the paper's code a LoRA of rank and alpha 16 with dropout 0.05 on
the language model's linear layers, AdamW, batches of 4; one epoch at 1e-4 unless said otherwise.
(There `--is_oracle False` counts as true, so that both models are trained on retain data.)

The test bed's models are trained by a script of their own, from SmolLM2 on (25 core minutes):

    python -m benchmarks.testbed.train --without 10 --out benchmarks/testbed/oracle10.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

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


def make_step(model: nn.Module) -> Step:
    """CE_r alone."""

    def step(forget: Batch, retain: Batch) -> None:
        answer_loss(model, retain).backward()

    return step


class Epochs(Sequence[tuple[Batch, Batch]]):
    """Every example once an epoch, shuffled; a batch is made when it is asked for.

    The pixels of a whole data set do not fit into memory.
    """

    def __init__(
        self, encoder: AnswerEncoder, examples: Sequence[Example], settings: Settings, epochs: int
    ) -> None:
        self.encoder, rng = encoder, np.random.default_rng(settings.seed)
        orders = [rng.permutation(len(examples)) for _ in range(epochs)]
        starts = range(0, len(examples), settings.batch_size)
        self.rows = [
            [examples[i] for i in order[start : start + settings.batch_size]]
            for order in orders
            for start in starts
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        batch = label(self.encoder, self.rows[number])
        return batch, batch


def language_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the language model, without the output layer."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    ]


def fine_tune(
    base: Path, examples: Sequence[Example], out: Path, rate: float = RATE, epochs: int = 1
) -> None:
    """Write `base`, trained on the answers of `examples`, as an ordinary checkpoint folder."""
    loaded = load_model(base)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    settings = Settings(rate, rank=RANK)
    batches = Epochs(encoder, examples, settings, epochs)
    names = language_layers(loaded.model)
    changes = {"lora_alpha": RANK, "lora_dropout": 0.05, "target_modules": names}
    with lora(loaded.model, RANK, settings.seed, **changes) as wrapped:
        train(wrapped, make_step(wrapped), batches, settings)
        merged = wrapped.merge_and_unload()
        merged.save_pretrained(out)
        loaded.processor.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    rows = read_examples(options.data, task=options.task)
    fine_tune(resolve_model(options.base), rows, options.out, options.rate, options.epochs)
