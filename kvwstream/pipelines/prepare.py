"""The plan of a collection: checked, tokenised and frozen before the first forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PretrainedConfig

from kvwstream.answers import AnswerEncoder, Span
from kvwstream.canonical import differences
from kvwstream.checkpoint import Checkpoint, match_tensors, resolve_model
from kvwstream.errors import DataError, OptionError, PlanMismatchError
from kvwstream.examples import BadRow, Example
from kvwstream.models import (
    attention_of,
    load_processor,
    model_skeleton,
    resolve_device,
    resolve_dtype,
)
from kvwstream.passes import Reading, arrange, in_order
from kvwstream.pipelines.preparation import Preparation
from kvwstream.plan import TOKEN_RULES, CollectPlan, Progressive, Site, order_by_seed
from kvwstream.prefix_cache import why_not_shared
from kvwstream.sites import find_sites
from kvwstream.stores.collected import CollectStore, read_plan
from kvwstream.stores.location import Location
from kvwstream.stores.tables import ExampleTable, sites_digest

MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors.index.json"}
TOKENIZER_KINDS = (".json", ".jinja", ".txt", ".model")


def prepare(
    model: str,
    examples: Sequence[Example],
    *,
    batch_size: int = 1,
    part_size: int = 64,
    tokens: str = "answer",
    moments: Sequence[str] = ("abs",),
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    cross_attention: bool = False,
    progressive: Progressive | None = None,
    pass_tokens: int = 2048,
    sharing: bool = True,
    until_stable: float | None = None,
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> Preparation:
    """Freeze the plan: check, tokenise and arrange every example, find the sites, digest weights.

    Loads no weights into memory. Raises `DataError`, `ModelError` or `OptionError`; whatever is
    wrong with the input is found here, before the first forward pass.
    """
    if tokens not in TOKEN_RULES:
        raise OptionError(f"tokens must be one of {', '.join(TOKEN_RULES)}, got {tokens}")
    found = _Model.look_at(model, cross_attention)
    encoder = found.encoder
    order = order_by_seed((example.digest for example in examples), seed)[:limit]
    located = {}
    for index in order:
        try:
            located[index] = _read(encoder, examples[index], tokens)
        except DataError as error:
            if on_bad_row is None:
                raise
            name = examples[index].id
            on_bad_row(BadRow(name, str(error).removeprefix(f"{name}: ")))
    if not located:
        raise DataError("no example is left to collect")
    if encoder.rows_interact and batch_size > 1:
        raise OptionError(
            f"batch size {batch_size}: in this model's cross-attention a row's numbers depend on "
            "the images of its neighbours; use --batch-size 1"
        )
    why_not = why_not_shared(found.config, takes_suffix=encoder.takes_suffix)
    arranged = (
        in_order(len(located), batch_size)
        if progressive
        else arrange(
            [reading for _, reading in located.values()],
            batch_size=batch_size,
            part_size=part_size,
            pass_tokens=1 if encoder.rows_interact else pass_tokens,
            sharing=sharing and why_not is None,
        )
    )
    indices = list(located)
    chosen = [examples[indices[place]] for place in arranged.order]
    spans = [located[indices[place]][0] for place in arranged.order]
    table = ExampleTable(
        [example.id for example in chosen],
        [example.digest for example in chosen],
        np.array([span.total for span in spans], np.int64),
        np.array([span.prompt for span in spans], np.int64),
        np.array([span.num_positions(tokens) for span in spans], np.int64),
        *arranged.columns,
    )
    where = resolve_device(device)
    plan = CollectPlan(
        **cast(Any, found.digests),
        data_digest=table.digest,
        arrangement_digest=table.arrangement,
        num_examples=len(chosen),
        num_sites=len(found.sites),
        num_vectors=sum(site.width for site in found.sites),
        seed=seed,
        batch_size=batch_size,
        part_size=part_size,
        tokens=tokens,
        moments=tuple(moments),
        dtype=str(resolve_dtype(dtype, found.config)).removeprefix("torch."),
        attention=attention_of(found.config),
        threads=threads or torch.get_num_threads(),
        pass_tokens=pass_tokens,
        sharing=sharing,
        until_stable=until_stable,
        schedule="progressive" if progressive else "frozen",
        progressive=progressive,
    )
    return Preparation(plan, found.folder, found.sites, chosen, table, encoder, where, why_not)


def default_threads(store: str, *, alone: bool) -> int:
    """CPU threads where none are asked for: those of the store, if it exists already.

    A new one takes all of the machine for a worker that is `alone`, and 1 for one of several.
    """
    location = Location(store)
    if location.read("zarr.json") is not None:
        return read_plan(location).threads
    return torch.get_num_threads() if alone else 1


def reopen(
    store: CollectStore,
    model: str,
    examples: Sequence[Example],
    *,
    device: str,
    cross_attention: bool,
) -> Preparation:
    """The preparation of an existing store, as a worker on another machine makes it.

    Examples are found by their ids, and compared with the store's digests when their turn comes.
    Raises `PlanMismatchError` with a line per difference if `model` is not the plan's,
    `DataError` naming an example that is missing or changed.
    """
    found = _Model.look_at(model, cross_attention)
    changed = differences(store.plan.to_dict(), found.digests, found.digests)
    if changed:
        raise PlanMismatchError(
            f"{found.folder}: is not the model of {store.location.url}:\n  " + "\n  ".join(changed)
        )
    planned = _PlannedExamples(store, examples)
    where = resolve_device(device)
    table = store.examples
    return Preparation(store.plan, found.folder, found.sites, planned, table, found.encoder, where)


class _PlannedExamples(Sequence[Example]):
    """The examples of a store in plan order, each compared with its digest when it is taken."""

    def __init__(self, store: CollectStore, examples: Sequence[Example]) -> None:
        self.store = store
        self.by_id = {example.id: example for example in examples}
        absent = [name for name in store.examples.ids if name not in self.by_id]
        if absent:
            raise DataError(
                f"{store.location.url}: {len(absent)} of its examples are not in the data here, "
                f"the first is {absent[0]!r}; every worker needs the same data"
            )

    def __len__(self) -> int:
        return len(self.store.examples.ids)

    def __getitem__(self, index: Any) -> Any:
        example = self.by_id[self.store.examples.ids[index]]
        if example.digest != self.store.examples.digests[index]:
            raise DataError(
                f"{example.id}: its content here is not what {self.store.location.url} was planned "
                "with; every worker needs the same data"
            )
        return example


@dataclass(frozen=True)
class _Model:
    """What the plan says of a model, found without its weights in memory."""

    folder: Path
    sites: list[Site]
    encoder: AnswerEncoder
    digests: dict[str, str]
    """Of the plan's fields."""
    config: PretrainedConfig

    @classmethod
    def look_at(cls, model: str, cross_attention: bool) -> _Model:
        folder = resolve_model(model)
        checkpoint = Checkpoint.open(folder)
        skeleton = model_skeleton(folder)
        config = skeleton.config
        sites = match_tensors(find_sites(skeleton, cross_attention=cross_attention), checkpoint)
        encoder = AnswerEncoder(load_processor(folder, config), config)
        digests = {
            "model_digest": checkpoint.digest,
            "config_digest": _digest_files(folder, ["config.json"]),
            "processor_digest": _digest_files(folder, _processor_files(checkpoint)),
            "sites_digest": sites_digest(sites),
        }
        return cls(folder, sites, encoder, digests, config)


def _read(encoder: AnswerEncoder, example: Example, tokens: str) -> tuple[Span, Reading]:
    span, ids = encoder.read(example)
    if not span.num_positions(tokens):
        raise DataError(f"{example.id}: has no {tokens} positions to measure")
    return span, encoder.reading(example, span, ids, tokens)


def _processor_files(checkpoint: Checkpoint) -> list[str]:
    """Small files that decide the tokens: everything but weights and the model's own configs."""
    names = (path.as_posix() for path in checkpoint.side_files())
    return [
        name
        for name in names
        if name.endswith(TOKENIZER_KINDS) and name not in MODEL_FILES and "/" not in name
    ]


def _digest_files(folder: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()
