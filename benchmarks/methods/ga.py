"""GA, gradient ascent (Thudi et al., 2022): minimise -CE_f."""

from __future__ import annotations

from torch import nn

from benchmarks.methods.training import Step, answer_loss
from kvwstream.batches import Batch


def make_step(model: nn.Module, weight: float) -> Step:
    """Nothing is retained, so `weight` is not used."""

    def step(forget: Batch, retain: Batch) -> None:
        (-answer_loss(model, forget)).backward()

    return step
