"""What a long command tells while it runs: a bar on a terminal, a line a minute, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

SECONDS_PER_LINE = 60.0


class Progress(Protocol):
    """What a pipeline reports to."""

    def tell(self, text: str, **values: Any) -> None:
        """One line of text, with the values that a machine would want."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """A run of `total` units; yields the function that reports finished ones."""
        ...


class Advance(Protocol):
    """Reports finished units, and how many tokens they held."""

    def __call__(self, units: int, tokens: int = 0) -> None:
        """Count them."""


class Silent:
    """Tells nothing: what the Python API uses by default."""

    def tell(self, text: str, **values: Any) -> None:
        """Ignore it."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Ignore the advances."""
        yield lambda units, tokens=0: None


class Rates:
    """Counts what is done and derives rates and the time left."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.tokens = 0
        self.start = time.monotonic()

    def advance(self, units: int, tokens: int = 0) -> None:
        """Count finished units."""
        self.done += units
        self.tokens += tokens

    def values(self) -> dict[str, Any]:
        """Counts, units and tokens per second, seconds left."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        left = seconds / self.done * (self.total - self.done) if self.done else None
        return {
            "task": self.name,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "units_per_second": round(self.done / seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
        }

    def line(self) -> str:
        """The same for a person."""
        v = self.values()
        tokens = f", {v['tokens_per_second']:.0f} tokens/s" if self.tokens else ""
        left = "" if v["seconds_left"] is None else f", {duration(v['seconds_left'])} left"
        rate = f"{v['units_per_second']:.1f} {self.unit}/s"
        return f"{self.name}: {self.done}/{self.total} {self.unit}, {rate}{tokens}{left}"


class Lines:
    """Text lines, at most one a minute while a task runs; for batch logs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def tell(self, text: str, **values: Any) -> None:
        """Print the text."""
        print(text, file=self.stream, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Print a line a minute, and one at the end."""
        rates, last = Rates(name, total, unit), time.monotonic()

        def advance(units: int, tokens: int = 0) -> None:
            nonlocal last
            rates.advance(units, tokens)
            if time.monotonic() - last >= SECONDS_PER_LINE:
                last = time.monotonic()
                self._report(rates)

        yield advance
        if rates.done:
            self._report(rates)

    def _report(self, rates: Rates) -> None:
        self.tell(rates.line())


class JsonLines(Lines):
    """The same as JSON objects, one a line."""

    def tell(self, text: str, **values: Any) -> None:
        """Print the text and the values as one object."""
        super().tell(json.dumps({"message": text, **values}, default=str))

    def _report(self, rates: Rates) -> None:
        self.tell(rates.line(), **rates.values())


class Terminal:
    """A bar with units/s, tokens/s and the time left, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    def tell(self, text: str, **values: Any) -> None:
        """Print the text above the bar."""
        self.console.print(text, markup=False)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show the bar while the task runs."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        rates = Rates(name, total, unit)
        columns = (BarColumn(), TextColumn("{task.description}"))
        with Bar(*columns, console=self.console, transient=True) as bar:
            shown = bar.add_task(rates.line(), total=total)

            def advance(units: int, tokens: int = 0) -> None:
                rates.advance(units, tokens)
                bar.update(shown, advance=units, description=rates.line())

            yield advance
        if rates.done:
            self.tell(rates.line())


def progress_for(*, log_json: bool = False) -> Progress:
    """The form that suits standard error: a bar on a terminal, else lines; JSON if asked for."""
    if log_json:
        return JsonLines(sys.stderr)
    return Terminal() if sys.stderr.isatty() else Lines(sys.stderr)


def duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 05 s` or `7 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
