"""What commands show on the terminal."""

from __future__ import annotations

import os

import typer


def show_table(rows: list[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    for name, value in rows:
        typer.echo(f"{name:>9}  {value}")


def quiet_transformers() -> None:
    """One progress bar is enough, and it is ours."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
