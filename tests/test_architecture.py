"""The shape of the house: arrows between modules, light help, small files."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kvwstream"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEVELS = [
    {"plan", "canonical", "errors", "examples", "images", "durable", "paths", "progress", "metrics"}
    | {"rounding", "reproducible", "smollm2", "aggregates", "journal"},
    {"sites", "answers", "accessor", "coefficients", "strength", "passes", "batches", "pixels"}
    | {"prefix_cache", "search", "rendering"},
    {"stores", "collector", "gates", "models", "checkpoint", "weakening", "readers"}
    | {"manifest", "gates_file", "adapter", "generation", "probabilities"},
    {"pipelines"},
    {"preview", "options", "commands", "cli", "__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
LIGHT = {
    "numpy only": (
        ["coefficients", "accessor", "rounding", "strength"],
        {"torch", "zarr", "dask", "xarray"},
    ),
    "no model code": (
        ["pipelines.audit", "pipelines.apply", "pipelines.reduce"],
        {"torch", "transformers", "datasets"},
    ),
    "only parsing": (["cli"], {"torch", "dask", "numpy", "zarr", "xarray", "transformers"}),
}


def imports_of(path: Path) -> set[str]:
    """Top names below `kvwstream` that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kvwstream":
            parts = (node.module or "").split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return {name for name in found if name in LEVEL or (PACKAGE / f"{name}.py").exists()}


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_a_level():
    assert {top(path) for path in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_arrows_point_one_way(path: Path):
    own = top(path)
    upward = {name for name in imports_of(path) if LEVEL[name] > LEVEL[own]}
    assert not upward, f"{own} imports {upward} from a higher level"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_holds_one_idea(path: Path):
    assert len(path.read_text().splitlines()) <= 300
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("case", LIGHT)
def test_light_modules_stay_light(case):
    modules, heavy = LIGHT[case]
    names = ", ".join(f"kvwstream.{module}" for module in modules)
    code = f"import sys, {names}; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_and_imports_neither_torch_nor_dask():
    code = (
        "import sys\nfrom kvwstream.cli import main\nsys.argv = ['kvwstream', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'dask'} & sys.modules.keys()"
    )
    seconds = []
    for _ in range(5):
        before = processor_seconds()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(processor_seconds() - before)
        assert done.returncode == 0, done.stderr
        assert "collect" in done.stdout
    assert min(seconds) < 0.5


def processor_seconds() -> float:
    """Of the children so far: what a busy machine cannot stretch."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_top_level_is_what_was_asked_for():
    for name in ("pipelines", "stores"):
        assert (ROOT / name).resolve() == PACKAGE / name
    for name in (
        "README.md",
        "pyproject.toml",
        "Makefile",
        "constraints.txt",
        "LICENSE",
        ".ci/run",
    ):
        assert (ROOT / name).is_file(), name
    assert len((ROOT / "cli.py").read_text().split("\n\n")) <= 2


def test_cli_py_runs_the_command_line_from_a_checkout():
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0.1.0"
