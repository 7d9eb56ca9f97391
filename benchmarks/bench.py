"""Everything that docs/performance.md says: `make bench`, or `python -m benchmarks.bench NAME...`.

Measures what is named (default: everything) into benchmarks/results/ and fills the page's tables.
Absolute seconds depend on the machine and mean little: what is compared took turns in one run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from rich.filesize import decimal

from benchmarks import apply, collect, early_end, flame, reduce
from benchmarks.collect_ways import NEEDED, PLAIN
from benchmarks.measuring import DOCS, fill, read, spread, table

PAGE = DOCS / "performance.md"
WORKS: dict[str, Callable[[], None]] = {
    "collect": collect.write,
    "early-end": early_end.write,
    "apply": apply.write,
    "reduce": reduce.write,
    "flame": flame.write,
}


def machine_line(machine: dict[str, Any]) -> str:
    """One sentence."""
    return (
        f"{machine['processor']} ({', '.join(machine['instructions'])}), {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Python {machine['python']}, torch {machine['torch']} with "
        f"{machine['threads']} threads."
    )


def collect_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """A row per way."""
    flops, limit = found["flops"], found["flops"][NEEDED] / found["flops_per_second"]
    for way, ratio in found["ratio"].items():
        records = found["run"][way]
        whole = records == found["records"]
        yield [
            way if whole else f"{way} ({records} records)",
            spread(ratio),
            spread(found["peak_ratio"][way]),
            decimal(found["written"][way]) if found["written"][way] else "0",
            f"{flops.get(way, flops[PLAIN]) / flops[PLAIN]:.2f}",
            f"{limit / median(found['seconds'][way]):.2f}" if whole else "",
        ]


def collect_table(found: dict[str, Any]) -> str:
    """Of one data set."""
    head = ["way", "time", "peak memory", "written", "FLOPs", "limit / time"]
    return table(head, collect_rows(found))


def limit_table(sets: dict[str, Any]) -> str:
    """What must be run, and how fast the machine can be."""

    def row(name: str, found: dict[str, Any]) -> list[str]:
        needed, rate = found["flops"][NEEDED], found["flops_per_second"]
        return [
            name,
            f"{needed / found['records'] / 1e9:.1f} GFLOP",
            f"{needed / found['flops'][PLAIN]:.2f}",
            f"{rate / 1e9:.0f} GFLOP/s",
            f"{needed / rate / median(found['seconds'][PLAIN]):.2f}",
        ]

    head = ["data", "a record must", "of plain FLOPs", "products run at", "limit / plain time"]
    return table(head, (row(name, found) for name, found in sets.items()))


def scaling_table(found: dict[str, Any]) -> str:
    """Records 10, 100, 1,000."""
    rows = [
        [
            f"{int(count):,}",
            spread([1000 * s / int(count) for s in one["seconds"]], 1),
            f"{median(one['peak']):.0f}",
            f"{one['written'] / int(count) / 1000:.0f}",
        ]
        for count, one in found.items()
    ]
    return table(["records", "ms a record", "peak, MB", "kB a record"], rows)


def early_table(jobs: dict[str, Any]) -> str:
    """Bounds and true errors."""
    rows = [
        [
            name,
            one["bound"],
            f"{one['records']} of {found['records']}",
            *(f"{one[of][which]:.3f}" for of in ("log C_r", "gates") for which in one[of]),
        ]
        for name, found in jobs.items()
        for one in found["bounds"]
    ]
    head = ["data", "EPS", "records run"]
    head += [f"{of}, {which}" for of in ("log C_r", "gates") for which in ("99 %", "largest")]
    return table(head, rows)


def apply_table(found: dict[str, Any]) -> str:
    """Against copies."""
    places = {"plain": "no reflinks", "reflinks": "XFS with reflinks"}
    rows = [
        [
            places[place],
            one["page_cache"],
            spread(one["ratio"]),
            f"{median(one['seconds']['apply']):.1f} s",
            f"{median(one['seconds']['cp']):.1f} s",
            f"{max(one['peak_megabytes']):.0f} MB",
        ]
        for place in places
        if isinstance(one := found.get(place), dict)
    ]
    head = ["file system", "page cache", "apply / cp and sync", "apply", "cp and sync", "peak"]
    return table(head, rows)


def reduce_table(shapes: dict[str, Any]) -> str:
    """Against reading with plain Zarr."""
    rows = [
        [name, what, spread(ratio)]
        for name, found in shapes.items()
        for what, ratio in found["ratios"].items()
    ]
    rows += [
        [name, f"{verb}, peak", f"{peak:.0f} MB"]
        for name, found in shapes.items()
        for verb, peak in found["peak_megabytes"].items()
    ]
    return table(["stores", "what", "ratio"], rows)


def tables() -> dict[str, str]:
    """By the name of their place in the page."""
    collected = read("collect")
    sets = collected["sets"]
    return {
        "machine": machine_line(collected["machine"]),
        **{name: collect_table(found) for name, found in sets.items()},
        "limit": limit_table(sets),
        "scaling": scaling_table(collected["scaling"]),
        "early end": early_table(read("early-end")["jobs"]),
        "apply": apply_table(read("apply")),
        "reduce": reduce_table(read("reduce")["shapes"]),
    }


def main() -> None:
    for name in sys.argv[1:] or WORKS:
        WORKS[name]()
    made = tables()
    PAGE.write_text(fill(PAGE.read_text(), made))
    print("\n\n".join(f"{name}\n\n{content}" for name, content in made.items()))


if __name__ == "__main__":
    main()
