"""One forward pass that keeps nothing but the coefficient sums of a record (Eq. 2 and 3).

A coefficient is the input of a value projection, so a pre-hook on each site sees all of them. The
pass ends at the last site: its projection, the final norm and the logits are never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kvwstream.answers import Batch
from kvwstream.coefficients import Float32, Int64
from kvwstream.errors import ModelError, NumericalError
from kvwstream.plan import Site

MOMENT_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "signed": lambda coefficients: coefficients,
    "square": torch.square,
}


class _EverySiteSeenError(Exception):
    """Ends a forward pass early; never leaves this module."""


@contextmanager
def site_inputs(
    model: nn.Module, sites: Sequence[Site], on_input: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `on_input(site number, coefficients)` before each value projection.

    What it returns, if not None, takes the place of the coefficients. The hooks are gone when the
    context ends, however it ends.
    """

    def hook(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        changed = on_input(number, inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    handles = []
    try:
        for number, site in enumerate(sites):
            module = model.get_submodule(site.path)
            handles.append(module.register_forward_pre_hook(partial(hook, number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_sums(
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    moments: Sequence[str],
    *,
    by_example: bool = False,
    change: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Sums of coefficients over the positions that count, float32 on the model's device.

    Shape (moment, segment, vector) with one segment for the record, or one per example with
    `by_example`. `change` gives what takes the place of a site's coefficients once they
    are measured (None: they stay).

    Rows are selected first, then cast to float32, then summed. Raises `ModelError`
    if a site does not fire exactly once or does not see every position of the batch.
    """
    segments = batch.counts if by_example else [sum(batch.counts)]
    width = sum(site.width for site in sites)
    sums = torch.empty(
        (len(moments), len(segments), width), dtype=torch.float32, device=batch.rows.device
    )
    fired: set[int] = set()

    def take(number: int, coefficients: Tensor) -> Tensor | None:
        site = sites[number]
        flat = coefficients.reshape(-1, coefficients.shape[-1])
        if number in fired:
            raise ModelError(f"{site.path}: ran twice in one forward pass, expected once")
        if flat.shape != (batch.num_positions, site.width):
            raise ModelError(
                f"{site.path}: saw {tuple(flat.shape)} (positions, channels), expected "
                f"{(batch.num_positions, site.width)}; a kernel that skips or packs positions "
                "cannot be measured"
            )
        fired.add(number)
        rows = flat.index_select(0, batch.rows.to(flat.device)).to(torch.float32)
        for moment, name in enumerate(moments):
            values = MOMENT_OF[name](rows)
            for segment, run in enumerate(torch.split(values, segments)):
                sums[moment, segment, site.vectors] = run.sum(dim=0)
        if len(fired) == len(sites):
            raise _EverySiteSeenError
        return change(number, coefficients) if change else None

    with site_inputs(model, sites, take):
        try:
            model(**batch.inputs, use_cache=False)
        except _EverySiteSeenError:
            return sums
    missed = [site.path for number, site in enumerate(sites) if number not in fired]
    raise ModelError(
        f"{len(missed)} of {len(sites)} sites never ran, the first is {missed[0]}: the model "
        "bypasses the module (a fused kernel?), so its coefficients cannot be seen"
    )


def collect_record(
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    moments: Sequence[str],
    record: int,
    examples: Sequence[str],
    change: Callable[[int, Tensor], Tensor | None] | None = None,
) -> tuple[Float32, Int64]:
    """Sums (moment, vector) float32 and counts (site,) int64 of one record, on the host.

    `change` as in `record_sums`.

    Raises `NumericalError` naming site, record and example where a coefficient is not finite.
    """
    sums = record_sums(model, sites, batch, moments, change=change)[:, 0].cpu().numpy()
    if not np.isfinite(sums).all():
        raise _not_finite(model, sites, batch, moments, record, examples, change)
    return sums, np.full(len(sites), sum(batch.counts), np.int64)


def _not_finite(
    model: nn.Module,
    sites: Sequence[Site],
    batch: Batch,
    moments: Sequence[str],
    record: int,
    examples: Sequence[str],
    change: Callable[[int, Tensor], Tensor | None] | None,
) -> NumericalError:
    """Find the first site and the example to blame, by a second pass with sums per example."""
    sums = record_sums(model, sites, batch, moments, by_example=True, change=change).cpu().numpy()
    culprits = np.argwhere(~np.isfinite(sums).all(axis=0).T)
    if len(culprits):
        vector, example = culprits[0]
        where, what = examples[example], next(s.path for s in sites if vector < s.vectors.stop)
    else:  # every example's sum is finite, the record's overflows
        where, what = ", ".join(examples), "some site (their sum overflows)"
    return NumericalError(
        f"record {record}, example {where!r}: a coefficient of {what} is not finite; "
        "look at the example, or use a wider dtype (--dtype float32)"
    )
