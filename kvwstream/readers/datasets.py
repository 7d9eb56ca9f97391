"""Hugging Face data sets: a `save_to_disk` folder, a folder of parquet or JSON, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvwstream.errors import DataError
from kvwstream.examples import Example, example_from_row


def read_dataset(source: str, config: str | None, split: str) -> list[Example]:
    """Examples of a data set's split; `DataError` naming the row, or why it cannot be loaded."""
    examples = []
    for number, row in enumerate(_load(source, config, split)):
        try:
            examples.append(example_from_row(row, f"{source}:{number}"))
        except DataError as error:
            raise DataError(f"row {number} of {error}") from error
    return examples


def _load(source: str, config: str | None, split: str) -> Any:
    import datasets

    folder = Path(source).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else source, config)
    except Exception as error:  # the library raises a dozen kinds; all mean the same to the reader
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: not a data set that can be loaded: {reason}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise DataError(f"{source}: has no split {split!r}; choose --split {' or '.join(loaded)}")
    return loaded[split]
