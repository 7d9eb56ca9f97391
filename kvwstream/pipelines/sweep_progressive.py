"""A sweep over progressive collections, where each gamma and layer range needs its own pass."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.canonical import digest_of
from kvwstream.coefficients import Float64
from kvwstream.errors import OptionError
from kvwstream.examples import Example
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.progressive import Beginning, Replay
from kvwstream.progress import Progress
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength


def is_frozen(stored: Statistics) -> bool:
    """Whether stored A serves every gamma: there is some, and it was measured on the base."""
    return bool(stored.num_forget_records) and not stored.attributes["progressive"]


def refuse(model: str, statistics: str, stored: Statistics, collected: str | None) -> OptionError:
    """What a progressive search costs, and the commands of one gamma to start with."""
    how = stored.attributes["progressive"] or {"gamma": 0.01, "layers": "FIRST:LAST"}
    lines, start = [], statistics
    if stored.num_forget_records:
        retain = [s["name"] for s in stored.attributes["sources"] if s["role"] == "retain"]
        start = "retained.zarr"
        lines.append(shlex.join(["kvwstream", "reduce", *_options("--retain", retain), start]))
    lines += commands(model, start, collected or "FORGET.jsonl", how["gamma"], how["layers"])
    return OptionError(
        f"{statistics}: holds no A that serves every gamma: of a progressive collection each gamma "
        "and layer range needs its own pass over the forget data. Run one by one\n  "
        + "\n  ".join(lines)
        + "\nor all that the search asks for: give the statistics of the retain data alone, "
        "--collected DATA and --run-progressive"
    )


def commands(model: str, statistics: str, data: str, gamma: float, layers: str) -> list[str]:
    """Collect, reduce and apply one gamma, as a shell takes them."""
    store, made = f"progressive-{gamma:g}.zarr", f"progressive-{gamma:g}-statistics.zarr"
    strength = ["--gamma", f"{gamma:g}", "--layers", layers]
    collecting = ["--progressive", "--retain-statistics", statistics, *strength]
    return [
        shlex.join(["kvwstream", "collect", model, data, store, *collecting]),
        shlex.join(["kvwstream", "reduce", "--after", statistics, "--forget", store, made]),
        shlex.join(["kvwstream", "apply", model, made, f"weakened-{gamma:g}", *strength]),
    ]


def _options(name: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (name, value)]


@dataclass(frozen=True)
class Passes:
    """Gates of a strength by a collection of its own, kept in `folder` and taken up again."""

    model: str
    statistics: str
    examples: Sequence[Example]
    folder: Path
    dtype: str
    device: str
    progress: Progress

    def check(self, choices: Mapping[str, Sequence[Any]]) -> None:
        """`OptionError` for another shape than the paper's: a progressive collection has no other.

        `choices` are further fields of a `Strength` and what each may be.
        """
        usual = Strength(0.0, LayerRange(0, 0))
        for name, values in choices.items():
            if any(value != getattr(usual, name) for value in values):
                raise OptionError(
                    f"a progressive collection weakens by the paper's accessor: leave --{name} out"
                )

    def __call__(self, strength: Strength) -> Float64:
        """Gates (vector,) after all forget records."""
        beginning = Beginning.chosen(self.statistics, None)
        how = beginning.plan(strength.gamma, str(strength.layers), "exact", 1)
        prepared = prepare(
            self.model, self.examples, dtype=self.dtype, device=self.device, progressive=how
        )
        name = digest_of([strength.gamma, str(strength.layers)])[:12]
        place = str(self.folder / f"{name}.zarr")
        store = collect(prepared, place, beginning=beginning, progress=self.progress)
        replay = Replay(beginning, store.plan, store.sites, None)
        for part in store.plan.parts:
            replay.add_part(store, store.read_part(part.number, ["abs"]))
        return vector_gates(store.sites, replay.total, strength.gamma, strength.layers)
