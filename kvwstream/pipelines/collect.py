"""Forward passes over a data set -> a store of coefficient sums, part by sealed part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import kvwstream
from kvwstream.answers import AnswerEncoder, Batch, Span
from kvwstream.checkpoint import Checkpoint, match_tensors, resolve_model
from kvwstream.collector import collect_record
from kvwstream.errors import DataError, InterruptError, ModelError, OptionError, Stop
from kvwstream.examples import BadRow, Example
from kvwstream.models import (
    LoadedModel,
    attention_of,
    inference,
    load_model,
    load_processor,
    model_skeleton,
    resolve_device,
    resolve_dtype,
)
from kvwstream.plan import TOKEN_RULES, CollectPlan, Part, Site, order_by_seed
from kvwstream.progress import Advance, Progress, Silent
from kvwstream.rounding import decode
from kvwstream.sites import find_sites
from kvwstream.stores.collected import CollectStore, ExampleTable, PartData, sites_digest
from kvwstream.stores.location import Location


@dataclass(frozen=True)
class Preparation:
    """Everything known before the first forward pass: the plan and what it was made from."""

    plan: CollectPlan
    folder: Path
    sites: list[Site]
    examples: list[Example]
    """In plan order."""
    spans: list[Span]
    encoder: AnswerEncoder
    device: torch.device

    @property
    def table(self) -> ExampleTable:
        """What the store will say of the examples."""
        return ExampleTable(
            [example.id for example in self.examples],
            [example.digest for example in self.examples],
            np.array([span.total for span in self.spans], np.int64),
            np.array([span.num_positions(self.plan.tokens) for span in self.spans], np.int64),
        )

    def batch(self, record: int) -> Batch:
        """The model's input for a record."""
        chosen = self.plan.examples_of(record)
        examples = [self.examples[index] for index in chosen]
        spans = [self.spans[index] for index in chosen]
        return self.encoder.batch(examples, spans, self.plan.tokens)

    def summary(self) -> list[tuple[str, str]]:
        """The plan for a person: what will run and what it costs in disk and memory."""
        plan, table = self.plan, self.table
        row = 4 * plan.num_vectors * len(plan.moments) + 8 * plan.num_sites
        weights = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        part = min(plan.part_size, plan.num_records) * row
        return [
            ("model", f"{self.folder} ({plan.dtype}, {plan.attention} attention, {self.device})"),
            ("sites", f"{plan.num_sites} value projections, {plan.num_vectors:,} vectors"),
            ("examples", f"{plan.num_examples:,}, in the order of seed {plan.seed}"),
            (
                "tokens",
                f"{table.num_tokens.sum():,} to run, {table.num_positions.sum():,} measured "
                f"({plan.tokens})",
            ),
            ("records", f"{plan.num_records:,}, {_count(plan.batch_size, 'example')} each"),
            ("parts", f"{plan.num_parts:,}, {_count(plan.part_size, 'record')} each at most"),
            ("disk", f"at most {_size(plan.num_records * row)} ({_size(row)} per record)"),
            ("memory", f"weights {_size(weights)}, one part {_size(part)}, activations"),
        ]


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
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> Preparation:
    """Freeze the plan: check and tokenise every example, find the sites, digest the weights.

    Loads no weights into memory. Raises `DataError`, `ModelError` or `OptionError`; whatever is
    wrong with the input is found here, before the first forward pass.
    """
    folder = resolve_model(model)
    checkpoint = Checkpoint.open(folder)
    skeleton = model_skeleton(folder)
    config = skeleton.config
    sites = match_tensors(find_sites(skeleton, cross_attention=cross_attention), checkpoint)
    encoder = AnswerEncoder(load_processor(folder, config), config)
    order = order_by_seed((example.digest for example in examples), seed)[:limit]
    located = {}
    for index in order:
        try:
            located[index] = _locate(encoder, examples[index], tokens)
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
    chosen, spans = [examples[index] for index in located], list(located.values())
    where = resolve_device(device)
    plan = CollectPlan(
        model_digest=checkpoint.digest,
        config_digest=_digest_files(folder, ["config.json"]),
        processor_digest=_digest_files(folder, _processor_files(checkpoint)),
        sites_digest=sites_digest(sites),
        data_digest=ExampleTable([], [e.digest for e in chosen], *[np.zeros(0, int)] * 2).digest,
        num_examples=len(chosen),
        num_sites=len(sites),
        num_vectors=sum(site.width for site in sites),
        seed=seed,
        batch_size=batch_size,
        part_size=part_size,
        tokens=tokens,
        moments=tuple(moments),
        dtype=str(resolve_dtype(dtype, config)).removeprefix("torch."),
        attention=attention_of(config),
        threads=threads or torch.get_num_threads(),
    )
    return Preparation(plan, folder, sites, chosen, spans, encoder, where)


