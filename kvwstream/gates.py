"""Gates on coefficients: the weakened model without touching a weight (Eq. 6, right-hand side)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kvwstream.coefficients import Float64
from kvwstream.collector import site_inputs
from kvwstream.errors import ModelError
from kvwstream.gates_file import GatesFile
from kvwstream.plan import Site
from kvwstream.reproducible import exp_negative


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


@contextmanager
def attach_gates(model: nn.Module, path: str | Path) -> Iterator[None]:
    """Weaken any PyTorch model by a gates file while the context is open; no weight is touched.

    The file is what `apply --as gates` wrote. Its sites are module paths of `model`, which may be
    quantised, and must be the base that was measured: that cannot be seen from here, `audit` with
    `--base` proves it for a checkpoint. Nothing stays behind when the context ends, however it
    ends. Raises `ModelError` if sites do not fit, `DamageError` if the file is not as written.
    """
    file = GatesFile.read(Path(path))
    file.check(str(path))
    misfits = [f"{s.path}: {reason}" for s in file.sites if (reason := _misfit(model, s))]
    if misfits:
        raise ModelError(
            f"{path}: {len(misfits)} of {len(file.sites)} sites do not fit "
            f"{type(model).__name__}; it belongs to another model:\n  " + "\n  ".join(misfits)
        )
    values = np.concatenate([exp_negative(file.log_gates[site.path]) for site in file.sites])
    with gated(model, file.sites, values):
        yield


def _misfit(model: nn.Module, site: Site) -> str | None:
    """Why a site is none of the model's value projections."""
    try:
        module = model.get_submodule(site.path)
    except AttributeError:
        return "no such module"
    width = getattr(module, "in_features", None)  # of a quantised weight the shape tells nothing
    if width is None:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            return f"{type(module).__name__} is no linear map"
        width = weight.shape[site.axis]
    return None if width == site.width else f"{width} channels, expected {site.width}"
