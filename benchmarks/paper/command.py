"""python -m benchmarks.paper: the paper's tables and figures on models that fit two CPU cores.

text and vision run trials, cost measures Figure 3, report writes the document, recipe prints the
commands for the paper's own benchmarks. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.paper import cost
from benchmarks.paper.beds import capitals, persons
from benchmarks.paper.cases import Case
from benchmarks.paper.published import PERCENTS, PUBLISHED
from benchmarks.paper.recipe import recipe_text
from benchmarks.paper.report import write_report
from benchmarks.paper.results import Log
from benchmarks.paper.runs import run_analysis, run_tables
from benchmarks.paper.settings import METHODS
from benchmarks.paper.trials import Bench
from kvwstream.checkpoint import resolve_model

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WORK = Path("paper-work")
BEDS = ("text", "vision")
BUDGET = 8
QUICK = 2
"""Examples of each kind in a quick run, and its budget."""


def main() -> None:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("what", choices=(*BEDS, *PUBLISHED, "cost", "report", "recipe"))
    parser.add_argument("--budget", type=int, default=BUDGET, help="evaluations of each search")
    parser.add_argument("--work", type=Path, default=WORK, help="models and stores")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    parser.add_argument("--percent", type=int, choices=PERCENTS, nargs="*", default=PERCENTS)
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these, no analysis")
    parser.add_argument("--data", type=Path, help="folder of CLEAR's or MLLMU-Bench's data")
    parser.add_argument("--vanilla", help="model that was fine-tuned on all of it")
    parser.add_argument("--oracle", help="model that was fine-tuned on what may stay")
    parser.add_argument("--quick", action="store_true", help="see that it runs, no more")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick and (options.results == RESULTS or options.work == WORK):
        parser.error("--quick makes numbers that mean nothing: give --results, --work of its own")
    if options.what in PUBLISHED and not (options.data and options.vanilla):
        parser.error(f"{options.what} needs --data and --vanilla")
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "text":
        run([capitals()], options)
    elif options.what == "vision":
        run([persons(percent, options.work) for percent in options.percent], options)
    elif options.what in PUBLISHED:
        oracle = resolve_model(options.oracle) if options.oracle else None
        places = (options.data, resolve_model(options.vanilla), oracle)
        make = PUBLISHED[options.what]
        run([make(*places, percent) for percent in options.percent], options)
    elif options.what == "cost" and options.one:
        cost.run_one(options.one, options.work)
    elif options.what == "cost":
        measured = cost.measure(options.work / "cost", quick=options.quick)
        options.results.mkdir(parents=True, exist_ok=True)
        file = options.results / "paper-cost.json"
        file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    elif options.what == "report":
        budget = QUICK if options.quick else options.budget
        docs = options.docs
        write_report(options.results, docs / "results.md", docs / "figures", budget)
    else:
        print(recipe_text())


def run(cases: list[Case], options: argparse.Namespace) -> None:
    """Tables for every case, then what else the figures need for the first of them."""
    log = Log(options.results / f"paper-{options.what}.jsonl")
    budget = QUICK if options.quick else options.budget
    benches = []
    for case in cases:
        chosen = case.shortened(QUICK) if options.quick else case
        benches.append(Bench(chosen, log, options.work, most_steps=1 if options.quick else 1000))
    for bench in benches:
        run_tables(bench, budget, options.methods)
    if options.methods is None:
        run_analysis(benches[0], budget, quick=options.quick)
