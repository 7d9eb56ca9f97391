"""NPO (Zhang et al., 2024): minimise -(2/beta) log sigmoid(-beta log(p/p_ref)) + lambda CE_r.

p is the probability of a whole forget answer, p_ref what it was before training, and the mean is
over answers. The authors' code puts the batch's mean cross-entropy in the place of an answer's
log-probability, and in one branch makes the reference the trained model itself.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from benchmarks.methods.training import Step, answer_loss, sequence_losses
from kvwstream.batches import Batch

BETA = 0.4


def preference(losses: Tensor, reference: Tensor) -> Tensor:
    """The first term; both (example,) are -log p of whole answers."""
    return -2 / BETA * functional.logsigmoid(BETA * (losses - reference)).mean()


def make_step(model: PeftModel, weight: float) -> Step:
    """The reference is the model without its LoRA."""

    def step(forget: Batch, retain: Batch) -> None:
        with torch.no_grad(), model.disable_adapter():
            reference = sequence_losses(model, forget)
        preference(sequence_losses(model, forget), reference).backward()
        (weight * answer_loss(model, retain)).backward()

    return step
