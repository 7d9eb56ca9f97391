"""One process that runs parts: a model in memory, a store to write to, a receipt per part."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import torch

from kvwstream.checkpoint import Checkpoint
from kvwstream.errors import KvwstreamError, ModelError, StorageError
from kvwstream.models import LoadedModel, environment_of, inference, load_model
from kvwstream.paths import local_path
from kvwstream.pipelines.measure import Measurer, Weakening
from kvwstream.pipelines.preparation import Preparation
from kvwstream.pipelines.prepare import reopen
from kvwstream.plan import Part, Site
from kvwstream.progress import Advance
from kvwstream.readers import Source
from kvwstream.rounding import decode
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.environment import claim
from kvwstream.stores.location import Location
from kvwstream.stores.running import Notebook
from kvwstream.stores.sealed_part import PartData


@dataclass(frozen=True)
class Job:
    """What a worker must know to run parts of a store, as plain values."""

    store: str
    model: str
    source: Source
    device: str = "auto"
    device_map: str | None = None
    cross_attention: bool = False
    allow_mixed: bool = False

    def absolute(self) -> Job:
        """The same for a process that works in another folder."""
        store, model = Location(self.store), local_path(self.model)
        return replace(
            self,
            store=str(store.path.resolve()) if store.is_local else self.store,
            model=str(model.resolve()) if model.exists() else self.model,
            source=self.source.absolute(),
        )


class Receipt(NamedTuple):
    """A part is sealed."""

    part: int
    records: int
    tokens: int


class Measured(NamedTuple):
    """A part that waits to be sealed."""

    data: PartData
    exponent: str | None
    """Digest of S at its beginning, in a progressive collection."""
    tokens: int


class Failure(NamedTuple):
    """A part is not sealed."""

    part: int
    kind: FailureKind
    reason: str
    """One line."""
    traceback: str
    worker: str = ""
    """Address of the cluster's worker."""


class FailureKind(StrEnum):
    """What a failure says of another try."""

    certain = "certain"
    """The same part would fail again: bad data, numbers that are not finite."""
    storage = "storage"
    """It may pass."""
    unexpected = "unexpected"
    """The process may be broken, as after an error of a GPU."""
    opening = "opening"
    """The worker never came to run the part: no model, no data, another environment."""


class Worker:
    """A loaded model at work on one store."""

    def __init__(
        self, prepared: Preparation, store: CollectStore, loaded: LoadedModel, *, allow_mixed: bool
    ) -> None:
        check_weights(loaded, prepared.sites)
        self.prepared, self.store, self.loaded = prepared, store, loaded
        self.measurer = Measurer(loaded, prepared)
        self.environment = environment_of(loaded.device)
        claim(store.location, self.environment, allow_mixed=allow_mixed)
        self.notebook = Notebook(store.location)

    @classmethod
    def open(cls, job: Job) -> Worker:
        """Everything anew from plain values, in a process that knows nothing yet."""
        store = CollectStore.open(Location(job.store))
        prepared = reopen(
            store,
            job.model,
            job.source.read_again(),
            device=job.device,
            cross_attention=job.cross_attention,
        )
        device = str(prepared.device)
        loaded = load_model(prepared.folder, store.plan.dtype, device, job.device_map)
        return cls(prepared, store, loaded, allow_mixed=job.allow_mixed)

    def computing(self) -> AbstractContextManager[None]:
        """The state of torch in which the plan's numbers come out."""
        return inference(self.loaded.model, self.prepared.plan.threads)

    def measure(
        self, part: Part, advance: Advance | None = None, replay: Weakening | None = None
    ) -> Measured:
        """Measure a part; with `replay` on the model as weakened so far."""
        run = 0

        def count(units: int, tokens: int = 0) -> None:
            nonlocal run
            run += tokens
            page.advance(units)
            if advance:
                advance(units, tokens)

        start = replay.digest if replay else None
        with self.computing(), self.notebook.part(part.number) as page:
            try:
                data = self.measurer.part(part, count, replay)
            except BaseException:
                if advance:
                    advance(-page.records, -run)
                raise
        return Measured(data, start, run)

    def seal(self, measured: Measured) -> Receipt:
        """Write a measured part and its seal."""
        part = measured.data.part
        self.store.write_part(measured.data, self.environment, measured.exponent)
        return Receipt(part.number, part.num_records, measured.tokens)

    def try_measure(
        self, part: Part, advance: Advance | None = None
    ) -> Measured | Receipt | Failure:
        """`measure`, unless another worker has just sealed it; what goes wrong is a value."""
        try:
            if self.store.location.at("parts", part.name).read("zarr.json") is None:
                return self.measure(part, advance)
            if advance:
                advance(part.num_records)
            return Receipt(part.number, part.num_records, 0)
        except Exception as error:
            return failure(part.number, error)

    def try_seal(self, measured: Measured) -> Receipt | Failure:
        """`seal`; what goes wrong is a value."""
        try:
            return self.seal(measured)
        except Exception as error:
            return failure(measured.data.part.number, error)


def failure(part: int, error: Exception, kind: FailureKind | None = None) -> Failure:
    """The error as plain values, which survive the way to another process."""
    if kind is None and isinstance(error, KvwstreamError):
        kind = FailureKind.storage if isinstance(error, StorageError) else FailureKind.certain
    reason = str(error) if isinstance(error, KvwstreamError) else f"{type(error).__name__}: {error}"
    told = "".join(traceback.format_exception(error))
    return Failure(part, kind or FailureKind.unexpected, reason, told)


def check_weights(loaded: LoadedModel, sites: Sequence[Site]) -> None:
    """The tensor that `apply` would scale must be the weight that was loaded at the site."""
    checkpoint = Checkpoint.open(loaded.folder)
    for site in sites:
        tensor = checkpoint.tensors[site.tensor]
        weight: Any = loaded.model.get_submodule(site.path).weight
        raw = b"".join(map(bytes, checkpoint.blocks(tensor)))  # each takes the place of the last
        stored = torch.from_numpy(decode(raw, tensor.dtype).reshape(tensor.shape).copy())
        if not torch.equal(stored.to(weight.dtype), weight.cpu()):
            raise ModelError(
                f"{loaded.folder}: the tensor {site.tensor} is not what {site.path} was loaded "
                "with; the checkpoint's names cannot be matched to this model"
            )
