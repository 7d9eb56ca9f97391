"""The oracle: the model trained anew without the forget set (exact unlearning).

As for the vanilla model, a LoRA on the answers of what may be known; rank 16, alpha 32, lambda 1.
On the test bed that is its own training with `--without`, from SmolLM2 on (30 core minutes):

    python -m benchmarks.testbed.train --without 10 --out benchmarks/testbed/oracle10.safetensors
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from benchmarks.methods.training import Labelled, Step, answer_loss

RANK = 16
TESTBED = Path(__file__).parents[1] / "testbed"


def make_step(model: nn.Module) -> Step:
    """CE_r alone."""

    def step(forget: Labelled, retain: Labelled) -> None:
        answer_loss(model, retain).backward()

    return step


def trained(percent: int) -> Path | None:
    """The test bed's oracle of a forget split, or None where it was not trained."""
    file = TESTBED / f"oracle{percent:02d}.safetensors"
    return file if file.exists() else None
