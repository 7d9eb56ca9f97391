"""Examples as the model will see them, with the answer positions marked."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from kvwstream.pipelines.collect import Preparation


def print_examples(prepared: Preparation, count: int) -> None:
    """Print the first records' examples; tokens whose prediction counts are marked ⟦so⟧."""
    console = Console(highlight=False, soft_wrap=True)
    for example, span in list(zip(prepared.examples, prepared.spans, strict=True))[:count]:
        positions = span.positions(prepared.plan.tokens)
        ids = prepared.encoder.token_ids(example)
        decode = prepared.encoder.tokenizer.decode
        first, last = positions.start + 1, positions.stop + 1
        text = Text.assemble(
            decode(ids[:first]),
            ("⟦" + decode(ids[first:last]) + "⟧", "bold green"),
            decode(ids[last:]),
        )
        console.print()
        console.print(
            f"{example.id}: {span.total} tokens; positions {positions.start} to "
            f"{positions.stop - 1} predict what is marked",
            style="bold",
            markup=False,
        )
        console.print(text)
