"""What every gradient method shares: labelled batches, the loss on answers, LoRA, the loop.

Labels lie only where the answer is, found by `AnswerEncoder` as for `collect`. All methods take the
same pairs of a forget and a retain batch, AdamW with weight decay 0.01, a linear schedule that is
stepped at every step (the authors' GD, KL and MMU step it once an epoch, so that theirs is
constant), gradients clipped to norm 1, and no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from kvwstream import probabilities
from kvwstream.answers import AnswerEncoder
from kvwstream.batches import Batch
from kvwstream.examples import Example

WEIGHT_DECAY = 0.01
CLIP = 1.0


Pairs = Sequence[tuple[Batch, Batch]]
"""A forget batch and a retain batch for every step."""
Step = Callable[[Batch, Batch], None]
"""Leaves the gradients of one step in the parameters."""


@dataclass(frozen=True)
class Settings:
    """What is searched, and what stays: the paper's batch size, LoRA rank and alpha = 2 rank."""

    learning_rate: float
    weight: float = 1.0
    """The paper's lambda: how much the retain loss counts."""
    rank: int = 8
    steps: int = 10
    batch_size: int = 4
    seed: int = 0


def label(encoder: AnswerEncoder, examples: Sequence[Example]) -> Batch:
    """One right-padded batch."""
    return encoder.batch(examples, [encoder.locate(example) for example in examples], "answer")


def draw_pairs(
    encoder: AnswerEncoder,
    forget: Sequence[Example],
    retain: Sequence[Example],
    settings: Settings,
) -> Pairs:
    """Batches for every step; each set is shuffled anew whenever it has been gone through."""
    streams = [
        _endless(examples, settings.batch_size, settings.seed + number)
        for number, examples in enumerate((forget, retain))
    ]
    return [
        (label(encoder, next(streams[0])), label(encoder, next(streams[1])))
        for _ in range(settings.steps)
    ]


def _endless(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    rng, size = np.random.default_rng(seed), min(size, len(examples))
    while True:
        order = rng.permutation(len(examples))
        for start in range(0, len(order) - size + 1, size):
            yield [examples[index] for index in order[start : start + size]]


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """(row, token) float32 at the positions that predict the answer; no other logits are made."""
    base = base_of(model)
    return probabilities.answer_logits(base, batch.to(base.device)).float()


def base_of(model: nn.Module) -> PreTrainedModel:
    """The model that a LoRA was put into, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """CE: mean cross-entropy over the answer tokens of the batch."""
    logits = answer_logits(model, batch)
    return functional.cross_entropy(logits, batch.targets.to(logits.device))


def sequence_losses(model: nn.Module, batch: Batch) -> Tensor:
    """(example,) -log p(answer | prompt): the sum over each example's answer tokens."""
    logits = answer_logits(model, batch)
    targets = batch.targets.to(logits.device)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return torch.stack([part.sum() for part in torch.split(losses, batch.counts)])


@contextmanager
def lora(model: PreTrainedModel, rank: int, seed: int, **changes: Any) -> Iterator[PeftModel]:
    """A fresh LoRA on every linear layer but the output layer; gone when the context ends.

    `changes` are fields of `LoraConfig` that differ from every method's.
    """
    torch.manual_seed(seed)
    usual = {"lora_alpha": 2 * rank, "target_modules": "all-linear"}
    config = LoraConfig(r=rank, init_lora_weights="gaussian", **(usual | changes))
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    wrapped = get_peft_model(model, config)
    try:
        yield wrapped
    finally:
        wrapped.unload()
        for parameter, before in zip(model.parameters(), frozen, strict=True):
            parameter.requires_grad_(before)


def train(model: nn.Module, step: Step, pairs: Pairs, settings: Settings) -> None:
    """Train the parameters that require gradients in place, one step for each pair.

    `FloatingPointError` if the parameters are no longer finite: such a model answers nothing.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(pairs))
    torch.manual_seed(settings.seed)
    model.train()
    try:
        for forget, retain in pairs:
            optimizer.zero_grad()
            step(forget, retain)
            norm = nn.utils.clip_grad_norm_(parameters, CLIP)
            if not torch.isfinite(norm):
                raise FloatingPointError("the gradient is not finite; use a lower learning rate")
            optimizer.step()
            schedule.step()
    finally:
        model.eval()
        optimizer.zero_grad()
