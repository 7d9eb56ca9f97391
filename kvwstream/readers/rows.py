"""Rows of files and data sets, each with the place that errors name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvwstream.errors import DataError, first_line
from kvwstream.images import StoredImage
from kvwstream.paths import local_path

Row = tuple[str, Any]
"""Place and row; a `DataError` stands for a row that could not even be parsed."""


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Objects of a JSON-lines file, UTF-8; blank lines are skipped. Places are `name:line`."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            row = json.loads(line)
            if rb"\ud" in line.lower():  # half of a surrogate pair is no text
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            row = DataError(f"{place}: not JSON: {error}")
        yield place, row


def dataset_rows(source: str, config: str | None, split: str) -> Iterator[Row]:
    """Rows of a data set's split, images left in its file. `DataError` if it cannot be loaded."""
    import datasets

    loaded, columns = _load(source, config, split), []
    for name, feature in loaded.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
            columns.append(name)
        elif isinstance(inner, datasets.Image):
            loaded = loaded.cast_column(name, type(feature)(datasets.Image(decode=False)))
            columns.append(name)
    name = Path(source).name if Path(source).is_dir() else source
    for number, row in enumerate(loaded):
        stored = {column: _stored(loaded, number, column, row[column]) for column in columns}
        yield f"{name}:{number}", {**row, **stored}


def _stored(rows: Any, row: int, column: str, value: Any) -> Any:
    """The images of a row by where they are; what holds no bytes stays as it is."""
    if isinstance(value, list):
        return [
            StoredImage(rows, row, column, index) if image and image["bytes"] else image
            for index, image in enumerate(value)
        ]
    return StoredImage(rows, row, column) if value and value["bytes"] else value


def _load(source: str, config: str | None, split: str) -> Any:
    import datasets

    folder = local_path(source)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else source, config)
    except Exception as error:  # the library raises a dozen kinds; all mean the same to the reader
        reason = first_line(error)
        raise DataError(f"{source}: not a data set that can be loaded: {reason}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise DataError(f"{source}: has no split {split!r}; choose --split {' or '.join(loaded)}")
    return loaded[split]
