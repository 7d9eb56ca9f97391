"""Collecting against plain forward passes: `python -m benchmarks.collect [SET...]`.

Ways of passing over the same data take turns, each in a process of its own. A ratio is of two runs
of one round.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.collect_sets import NAMES, make_set
from benchmarks.collect_ways import (
    EARLY_END,
    HOOKS,
    NEEDED,
    NO_SHARING,
    PLAIN,
    SHARING,
    Run,
    call,
    open_process,
)
from benchmarks.measuring import RESULTS, read, save

WAYS = (PLAIN, HOOKS, NO_SHARING, SHARING, EARLY_END)
REPEATS = 3
COUNTS = (10, 100, 1000)
SCALING = "scaling"
RESULT = "collect"


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
        for process in processes.values():
            call(process, "warm_up")
        for _ in range(repeats):
            for way, process in processes.items():
                runs[way].append(call(process, "measured"))
            rates.append(call(processes[PLAIN], "rate"))
        counted = (way for way in ways if way != HOOKS)  # as many as plain
        flops = {way: call(processes[way], "flops") for way in counted}
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


def measure_scaling(beds: Path) -> dict[str, Any]:
    """More and more records, by their number, with the defaults of `collect`."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(REPEATS):
        for count in COUNTS:
            with (
                tempfile.TemporaryDirectory() as place,
                open_process(SHARING, str(count), beds, Path(place) / "0") as process,
            ):
                run = call(process, "measured")
            one = found.setdefault(str(count), {"seconds": [], "peak": [], "written": run.written})
            one["seconds"].append(run.seconds)
            one["peak"].append(run.peak)
    return found


def write(names: Sequence[str] = (*NAMES, SCALING)) -> None:
    """Measure what is named into the JSON, which keeps what else it holds; written after each."""
    result = read(RESULT) if (RESULTS / f"{RESULT}.json").exists() else {"sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        beds = Path(folder)
        for name in names:
            if name == SCALING:
                result["scaling"] = measure_scaling(beds)
            else:
                stable = make_set(name, beds).until_stable
                ways = [way for way in WAYS if stable or way != EARLY_END]
                result["sets"][name] = measure_set(name, ways, beds, REPEATS)
            print(name, flush=True)
            save(RESULT, result)


if __name__ == "__main__":
    write(sys.argv[1:] or (*NAMES, SCALING))
