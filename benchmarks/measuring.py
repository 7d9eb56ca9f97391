"""Seconds, peaks of memory, the machine, and tables in a page."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def reset_peak() -> None:
    """From here on `resident_peak` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> float:
    """Peak of this process's resident memory, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def peak_of(code: str, *arguments: Path | str) -> float:
    """Peak, in megabytes, of a process that does nothing but run that code."""
    told = "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    command = [sys.executable, "-c", f"{code}\n{told}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) * 1024 / 1e6


def machine() -> dict[str, Any]:
    """What a ratio depends on."""
    info = Path("/proc/cpuinfo").read_text()
    flags = info.partition("flags")[2].partition("\n")[0].split()
    name = info.partition("model name")[2].partition("\n")[0].strip("\t :")
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sha_ni")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": name,
        "instructions": [flag for flag in known if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def save(name: str, found: Mapping[str, Any]) -> None:
    """A result as JSON, with the machine that it is of."""
    text = json.dumps({**found, "machine": machine()}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def read(name: str) -> Any:
    """A result; `FileNotFoundError` if it was not measured yet."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    found = [f"{value:.{digits}f}" for value in (median(values), min(values), max(values))]
    return f"{found[0]} ({found[1]}-{found[2]})" if len(values) > 1 else found[0]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fill(text: str, tables: Mapping[str, str]) -> str:
    """The page with tables between its markers of their names."""
    for name, content in tables.items():
        before, begin, after = text.partition(f"<!-- {name} -->\n")
        _, end, rest = after.partition("<!-- end -->")
        assert end, f"the page has no place for the table {name}"
        text = before + begin + content + "\n" + end + rest
    return text
