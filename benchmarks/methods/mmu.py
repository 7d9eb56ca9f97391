"""MMU (Huo et al., 2025) and MMU*: gradient ascent where a parameter is salient for the forget set.

m = 1[F_f / F_r >= 1] with F the mean squared gradient of the answer loss on the model before
(Eq. 7, beta 1); a step's gradient is -m * grad CE_f + lambda grad CE_r (Eq. 8). MMU trains every
parameter, MMU* a LoRA and takes saliency of the LoRA alone. At a fresh LoRA the gradient of its A
is zero on both sides, so that A is never masked.

The authors' code takes saliency over all tokens in training mode, lets AdamW's momentum of
the forget steps move masked weights, and passes over a forget step that fails.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from benchmarks.methods.training import Pairs, Step, answer_loss
from kvwstream.batches import Batch

EPSILON = 1e-15
SALIENCY_BATCHES = 4


def saliency(model: nn.Module, batches: Iterable[Batch]) -> list[Tensor]:
    """F of every parameter that requires gradients, in their order."""
    parameters = _trained(model)
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    count = 0
    model.eval()
    for count, batch in enumerate(batches, 1):  # noqa: B007
        gradients = torch.autograd.grad(answer_loss(model, batch), parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
    return [total / count for total in sums]


def make_mask(model: nn.Module, pairs: Pairs) -> list[Tensor]:
    """m of every parameter that requires gradients, from the first pairs."""
    first = pairs[:SALIENCY_BATCHES]
    forget = saliency(model, (pair[0] for pair in first))
    retain = saliency(model, (pair[1] for pair in first))
    return [(f + EPSILON) / (r + EPSILON) >= 1 for f, r in zip(forget, retain, strict=True)]


def make_step(model: nn.Module, weight: float, mask: list[Tensor]) -> Step:
    """Eq. 8."""

    def step(forget: Batch, retain: Batch) -> None:
        (-answer_loss(model, forget)).backward()
        for parameter, chosen in zip(_trained(model), mask, strict=True):
            if parameter.grad is not None:
                parameter.grad *= chosen
        (weight * answer_loss(model, retain)).backward()

    return step


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
