"""Every step on a few examples, in a temporary folder: python -m benchmarks.paper.quick

The numbers mean nothing; it fails unless every table and every figure comes out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.paper.tables import NOT_RUN

FIGURES = ("ranks", "gamma", "layers")


def main() -> None:
    """Run, write, check."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        places = [f"--{kind}={home / kind}" for kind in ("work", "results", "docs")]
        for what in (["text"], ["vision", "--percent", "5"], ["cost"], ["report"]):
            command = [sys.executable, "-m", "benchmarks.paper", *what, "--quick", *places]
            subprocess.run(command, check=True)
        check(home / "docs")
    print(f"every table and figure came out, {time.monotonic() - start:.0f} s")


def check(docs: Path) -> None:
    """`SystemExit` naming what is missing in a report of both test beds."""
    text = (docs / "results.md").read_text(encoding="utf-8")
    wanted = [f"figures/{f}-{bed}.svg" for f in FIGURES for bed in ("text", "vision-05")]
    wanted.append("figures/cost.svg")
    missing = [w for w in wanted if f"({w})" not in text or not (docs / w).stat().st_size]
    if missing:
        raise SystemExit(f"missing in the report: {', '.join(missing)}")
    if text.count(NOT_RUN) != 4:  # explained once; no forget 10 and 15 %, no oracle
        raise SystemExit(f'"{NOT_RUN}" stands {text.count(NOT_RUN)} times in the report, not 4')


if __name__ == "__main__":
    main()