def _locate(encoder: AnswerEncoder, example: Example, tokens: str) -> Span:
    span = encoder.locate(example)
    if tokens in TOKEN_RULES and not span.num_positions(tokens):
        raise DataError(f"{example.id}: has no {tokens} positions to measure")
    return span


def collect(
    prepared: Preparation,
    store: str,
    *,
    skipped: Sequence[BadRow] = (),
    progress: Progress | None = None,
) -> CollectStore:
    """Run what has no seal yet and return the complete store (Algorithm 1, lines 3-9 and 13-14).

    A store with another plan raises `PlanMismatchError`. Killed at any moment, the same call goes
    on and ends with the bytes of an undisturbed run. `skipped` rows are recorded in the store.
    """
    progress = progress or Silent()
    plan = prepared.plan
    written = CollectStore.create(Location(store), plan, prepared.sites, prepared.table, skipped)
    try:
        _collect_missing(prepared, written, progress)
    except (KeyboardInterrupt, Stop):
        raise InterruptError(
            f"{store}: stopped; {len(written.sealed())} of {plan.num_parts} parts are sealed and "
            "stay, run the same command again to go on"
        ) from None
    return written


def _collect_missing(prepared: Preparation, written: CollectStore, progress: Progress) -> None:
    plan, store = prepared.plan, written.location.url
    sealed = written.sealed()
    missing = [part for part in plan.parts if part.number not in sealed]
    if not missing:
        progress.tell(f"{store}: all {plan.num_parts} parts are sealed, nothing to do")
        return
    if len(missing) < plan.num_parts:
        progress.tell(f"{store}: {plan.num_parts - len(missing)} parts are sealed, going on")
    loaded = load_model(prepared.folder, plan.dtype, str(prepared.device))
    _check_weights(loaded, prepared.sites)
    environment = {
        "kvwstream": kvwstream.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": loaded.device.type,
    }
    total = sum(part.num_records for part in missing)
    with (
        progress.task("collect", total, "records") as advance,
        inference(loaded.model, plan.threads),
    ):
        for part in missing:
            data = collect_part(loaded, prepared, part, advance)
            written.write_part(data, environment)


def collect_part(
    loaded: LoadedModel, prepared: Preparation, part: Part, advance: Advance | None = None
) -> PartData:
    """Measure the records of one part; touches no storage."""
    plan = prepared.plan
    sums = {
        moment: np.empty((part.num_records, plan.num_vectors), np.float32)
        for moment in plan.moments
    }
    counts = np.empty((part.num_records, plan.num_sites), np.int64)
    for row, record in enumerate(range(part.start, part.stop)):
        chosen = plan.examples_of(record)
        batch = prepared.batch(record).to(loaded.device)
        names = [prepared.examples[index].id for index in chosen]
        values, counts[row] = collect_record(
            loaded.model, prepared.sites, batch, plan.moments, record, names
        )
        for moment, value in zip(plan.moments, values, strict=True):
            sums[moment][row] = value
        if advance:
            advance(1, sum(prepared.spans[index].total for index in chosen))
    return PartData(part, sums, counts)


def _check_weights(loaded: LoadedModel, sites: Sequence[Site]) -> None:
    """The tensor that `apply` would scale must be the weight that was loaded at the site."""
    checkpoint = Checkpoint.open(loaded.folder)
    for site in sites:
        tensor = checkpoint.tensors[site.tensor]
        weight: Any = loaded.model.get_submodule(site.path).weight
        raw = b"".join(checkpoint.blocks(tensor))
        stored = torch.from_numpy(decode(raw, tensor.dtype).reshape(tensor.shape).copy())
        if not torch.equal(stored.to(weight.dtype), weight.cpu()):
            raise ModelError(
                f"{loaded.folder}: the tensor {site.tensor} is not what {site.path} was loaded "
                "with; the checkpoint's names cannot be matched to this model"
            )


def _processor_files(checkpoint: Checkpoint) -> list[str]:
    """Small files that decide the tokens: everything but weights and the model's own configs."""
    model_files = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    texts = (path.as_posix() for path in checkpoint.side_files())
    kinds = (".json", ".jinja", ".txt", ".model")
    return [
        name
        for name in texts
        if name.endswith(kinds) and name not in model_files and "/" not in name
    ]


def _digest_files(folder: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
