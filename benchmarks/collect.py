"""Collecting against plain forward passes: `python -m benchmarks.collect`.

Ways of passing over the same data take turns, each in a process of its own. A ratio is of two runs
of one round; the first round warms up.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.collect_sets import data_sets
from benchmarks.collect_ways import (
    EARLY_END,
    HOOKS,
    NEEDED,
    NO_SHARING,
    ONE_BY_ONE,
    PLAIN,
    SHARING,
    Run,
    call,
    open_process,
)

RESULTS = Path(__file__).parent / "results" / "collect.json"
WAYS = (PLAIN, ONE_BY_ONE, HOOKS, NO_SHARING, SHARING, EARLY_END)
REPEATS = 3


def measure_set(name: str, ways: Sequence[str], beds: Path, repeats: int) -> dict[str, Any]:
    """Every way over one data set."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = {
            way: stack.enter_context(open_process(way, name, beds, place / str(number)))
            for number, way in enumerate(ways)
        }
        runs: dict[str, list[Run]] = {way: [] for way in ways}
        rates = []
        for turn in range(repeats + 1):
            for way, process in processes.items():
                run = call(process, "measured")
                if turn:
                    runs[way].append(run)
            rates.append(call(processes[PLAIN], "rate"))
        flops = {way: call(process, "flops") for way, process in processes.items()}
        needed = stack.enter_context(open_process(NEEDED, name, beds, place / "needed"))
        flops[NEEDED] = call(needed, "flops")
    plain = runs[PLAIN]
    return {
        "records": plain[0].records,
        "flops_per_second": max(rates),
        "flops": flops,
        "seconds": {way: [run.seconds for run in found] for way, found in runs.items()},
        "ratio": ratios(runs, plain, "seconds"),
        "peak_ratio": ratios(runs, plain, "peak"),
        "written": {way: found[0].written for way, found in runs.items()},
        "run": {way: found[0].records for way, found in runs.items()},
    }


def ratios(runs: dict[str, list[Run]], plain: list[Run], value: str) -> dict[str, list[float]]:
    """Of a value of `Run` to that of the plain run of the same round."""
    return {
        way: [getattr(a, value) / getattr(b, value) for a, b in zip(found, plain, strict=True)]
        for way, found in runs.items()
    }


def measure(repeats: int = REPEATS) -> dict[str, Any]:
    """By the name of the data set."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in data_sets(Path(folder)).items():
            ways = [way for way in WAYS if way != EARLY_END or make().until_stable]
            found[name] = measure_set(name, ways, Path(folder), repeats)
            print(name, json.dumps(found[name]["ratio"]), flush=True)
    return found


def main() -> None:
    RESULTS.write_text(json.dumps(measure(), indent=2) + "\n")


if __name__ == "__main__":
    main()
