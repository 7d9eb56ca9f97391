"""Algorithm 1 to the letter: each forget record is measured on the model as weakened so far.

With exact arithmetic no weight is touched: the gate exp(-gamma * S) multiplies the coefficient in
the hook that has just measured it. With in-place arithmetic the weights themselves are multiplied,
record after record, in their own dtype, as the authors' code does.

Records follow each other, so one worker runs the parts in order. What it needs to go on after a
crash is in the store: A of every sealed record follows from its sums and C_r.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kvwstream.accessor import LayerRange, accessor, check_gamma, gates, sites_within, vector_gates
from kvwstream.coefficients import Float32, Float64, Int64, token_mean
from kvwstream.errors import OptionError
from kvwstream.pipelines.chain import check_alike, check_start
from kvwstream.pipelines.retained import Retained
from kvwstream.pipelines.worker import Failure, Receipt, Worker, failure
from kvwstream.plan import CollectPlan, Progressive, Site
from kvwstream.progress import Advance
from kvwstream.rounding import encode
from kvwstream.stores.arrays import digest_array
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.statistics import Statistics

SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""What safetensors calls the dtypes of a plan."""


@dataclass(frozen=True)
class Beginning:
    """Where a progressive collection starts: C_r, and the requests that were granted before."""

    stored: Statistics
    is_after: bool
    """Whether the forget records of `stored` come before the first one of the collection."""

    @classmethod
    def chosen(cls, retain_statistics: str | None, after: str | None) -> Beginning:
        """What the options say; `OptionError` unless exactly one is given."""
        if (retain_statistics is None) == (after is None):
            raise OptionError(
                "a progressive collection needs C_r: give --retain-statistics, or --after with the "
                "statistics of the request before, and not both"
            )
        stored = Statistics.open(Location(retain_statistics or after or ""))
        if after:
            stored.require_forget()
        return cls(stored, after is not None)

    def plan(
        self, gamma: float | None, layers: str | None, arithmetic: str, epochs: int
    ) -> Progressive:
        """The plan's part.

        `OptionError` for what makes no sense, `PlanMismatchError` if the requests before were
        weakened otherwise.
        """
        if gamma is None or layers is None:
            raise OptionError("a progressive collection needs --gamma and --layers")
        within = LayerRange.parse(layers)
        sites_within(self.stored.sites, within)
        planned = Progressive(
            gamma=check_gamma(gamma),
            layers=str(within),
            arithmetic=arithmetic,
            retain=Retained.from_statistics(self.stored).digest,
            epochs=epochs,
            after=self.stored.attributes["sha256"]["accessor"] if self.is_after else None,
        )
        before = self.stored.attributes["progressive"]
        if self.is_after and before:
            check_alike(self.stored.location.url, Progressive(**before), planned)
        return planned

    def rows(self) -> Iterable[Float64]:
        """A of the records before the first one."""
        if not self.is_after:
            return ()
        return self.stored.rows("accessor", self.stored.num_forget_records)


class Weakened(Protocol):
    """A model that is weakened step by step."""

    def step(self, row: Float64, total: Float64) -> None:
        """One more record with accessor `row` (vector,); `total` is S with it."""

    def change(self, number: int, coefficients: Tensor) -> Tensor | None:
        """What takes the place of the coefficients of a site."""
        ...


class GatedCoefficients:
    """Exact: gates of S on the coefficients, rounded to their dtype; weights stay as they are."""

    def __init__(self, sites: Sequence[Site], how: Progressive) -> None:
        self.sites, self.gamma, self.layers = sites, how.gamma, LayerRange.parse(how.layers)
        self.gates: Float64 | None = None
        self.ready: dict[int, Tensor] = {}

    def step(self, row: Float64, total: Float64) -> None:
        """New gates for the next pass."""
        self.gates = vector_gates(self.sites, total, self.gamma, self.layers)
        self.ready.clear()

    def change(self, number: int, coefficients: Tensor) -> Tensor | None:
        """Coefficient times gate."""
        if self.gates is None or self.sites[number].layer not in self.layers:
            return None
        if number not in self.ready:
            row = torch.from_numpy(self.gates[self.sites[number].vectors].copy())
            self.ready[number] = row.to(coefficients.device, coefficients.dtype)
        return coefficients * self.ready[number]


class MultipliedWeights:
    """In place: every weight times the record's gate, which is rounded once to its dtype."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], how: Progressive) -> None:
        self.gamma = how.gamma
        self.weights: list[tuple[Site, Tensor]] = [
            (site, model.get_submodule(site.path).weight)  # type: ignore[misc]
            for site in sites_within(sites, LayerRange.parse(how.layers))
        ]

    def step(self, row: Float64, total: Float64) -> None:
        """Multiply."""
        for site, weight in self.weights:
            name = SAFETENSORS[str(weight.dtype).removeprefix("torch.")]
            values = encode(gates(row[site.vectors], self.gamma), name)
            gate = torch.from_numpy(values).view(weight.dtype).to(weight.device)
            weight.mul_(gate if site.axis == 1 else gate[:, None])

    def change(self, number: int, coefficients: Tensor) -> Tensor | None:
        """The weights are weak already."""
        return None


class Replay:
    """S and the weakened model after the records so far."""

    def __init__(self, beginning: Beginning, plan: CollectPlan, sites: Sequence[Site], model: Any):
        how = plan.progressive
        assert how, "a frozen plan has no replay"
        self.retained = Retained.from_statistics(beginning.stored)
        self.total: Float64 = np.zeros(plan.num_vectors)
        self.weakened: Weakened = (
            GatedCoefficients(sites, how)
            if how.arithmetic == "exact"
            else MultipliedWeights(model, sites, how)
        )
        for row in beginning.rows():
            self._step(row)

    @property
    def digest(self) -> str:
        """SHA-256 of S; the seal of a part holds that of its beginning."""
        return digest_array(self.total)

    def add(self, sums: Float32, counts: Int64) -> None:
        """Weaken by a record that is measured: `sums` (vector,), `counts` (site,)."""
        mean = token_mean(sums, counts, self.retained.widths)
        self._step(accessor(mean, self.retained.mean, self.retained.covered))

    def add_part(self, store: CollectStore, data: PartData) -> None:
        """Weaken by a sealed part; `DamageError` if it began elsewhere."""
        check_start(store, data.part.number, self.digest)
        for sums, counts in zip(data.sums["abs"], data.counts, strict=True):
            self.add(sums, counts)

    def _step(self, row: Float64) -> None:
        self.total += row
        self.weakened.step(row, self.total)


def run_progressive(
    worker: Worker, beginning: Beginning, advance: Advance
) -> Generator[Receipt | Failure]:
    """Every part in order: a sealed one is replayed, any other is measured and sealed.

    The first failure ends it, since nothing can follow.
    """
    prepared, store, loaded = worker.prepared, worker.store, worker.loaded
    sealed = store.sealed()
    try:
        with worker.computing():
            replay = Replay(beginning, prepared.plan, prepared.sites, loaded.model)
            for part in prepared.plan.parts:
                try:
                    if part.number in sealed:
                        replay.add_part(store, store.read_part(part.number, ["abs"]))
                        continue
                    yield worker.seal(worker.measure(part, advance, replay))
                except Exception as error:
                    yield failure(part.number, error)
                    return
    finally:
        worker.notebook.close()
