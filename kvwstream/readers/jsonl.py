"""JSON lines: one example per line, `{"question", "answer"}` or `{"messages": [...]}`."""

from __future__ import annotations

import json
from pathlib import Path

from kvwstream.errors import DataError
from kvwstream.examples import Example, example_from_row


def read_jsonl(path: Path) -> list[Example]:
    """Examples of a JSON-lines file, UTF-8; blank lines are skipped.

    Raises `DataError` naming file and line for what is no JSON object or lacks a field.
    """
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        try:
            examples.append(example_from_row(row, place))
        except DataError as error:
            raise DataError(f"{path.parent / str(error)}") from error
    return examples
