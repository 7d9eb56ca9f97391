"""GD, gradient difference (Liu et al., 2022): minimise -CE_f + lambda CE_r."""

from __future__ import annotations

from torch import nn

from benchmarks.methods.training import Step, answer_loss
from kvwstream.batches import Batch


def make_step(model: nn.Module, weight: float) -> Step:
    """Both terms, one after the other: their graphs are never in memory together."""

    def step(forget: Batch, retain: Batch) -> None:
        (-answer_loss(model, forget)).backward()
        (weight * answer_loss(model, retain)).backward()

    return step
