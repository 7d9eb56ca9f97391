"""python -m benchmarks.paper text | vision | cost | report, or --recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.paper.cases import PERCENTS, capitals, persons
from benchmarks.paper.runs import run_analysis, run_tables
from benchmarks.paper.trials import Bench, Log

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path("paper-work")


def main() -> None:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("what", choices=("text", "vision"))
    parser.add_argument("--budget", type=int, default=4, help="evaluations of each search")
    parser.add_argument("--work", type=Path, default=WORK, help="models, data, stores")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines of trials")
    parser.add_argument("--percent", type=int, choices=PERCENTS, nargs="*", default=PERCENTS)
    parser.add_argument("--tables-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(torch.get_num_threads())
    log = Log(options.results / f"paper-{options.what}.jsonl")
    if options.what == "text":
        cases = [capitals()]
    else:
        cases = [persons(percent, options.work) for percent in options.percent]
    for number, case in enumerate(cases):
        bench = Bench(case, log, options.work)
        run_tables(bench, options.budget)
        if number == 0 and not options.tables_only:
            run_analysis(bench, options.budget)
