"""Examples as the model will see them, with the answer positions marked."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from kvwstream.pipelines.collect import Preparation


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
