"""Data sets as lists of examples: JSON lines, local `datasets` folders, hub data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvwstream.errors import DataError, OptionError
from kvwstream.examples import BadRow, Example, check_examples
from kvwstream.paths import local_path
from kvwstream.readers import clear, mllmu, tofu
from kvwstream.readers.rows import dataset_rows, jsonl_rows
from kvwstream.readers.simple import simple_examples

__all__ = ["FORMATS", "Source", "read_examples", "read_questions"]

FORMATS = ("auto", "jsonl", "clear", "mllmu", "tofu")
TASKS = {"clear": clear.TASKS, "mllmu": mllmu.TASKS, "tofu": tofu.TASKS, "jsonl": ("questions",)}


def read_examples(
    source: str,
    *,
    format: str = "auto",
    task: str | None = None,
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> list[Example]:
    """Every example of `source`, in file order.

    A file is read as JSON lines, a folder as what `datasets` wrote or can load (`config` and
    `split` choose within it), anything else of the form `owner/name` as a hub data set. `format`
    is told by the columns unless given; `task` chooses among the questions that a benchmark's rows
    hold (default: the first of its list); `seed` chooses where a benchmark draws at random.

    Raises `DataError` naming file and line or row at the first bad row, or hands each to
    `on_bad_row` and goes on.
    """
    examples = list(_read(source, format, task, config, split, seed, on_bad_row))
    check_examples(examples, source)
    return examples


def read_questions(source: str) -> list[Example]:
    """`read_examples` with the task of a benchmark's rows behind a `#`: `CLEAR/real_faces#open`.

    A path that exists is taken as it stands.
    """
    if local_path(source).exists():
        return read_examples(source)
    path, _, task = source.partition("#")
    return read_examples(path, task=task or None)


@dataclass(frozen=True)
class Source:
    """Where examples come from, as plain values: what a worker needs to read the same ones."""

    data: str
    format: str = "auto"
    task: str | None = None
    config: str | None = None
    split: str = "train"
    seed: int = 0
    skip_bad_rows: bool = False

    def read(self) -> tuple[list[Example], list[BadRow]]:
        """Every example, checked, and the rows that were left out."""
        bad: list[BadRow] = []
        examples = read_examples(
            self.data,
            format=self.format,
            task=self.task,
            config=self.config,
            split=self.split,
            seed=self.seed,
            on_bad_row=bad.append if self.skip_bad_rows else None,
        )
        return examples, bad

    def read_again(self) -> list[Example]:
        """The same examples where the data have been checked before; touches no image."""
        skip = (lambda row: None) if self.skip_bad_rows else None
        fields = (self.format, self.task, self.config, self.split, self.seed)
        return list(_read(self.data, *fields, skip))

    def absolute(self) -> Source:
        """The same for a process that works in another folder."""
        path = local_path(self.data)
        return replace(self, data=str(path.resolve())) if path.exists() else self


def _read(
    source: str,
    format: str,
    task: str | None,
    config: str | None,
    split: str,
    seed: int,
    on_bad_row: Callable[[BadRow], None] | None,
) -> Iterator[Example]:
    path = local_path(source)
    folder: Path | None = path if path.is_dir() else None
    if path.is_file():
        rows, folder = jsonl_rows(path), path.parent
    elif path.is_dir() or (source.count("/") == 1 and not source.startswith((".", "/", "~"))):
        rows = dataset_rows(source, config, split)
    else:
        raise DataError(f"{source}: no such file or folder, and not a hub id like owner/name")
    for place, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            yield from list(_examples(row, place, format, task, seed, folder))
        except DataError as error:
            if on_bad_row is None:
                raise
            on_bad_row(BadRow(place, str(error).removeprefix(f"{place}: ")))


def _examples(
    row: Any, place: str, format: str, task: str | None, seed: int, folder: Path | None
) -> Iterator[Example]:
    kind = _detect(row) if format == "auto" else format
    if kind not in TASKS:
        raise OptionError(f"format {format}: choose {', '.join(FORMATS)}")
    chosen = TASKS[kind][0] if task is None else task
    if chosen not in TASKS[kind]:
        raise OptionError(f"task {task}: {kind} data have {', '.join(TASKS[kind])}")
    if kind == "jsonl" or not isinstance(row, dict):
        return simple_examples(row, place, folder)
    if kind == "clear":
        return clear.clear_examples(row, place, chosen, seed)
    if kind == "mllmu":
        return mllmu.mllmu_examples(row, place, chosen)
    return tofu.tofu_examples(row, place, chosen)


def _detect(row: Any) -> str:
    """The format of a row by the names of its columns, never by their order."""
    columns = set(row) if isinstance(row, dict) else set()
    if mllmu.is_mllmu(columns):
        return "mllmu"
    if clear.is_clear(columns):
        return "clear"
    return "tofu" if tofu.is_tofu(columns) else "jsonl"
