"""What a run would see: examples with the answer positions marked, and the sites of a model."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kvwstream.checkpoint import Checkpoint, match_tensors
from kvwstream.models import model_skeleton
from kvwstream.pipelines.collect import Preparation
from kvwstream.sites import find_sites


def describe_sites(folder: Path) -> list[str]:
    """A line per value projection of a checkpoint, and one of sums. Loads no weights."""
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
    return [*lines, total]


def print_examples(prepared: Preparation, count: int) -> None:
    """Print the first records' examples; tokens whose prediction counts are marked ⟦so⟧."""
    console = Console(highlight=False, soft_wrap=True)
    for example, span in list(zip(prepared.examples, prepared.spans, strict=True))[:count]:
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
