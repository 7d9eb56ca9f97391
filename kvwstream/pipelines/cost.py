"""What collecting costs beside a plain forward pass over the same batches, measured in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from kvwstream.collector import collect_record
from kvwstream.models import LoadedModel, inference
from kvwstream.pipelines.prepare import Preparation


def cost_ratios(loaded: LoadedModel, prepared: Preparation, records: int) -> list[float]:
    """Per record, seconds to collect it over seconds of `model(**batch)`.

    The two run in turn on the same batch, after a warm-up; batches are made beforehand.
    """
    plan, ratios = prepared.plan, []
    with inference(loaded.model, plan.threads):
        for record in range(min(records, plan.num_records)):
            batch = prepared.batch(record).to(loaded.device)
            runs: Sequence[Callable[[], object]] = (
                lambda batch=batch: collect_record(  # type: ignore[misc]
                    loaded.model, prepared.sites, batch, plan.moments, 0, [""]
                ),
                lambda batch=batch: loaded.model(**batch.inputs),  # type: ignore[misc]
            )
            collected, plain = (_seconds(run) for run in runs)
            ratios.append(collected / plain)
    return ratios[1:] or ratios  # the first one warms up


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
