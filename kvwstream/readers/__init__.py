"""Data sets as lists of examples: JSON lines, local `datasets` folders, hub data sets."""

from __future__ import annotations

from pathlib import Path

from kvwstream.errors import DataError
from kvwstream.examples import Example, check_examples
from kvwstream.readers.datasets import read_dataset
from kvwstream.readers.jsonl import read_jsonl

__all__ = ["read_examples"]


def read_examples(source: str, *, config: str | None = None, split: str = "train") -> list[Example]:
    """Every example of `source`, in file order; `config` and `split` matter for data sets only.

    A file is read as JSON lines, a folder as what `datasets` wrote or can load, anything else of
    the form `owner/name` as a hub data set. Raises `DataError` naming file and line or row.
    """
    path = Path(source).expanduser()
    if path.is_file():
        examples = read_jsonl(path)
    elif path.is_dir() or (source.count("/") == 1 and not source.startswith((".", "/", "~"))):
        examples = read_dataset(source, config, split)
    else:
        raise DataError(f"{source}: no such file or folder, and not a hub id like owner/name")
    check_examples(examples, source)
    return examples
