"""What `--until-stable` saves and what it costs: `python -m benchmarks.early_end`.

The retain sets of the two demos, collected whole and with several bounds; C_r and the gates of the
demo's own strength are compared with those of the whole pass. Nothing here is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import save
from benchmarks.testbed import demo as vision
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.coefficients import Float64
from kvwstream.examples import Example
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.demo import GAMMA, LAYERS, facts
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics

BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.5)
PART_SIZE = 4


class Job(NamedTuple):
    """A model, its retain and forget data, and the strength at which gates are compared."""

    name: str
    model: Path
    retain: Sequence[Example]
    forget: Sequence[Example]
    gamma: float
    layers: LayerRange


def jobs(folder: Path) -> list[Job]:
    """Of `make demo` and `make demo-vision`."""
    bed = vision.make_job(folder, None)
    return [
        Job(
            "SmolLM2, capitals",
            smollm2_checkpoint(),
            facts("retain"),
            facts("forget"),
            GAMMA,
            LAYERS,
        ),
        Job("vision test bed", bed.model, bed.retain, bed.forget, bed.gamma, bed.layers),
    ]


def errors(values: Float64) -> dict[str, float]:
    """What 99 % of the vectors do not exceed, and the largest."""
    return {"99 %": float(np.quantile(values, 0.99)), "largest": float(values.max())}


def measure(job: Job, folder: Path) -> dict[str, Any]:
    """Records collected, changes of log C_r and relative changes of gates, for each bound."""
    forget, found = str(folder / "forget"), []
    collect(prepare(str(job.model), job.forget), forget)

    def statistics(name: str, bound: float | None) -> tuple[int, Float64, Float64]:
        plan = prepare(str(job.model), job.retain, part_size=PART_SIZE, until_stable=bound)
        store = collect(plan, str(folder / name))
        reduce([str(folder / name)], str(folder / f"{name}-statistics"), [forget])
        read = Statistics.open(Location(str(folder / f"{name}-statistics")))
        gates = vector_gates(read.sites, read.exponent(), job.gamma, job.layers)
        return store.num_records, np.log(read.read("retain_mean")), gates

    records, log_mean, gates = statistics("whole", None)
    for bound in BOUNDS:
        few, other, others = statistics(f"until-{bound}", bound)
        found.append(
            {
                "bound": bound,
                "records": few,
                "log C_r": errors(np.abs(other - log_mean)),
                "gates": errors(np.abs(others / gates - 1)),
            }
        )
        print(job.name, records, found[-1], flush=True)
    return {"records": records, "gamma": job.gamma, "bounds": found}


def measure_all() -> dict[str, Any]:
    """By the name of the job."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for number, job in enumerate(jobs(Path(name))):
            place = Path(name) / str(number)
            place.mkdir()
            found[job.name] = measure(job, place)
    return found


def write() -> None:
    """The result as JSON."""
    save("early-end", {"jobs": measure_all()})


if __name__ == "__main__":
    write()
