"""One forward pass that keeps nothing but the coefficient sums of its records (Eq. 2 and 3).

A coefficient is the input of a value projection, so a pre-hook on each site sees all of them. The
pass ends at the last site: its projection, the final norm and the logits are never computed, and
only the positions that count go through the last MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from transformers import PreTrainedModel

from kvwstream.batches import Batch, Prefix
from kvwstream.coefficients import Float32
from kvwstream.errors import ModelError, NumericalError
from kvwstream.plan import Site
from kvwstream.prefix_cache import PrefixCache, check_whole
from kvwstream.sites import inward_projections

Change = Callable[[int, Tensor], Tensor | None]
"""Site number and coefficients -> what takes their place once they are measured, if anything."""

MOMENT_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "signed": lambda coefficients: coefficients,
    "square": torch.square,
}


class _LastSiteSeenError(Exception):
    """Ends a forward pass early; never leaves this module."""


@contextmanager
def module_inputs(
    modules: Iterable[nn.Module], on_input: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `on_input(number of the module, its first input)` before each of `modules` runs.

    What it returns, if not None, takes the place of the input. The hooks are gone when the context
    ends, however it ends.
    """

    def hook(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        changed = on_input(number, inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    handles = []
    try:
        for number, module in enumerate(modules):
            handles.append(module.register_forward_pre_hook(partial(hook, number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def site_inputs(
    model: nn.Module, sites: Sequence[Site], on_input: Callable[[int, Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """`module_inputs` of the value projections: their inputs are the coefficients."""
    return module_inputs((model.get_submodule(site.path) for site in sites), on_input)


def select_rows(hidden: Tensor, rows: Tensor) -> Tensor:
    """Rows of a flattened (example * token) axis, as one example: (1, row, channel).

    (row, channel) where the module is given the flat axis itself.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    chosen = flat.index_select(0, rows.to(flat.device, non_blocking=True))
    return chosen if hidden.ndim == 2 else chosen[None]


def run_prefix(model: PreTrainedModel, sites: Sequence[Site], prefix: Prefix) -> PrefixCache:
    """Keys and values of prefixes in every layer up to the last site's MLP, where the pass ends.

    Raises `ModelError` if a layer did not keep them.
    """

    def stop(number: int, hidden: Tensor) -> Tensor:
        raise _LastSiteSeenError

    cache = PrefixCache()
    with (
        cache.noting_positions(model, len(prefix.inputs["input_ids"])),
        suppress(_LastSiteSeenError),
        module_inputs(inward_projections(model, sites[-1]), stop),
    ):
        model(**prefix.inputs, past_key_values=cache, use_cache=True)
    check_whole(cache, sites[-1].layer + 1)
    return cache


def record_sums(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batch: Batch,
    moments: Sequence[str],
    segments: Sequence[int] | None = None,
    *,
    cache: PrefixCache | None = None,
    change: Change | None = None,
) -> Tensor:
    """Sums of coefficients over the positions that count, float32 on the model's device.

    Shape (moment, segment, vector). `segments` are the lengths of runs of positions, a run for each
    record (default: all positions are one record's; `batch.counts` for sums by example). `cache` is
    `run_prefix` of the batch's prefixes, if it has any; this pass leaves them as they are.

    Rows are selected first, then cast to float32, then summed. Raises `ModelError`
    if a site does not fire exactly once or does not see every position of the batch.
    """
    segments = [sum(batch.counts)] if segments is None else segments
    rows, last = batch.rows, len(sites) - 1
    sums = torch.empty(
        (len(moments), len(segments), sum(site.width for site in sites)),
        dtype=torch.float32,
        device=rows.device,
    )
    line = torch.arange(len(rows), device=rows.device)
    starts = torch.tensor([0, *accumulate(segments)][:-1]).to(rows.device, non_blocking=True)
    fired: set[int] = set()

    def take(number: int, coefficients: Tensor) -> Tensor | None:
        site = sites[number]
        if number in fired:
            raise ModelError(f"{site.path}: ran twice in one forward pass, expected once")
        fired.add(number)
        flat = coefficients.reshape(-1, coefficients.shape[-1])
        expected = (len(rows) if number == last else batch.num_positions, site.width)
        if flat.shape != expected:
            raise ModelError(
                f"{site.path}: saw {tuple(flat.shape)} (positions, channels), expected {expected}; "
                "a kernel that skips or packs positions cannot be measured"
            )
        if number != last:
            flat = flat.index_select(0, rows.to(flat.device, non_blocking=True))
        flat = flat.to(torch.float32)
        where = [tensor.to(flat.device, non_blocking=True) for tensor in (line, starts)]
        for moment, name in enumerate(moments):
            # One kernel sums all runs, each from its first row on.
            bags = embedding_bag(where[0], MOMENT_OF[name](flat), where[1], mode="sum")
            sums[moment, :, site.vectors] = bags
        if number == last:
            raise _LastSiteSeenError
        return change(number, coefficients) if change else None

    def select(number: int, hidden: Tensor) -> Tensor | None:
        if hidden.numel() != batch.num_positions * hidden.shape[-1]:
            return None  # `take` says what is wrong
        return select_rows(hidden, rows)

    inputs: dict[str, Any] = {**batch.inputs, "use_cache": False}
    if batch.prefix:
        assert cache is not None, "a batch behind a prefix needs its keys and values"
        inputs |= {"past_key_values": cache, "use_cache": True}
        cache.follow(batch.prefix.row_of)
        tokens = batch.inputs["input_ids"].shape[1]
        positions = cache.positions_behind(batch.prefix.row_of, tokens)
        inputs |= {} if positions is None else {"position_ids": positions}
    with (
        suppress(_LastSiteSeenError),
        site_inputs(model, sites, take),
        module_inputs(inward_projections(model, sites[-1]), select),
    ):
        model(**inputs)
    if len(fired) == len(sites):
        return sums
    missed = [site.path for number, site in enumerate(sites) if number not in fired]
    raise ModelError(
        f"{len(missed)} of {len(sites)} sites never ran, the first is {missed[0]}: the model "
        "bypasses the module (a fused kernel?), so its coefficients cannot be seen"
    )


class Fetched:
    """Sums on their way to the host, while the device goes on with the next pass."""

    def __init__(self, sums: Tensor) -> None:
        self._host = sums.to("cpu", non_blocking=sums.is_cuda)
        self._copied: Any = cast(Any, torch.cuda).Event() if sums.is_cuda else None
        if self._copied:
            self._copied.record()

    def numpy(self) -> Float32:
        """(moment, segment, vector), once they are there."""
        if self._copied:
            self._copied.synchronize()
        return self._host.numpy()


def first_culprit(sums: Float32, sites: Sequence[Site]) -> tuple[int, str] | None:
    """Segment and path of the first sum (moment, segment, vector) that is not finite."""
    culprits = np.argwhere(~np.isfinite(sums).all(axis=0).T)
    if not len(culprits):
        return None
    vector, segment = map(int, culprits[0])
    return segment, next(site.path for site in sites if vector < site.vectors.stop)


def not_finite(record: int, examples: Sequence[str], what: str) -> NumericalError:
    """The error that names record, examples and site."""
    return NumericalError(
        f"record {record}, example {', '.join(map(repr, examples))}: a coefficient of {what} is "
        "not finite; look at the example, or use a wider dtype (--dtype float32)"
    )
