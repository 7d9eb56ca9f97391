"""JSON lines that grow while a long command runs, so that the same command can go on.

What decides the lines stands beside them, in `NAME.settings.json`, written first. Lines of other
settings are refused, with a line per difference.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from kvwstream.canonical import differences
from kvwstream.durable import fsync
from kvwstream.errors import DamageError, PlanMismatchError, StorageError


class Journal:
    """Rows of earlier runs, and a place for new ones. Without a path they are kept nowhere."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Take up what is there.

        `PlanMismatchError` if it was made with other settings, `StorageError` if another process
        writes to it or nothing can be written, `DamageError` if it is not what a journal wrote.
        """
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as opened:
                self._file = opened.enter_context(path.open("a+b"))
                _lock(self._file, path)
                self._check(path, json.loads(json.dumps(settings)))
                self._take_up(path)
                opened.pop_all()
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{path}: cannot be written: {error}") from error

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; they are on the disk when this returns."""
        new = [dict(row) for row in rows]
        self.rows += new
        if self.path is None:
            return
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {error}") from error

    def close(self) -> None:
        """Let others write."""
        if self.path is not None:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, path: Path, settings: Mapping[str, Any]) -> None:
        beside = settings_path(path)
        if beside.exists():
            there = read_settings(path)
            wrong = differences(there, settings, [*there, *(n for n in settings if n not in there)])
            if wrong:
                raise PlanMismatchError(
                    f"{path}: holds the results of other options; use them, or another place:\n  "
                    + "\n  ".join(wrong)
                )
            return
        if path.stat().st_size:
            raise PlanMismatchError(
                f"{path}: exists, and no {beside.name} says what made it; choose another place or "
                "remove it"
            )
        draft = beside.with_name(f"{beside.name}.partial")
        draft.write_text(json.dumps(settings, indent=2) + "\n")
        fsync(draft)
        draft.rename(beside)
        fsync(beside.parent)

    def _take_up(self, path: Path) -> None:
        """Whole lines; half a line at the end is what a kill left, and goes."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        self.rows = parse_rows(whole, path)


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"{path}: another process writes to it; wait for it, or choose another place"
        ) from error


def settings_path(path: Path) -> Path:
    """Where the settings of the journal at `path` are."""
    return path.with_name(f"{path.stem}.settings.json")


def read_settings(path: Path) -> dict[str, Any]:
    """What decided the lines of the journal at `path`; `DamageError` if that is not known."""
    beside = settings_path(path)
    try:
        settings = json.loads(beside.read_text())
    except (OSError, ValueError) as error:
        raise DamageError(f"{beside}: missing or damaged: {error}") from error
    if not isinstance(settings, dict):
        raise DamageError(f"{beside}: holds no settings")
    return settings


def parse_rows(content: bytes, path: Path) -> list[dict[str, Any]]:
    """A JSON object from each line; `DamageError` naming the line that is none."""
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DamageError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DamageError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows
