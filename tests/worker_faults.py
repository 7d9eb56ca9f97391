"""Functions of kvwstream replaced in the processes of a Dask cluster, for as long as a test lasts.

A worker that starts later, or again, gets the replacement as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dask.distributed import Client, Worker, WorkerPlugin

COLLECT_PART = "kvwstream.pipelines.measure.Measurer.part"
SEAL_PART = "kvwstream.pipelines.worker.Worker.seal"
LOAD_MODEL = "kvwstream.pipelines.worker.load_model"
ENVIRONMENT_OF = "kvwstream.pipelines.worker.environment_of"

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class Patch(WorkerPlugin):
    """`wrap(original)` in the place of the function `target`, in the worker `only` or in all."""

    def __init__(self, target: str, wrap: Wrap, only: str | None = None) -> None:
        self.target, self.wrap, self.only = target, wrap, only

    def setup(self, worker: Worker) -> None:
        owner, _, self.attribute = self.target.rpartition(".")
        self.owner = resolve_name(owner)
        self.original = getattr(self.owner, self.attribute)
        if self.only in (None, worker.name):
            setattr(self.owner, self.attribute, self.wrap(self.original))

    def teardown(self, worker: Worker) -> None:
        setattr(self.owner, self.attribute, self.original)


def parts_in(arguments: tuple[Any, ...]) -> list[int]:
    """Numbers of the parts among them, measured or not."""
    parts = [arg.data.part if type(arg).__name__ == "Measured" else arg for arg in arguments]
    return [part.number for part in parts if type(part).__name__ == "Part"]


@contextmanager
def patched(client: Client, *patches: Patch) -> Iterator[None]:
    """All of them, one over the other; removed in the opposite order."""
    with ExitStack() as stack:
        for number, patch in enumerate(patches):
            name = f"{patch.target}-{number}"
            client.register_plugin(patch, name=name)
            stack.callback(client.unregister_worker_plugin, name)
        yield


def sleeping(seconds: float) -> Wrap:
    """It takes longer."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return original(*args, **options)

        return replacement

    return wrap


def logging(path: Path) -> Wrap:
    """Every call leaves a line: the process, and the number of the part if one is given."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            with path.open("a") as file:
                file.write(" ".join(map(str, [os.getpid(), *parts_in(args)])) + "\n")
            return original(*args, **options)

        return replacement

    return wrap


def meeting(log: Path, lines: int) -> Wrap:
    """It waits until `logging` has left so many lines."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            while len(log.read_text().splitlines()) < lines:
                time.sleep(0.01)
            return original(*args, **options)

        return replacement

    return wrap


def failing(error: Exception, part: int) -> Wrap:
    """It raises for one part."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            if part in parts_in(args):
                raise error
            return original(*args, **options)

        return replacement

    return wrap


def changing(**values: str) -> Wrap:
    """The dictionary that it returns has other values."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: {**original(*args, **options), **values}

    return wrap
