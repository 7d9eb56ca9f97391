"""Where collecting spends its time: `python -m benchmarks.flame` samples `kvwstream collect`.

py-spy samples the command on the demo's retain set; the picture shows the main thread's stacks and
the threads that seal parts, without those that wait for work.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.measuring import DOCS
from kvwstream.smollm2 import smollm2_checkpoint

FIGURE = DOCS / "figures" / "collect-flame.svg"
SAMPLES = 50
"""Per second."""
WAITING = ("_worker (concurrent/futures/thread", "select (selectors", "wait (threading")
"""Leaves of threads that have nothing to do."""
BEGIN = ("collect (kvwstream/pipelines/collect.py", "_tried (kvwstream/pipelines/collect.py")
"""What is shown begins at the outermost of these."""
NARROWEST = 0.003
"""Share of the samples below which a frame is left out."""
COLOURS = {"kvwstream": "#e8743b", "torch": "#5899da", "transformers": "#f0c05a"}
Stack = tuple[str, ...]


def sample() -> Counter[Stack]:
    """Samples of each stack of the command, outermost frame first."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks.txt"
        command = [
            *(Path(sys.executable).with_name("py-spy"), "record", "-r", str(SAMPLES)),
            *("-f", "raw", "-o", raw, "--"),
            *(sys.executable, "-m", "kvwstream", "collect", smollm2_checkpoint()),
            *(str(files("kvwstream") / "facts" / "retain.jsonl"), Path(folder) / "store.zarr"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        found: Counter[Stack] = Counter()
        for line in raw.read_text().splitlines():
            frames, _, count = line.rpartition(" ")
            stack = tuple(re.sub(r":\d+\)$", ")", frame) for frame in frames.split(";"))
            if not stack[-1].startswith(WAITING) and (within := shown(stack)):
                found[within] += int(count)
        return found


def shown(stack: Stack) -> Stack:
    """From the collection on; calls of modules and decorators in between say nothing."""
    begins = [n for n, frame in enumerate(stack) if frame.startswith(BEGIN)]
    if not begins:
        return ()
    noise = ("Module._", "wrapper", "can_return", "merge_with", "capture_outputs", "_failures")
    return tuple(f for f in stack[begins[0] :] if not f.startswith(noise) and "<locals>" not in f)


def boxes(
    found: Counter[Stack], total: int, depth: int = 0, left: float = 0.0
) -> Iterator[tuple[int, float, float, str]]:
    """Depth, left edge, width (as shares of all samples) and name of every box."""
    calls: defaultdict[str, Counter[Stack]] = defaultdict(Counter)
    for stack, count in found.items():
        if stack:
            calls[stack[0]][stack[1:]] += count
    for name, below in sorted(calls.items()):
        width = below.total() / total
        if width >= NARROWEST:
            yield depth, left, width, name
            yield from boxes(below, total, depth + 1, left)
        left += width


def draw(found: Counter[Stack], file: Path) -> None:
    """An icicle: callers above what they call."""
    mpl.rcParams["svg.hashsalt"], mpl.rcParams["svg.fonttype"] = "kvwstream", "none"
    made = list(boxes(found, found.total()))
    deepest = max(depth for depth, *_ in made)
    figure, axes = plt.subplots(figsize=(12, 0.28 * (deepest + 1)))
    for depth, left, width, name in made:
        package = next((p for p in COLOURS if f"({p}/" in name), "")
        colour = COLOURS.get(package, "#cccccc")
        axes.barh(-depth, width, left=left, height=1, color=colour, edgecolor="white", align="edge")
        room = int(width * 150)
        label = f"{name.split(' (')[0]} {width:.0%}"
        if room > 4:
            axes.text(
                left + 0.002, 0.5 - depth, label[:room], fontsize=7, va="center", clip_on=True
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(-deepest, 1)
    axes.axis("off")
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def write() -> None:
    """The picture in docs/."""
    draw(sample(), FIGURE)


if __name__ == "__main__":
    write()
