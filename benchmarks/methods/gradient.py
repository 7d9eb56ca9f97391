"""The six gradient methods under one call: train, and give the model back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.methods import ga, gd, kl, mmu, npo
from benchmarks.methods.training import Pairs, Settings, lora, train

LORA_STEPS: dict[str, Callable[..., Any]] = {
    "GA": ga.make_step,
    "GD": gd.make_step,
    "KL": kl.make_step,
    "NPO": npo.make_step,
}
METHODS = (*LORA_STEPS, "MMU", "MMU*")


@contextmanager
def unlearned(
    method: str, model: PreTrainedModel, pairs: Pairs, settings: Settings
) -> Iterator[PreTrainedModel]:
    """`model` trained by a method of `METHODS` while the context is open.

    `FloatingPointError` from `train` if it diverged.
    """
    if method == "MMU":
        with _every_parameter(model, pairs, settings) as trained:
            yield trained
        return
    with lora(model, settings.rank, settings.seed) as wrapped:
        if method == "MMU*":
            step = mmu.make_step(wrapped, settings.weight, mmu.make_mask(wrapped, pairs))
        else:
            step = LORA_STEPS[method](wrapped, settings.weight)
        train(wrapped, step, pairs, settings)
        yield model


@contextmanager
def _every_parameter(
    model: PreTrainedModel, pairs: Pairs, settings: Settings
) -> Iterator[PreTrainedModel]:
    """MMU: weights in float32 while they are trained (bfloat16 would drop most of each step)."""
    dtype, before = model.dtype, {n: p.detach().clone() for n, p in model.named_parameters()}
    model.float().requires_grad_(True)
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype != torch.float32):
            step = mmu.make_step(model, settings.weight, mmu.make_mask(model, pairs))
            train(model, step, pairs, settings)
        model.requires_grad_(False).to(dtype)
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
