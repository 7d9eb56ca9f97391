"""Gates on coefficients: the weakened model without touching a weight (Eq. 6, right-hand side)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kvwstream.coefficients import Float64
from kvwstream.collector import site_inputs
from kvwstream.plan import Site


@contextmanager
def gated(model: nn.Module, sites: Sequence[Site], values: Float64) -> Iterator[None]:
    """Multiply the coefficients of every site by its gates while the context is open.

    `values` (vector,) float64, from `vector_gates`. Equal to scaled weights but for rounding: the
    gate is rounded to the dtype of the coefficients and multiplies them instead of the weight.
    """
    rows = [torch.from_numpy(values[site.vectors].copy()) for site in sites]
    closed = [number for number, site in enumerate(sites) if np.any(values[site.vectors] != 1)]
    ready: dict[int, Tensor] = {}

    def close(hook: int, coefficients: Tensor) -> Tensor:
        if hook not in ready:
            row = rows[closed[hook]]
            ready[hook] = row.to(coefficients.device, coefficients.dtype)
        return coefficients * ready[hook]

    with site_inputs(model, [sites[number] for number in closed], close):
        yield
