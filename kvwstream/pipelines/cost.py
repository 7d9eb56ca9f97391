"""What collecting costs beside plain forward passes over the same records, measured in one run."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kvwstream.models import LoadedModel, inference
from kvwstream.pipelines.measure import Measurer
from kvwstream.pipelines.preparation import Preparation
from kvwstream.plan import Part


def cost_ratios(
    loaded: LoadedModel, prepared: Preparation, part: Part, repetitions: int = 3
) -> list[float]:
    """Seconds to measure a part over seconds of `model(**batch)` for each record of it.

    The two run in turn, after a warm-up; to tokenise is part of both.
    """
    measurer = Measurer(loaded, prepared)

    def plain() -> None:
        for record in range(part.start, part.stop):
            loaded.model(**prepared.record_batch(record).to(loaded.device).inputs)

    ratios = []
    with inference(loaded.model, prepared.plan.threads):
        for _ in range(1 + repetitions):
            collected = _seconds(lambda: measurer.part(part))
            ratios.append(collected / _seconds(plain))
    return ratios[1:]  # the first one warms up


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
