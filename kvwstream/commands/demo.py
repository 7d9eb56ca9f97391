"""`kvwstream demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvwstream.commands.shown import quiet_transformers


def demo(
    out: Annotated[Path, typer.Option(help="New folder for results.")] = Path("demo-output"),
    cache: Annotated[Path | None, typer.Option(help="Where the base model is kept.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each kind.")] = None,
) -> None:
    """Let SmolLM2 forget forty capitals: collect, reduce, apply, evaluate, and a table."""
    from kvwstream.pipelines import demo as pipeline
    from kvwstream.progress import progress_for

    quiet_transformers()
    pipeline.demo(out, cache=cache, gamma=gamma, limit=limit, progress=progress_for())
