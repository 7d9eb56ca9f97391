"""What a run would see: its plan, examples with the answer positions marked, a model's sites."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PretrainedConfig

from kvwstream.answers import AnswerEncoder
from kvwstream.checkpoint import Checkpoint, match_tensors
from kvwstream.models import load_processor, model_skeleton
from kvwstream.pipelines.preparation import Preparation
from kvwstream.prefix_cache import why_not_shared
from kvwstream.sites import find_sites
from kvwstream.stores.tables import positions_run


def describe_sites(folder: Path) -> list[str]:
    """A line per value projection, one of sums, one on sharing. Loads no weights."""
    skeleton = model_skeleton(folder)
    sites = match_tensors(find_sites(skeleton), Checkpoint.open(folder))
    vectors = sum(site.width for site in sites)
    lines = [
        f"layer {site.layer:>3}  {site.path}  {site.width} vectors, the "
        f"{('rows', 'columns')[site.axis]} of {site.tensor}"
        for site in sites
    ]
    total = (
        f"{type(skeleton).__name__}: {len(sites)} sites, {vectors:,} vectors, "
        f"{4 * vectors + 8 * len(sites)} B per record and moment"
    )
    return [
        *lines,
        total,
        explain_sharing(skeleton.config, load_processor(folder, skeleton.config)),
    ]


def explain_sharing(config: PretrainedConfig, processor: Any) -> str:
    """Whether what examples have in common at their beginning runs once, or why not."""
    encoder = AnswerEncoder(processor, config)
    reason = why_not_shared(config, takes_suffix=encoder.takes_suffix)
    return f"beginnings are not shared: {reason}" if reason else "common beginnings run once"


def summary(prepared: Preparation) -> list[tuple[str, str]]:
    """The plan for a person: what will run and what it costs in disk and memory."""
    plan, table = prepared.plan, prepared.table
    row = 4 * plan.num_vectors * len(plan.moments) + 8 * plan.num_sites
    weights = sum(path.stat().st_size for path in prepared.folder.glob("*.safetensors"))
    part = min(plan.part_size, plan.num_records) * row
    return [
        (
            "model",
            f"{prepared.folder} ({plan.dtype}, {plan.attention} attention, {prepared.device})",
        ),
        ("sites", f"{plan.num_sites} value projections, {plan.num_vectors:,} vectors"),
        ("examples", f"{plan.num_examples:,}, in the order of seed {plan.seed}"),
        (
            "tokens",
            f"{table.num_tokens.sum():,}, {table.num_positions.sum():,} measured ({plan.tokens})",
        ),
        ("passes", _passes(prepared)),
        ("records", f"{plan.num_records:,}, {_count(plan.batch_size, 'example')} each"),
        ("parts", f"{plan.num_parts:,}, {_count(plan.part_size, 'record')} each at most"),
        ("disk", f"at most {_size(plan.num_records * row)} ({_size(row)} per record)"),
        ("memory", f"weights {_size(weights)}, one part {_size(part)}, activations"),
    ]


def print_examples(prepared: Preparation, count: int) -> None:
    """Print the first records' examples; tokens whose prediction counts are marked ⟦so⟧."""
    console = Console(highlight=False, soft_wrap=True)
    for index in range(min(count, prepared.plan.num_examples)):
        example, span = prepared.examples[index], prepared.span(index)
        ids = prepared.encoder.token_ids(example)
        positions = prepared.encoder.positions(ids, span, prepared.plan.tokens)
        marked = {position + 1 for position in positions}
        text = Text()
        for is_marked, run in groupby(range(len(ids)), key=marked.__contains__):
            shown = prepared.encoder.tokenizer.decode([ids[token] for token in run])
            text.append(f"⟦{shown}⟧" if is_marked else shown, "bold green" if is_marked else "")
        console.print()
        console.print(
            f"{example.id}: {span.total} tokens, {len(example.images)} images; positions "
            f"{positions[0]} to {positions[-1]} predict what is marked ({len(positions)})",
            style="bold",
            markup=False,
        )
        console.print(text)


def _passes(prepared: Preparation) -> str:
    """How many positions run, and why no prefixes are shared where they are not."""
    plan, table = prepared.plan, prepared.table
    run = positions_run(table)
    share = f"{run:,} positions ({run / table.num_tokens.sum():.2f} of the tokens)"
    shared = int((table.prefix > 0).sum())
    reason = prepared.why_not_shared or ("--no-sharing" if not plan.sharing else "")
    if plan.progressive:
        reason = "progressive"
    sharing = (
        f"no shared beginnings: {reason}" if reason else f"{shared:,} behind shared beginnings"
    )
    return f"{int(table.forward.max()) + 1:,} of {share}; {sharing}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
