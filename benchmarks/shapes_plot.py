"""Forget against retain of some shapes, as docs/figures/shapes.svg.

    python -m benchmarks.shapes_plot [--work FOLDER] [--sets N]

Goes on from finished trials of `benchmarks.shapes`: fold 2 is asked at parts and multiples of the
gamma that was found. A point is a line of frontier.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.shapes import LAYERS, SETS, SHAPES, Bed, View, read
from kvwstream.accessor import vector_gates

plt.rcParams.update({"svg.hashsalt": "kvwstream", "svg.fonttype": "none", "font.size": 9})
DRAWN = ("paper", "A^2", "energy", "A above 1, squared", "control")
PARTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "shapes.svg"


def measure(work: Path, count: int, file: Path) -> None:
    """Append the points that are missing."""
    done = {tuple(json.loads(line)[:3]) for line in file.open()} if file.exists() else set()
    bed, trials = Bed(work), read(work / "trials.jsonl")
    for forgotten in SETS[:count]:
        view = View(bed.store, forgotten)
        kept = tuple(person for person in range(30) if person not in forgotten)[1::2]
        for shape in DRAWN:
            for part in PARTS:
                if (shape, forgotten[0], part) in done or (shape, forgotten) not in trials:
                    continue
                gamma = part * trials[shape, forgotten]["gamma"]
                values = vector_gates(bed.store.sites, SHAPES[shape](view), gamma, LAYERS)
                forget, retain = bed.ask(forgotten, 2, 4, values), bed.ask(kept, 2, 1, values)
                with file.open("a") as out:
                    print(json.dumps([shape, forgotten[0], part, *forget, *retain]), file=out)


def draw(file: Path, figure: Path) -> None:
    """Probability of the forgotten answers against that of the retained, a panel per set."""
    points = [json.loads(line) for line in file.open()]
    firsts = sorted({point[1] for point in points})
    _, panels = plt.subplots(
        1, len(firsts), figsize=(3.4 * len(firsts), 3), sharey=True, squeeze=False
    )
    for panel, first in zip(panels[0], firsts, strict=True):
        for shape in DRAWN:
            found = sorted(p[2:] for p in points if p[0] == shape and p[1] == first)
            panel.plot([p[2] for p in found], [p[4] for p in found], marker="o", ms=3, label=shape)
        panel.set_title(f"persons {first} and {first + 1} forgotten")
        panel.set_xlabel("probability, forgotten")
    panels[0][0].set_ylabel("probability, retained")
    panels[0][0].legend(frameon=False)
    plt.tight_layout()
    plt.savefig(figure, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("shapes-output"))
    parser.add_argument("--sets", type=int, default=2)
    options = parser.parse_args()
    measure(options.work, options.sets, options.work / "frontier.jsonl")
    draw(options.work / "frontier.jsonl", FIGURE)


if __name__ == "__main__":
    main()
