"""KL (Nguyen et al., 2020): minimise -CE_f + lambda (CE_r + K).

K is the mean over the retain batch's answer positions of KL(p_ref || p), p_ref the model before.
The authors' code takes it where the label is an answer token, one position late; here it is taken
where an answer token is predicted.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from benchmarks.methods.training import Step, answer_logits, answer_loss
from kvwstream.batches import Batch


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(reference) || softmax(logits)); both (row, token)."""
    return functional.kl_div(
        logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def make_step(model: PeftModel, weight: float) -> Step:
    """The reference is the model without its LoRA."""

    def step(forget: Batch, retain: Batch) -> None:
        with torch.no_grad(), model.disable_adapter():
            reference = answer_logits(model, retain)
        (-answer_loss(model, forget)).backward()
        logits = answer_logits(model, retain)
        kept = functional.cross_entropy(logits, retain.targets.to(logits.device)) + divergence(
            reference, logits
        )
        (weight * kept).backward()

    return step
