"""Every damage of a table is found and named; what is whole passes, and nothing is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvwstream.accessor import LayerRange
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.audit_report import Audit
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples
from kvwstream.strength import Strength
from tests import faults
from tests.conftest import llama_config, save_model, tree_bytes
from tests.faults import Fault, flip, truncate

STORES = ("retain.zarr", "forget.zarr")
RESULTS = {"weak": "checkpoint", "adapter": "adapter", "gates": "gates"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, sharded, data) -> Path:
    """Two stores with all moments, statistics, a base of several shards and its weakened copy."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(sharded, folder / "base")
    for name in ("retain", "forget"):
        store_of(folder / "base", data[name], folder / f"{name}.zarr")
    retain, forget = (str(folder / name) for name in STORES)
    reduce([retain], str(folder / "statistics.zarr"), [forget])
    for name, kind in RESULTS.items():
        weaken(folder, name, kind)
    return folder


@pytest.fixture
def copy(workshop, tmp_path) -> Path:
    return shutil.copytree(workshop, tmp_path / "copy")


def store_of(model: Path, data: Path, store: Path, **options: object) -> None:
    options = {"part_size": 3, "moments": ("abs", "signed", "square"), "threads": 1} | options
    collect(prepare(str(model), read_examples(str(data)), **options), str(store))


def weaken(folder: Path, out: str, kind: str = "checkpoint") -> None:
    strength = Strength(0.3, LayerRange(0, 1))
    apply(folder / "base", str(folder / "statistics.zarr"), folder / out, strength, kind=kind)


def inspect(folder: Path, name: str, given: tuple[str, ...] = ()) -> Audit:
    """The audit of one artefact of a workshop, with what is given beside it."""
    stores = STORES if "stores" in given else ()
    return audit(
        [str(folder / path) for path in (*stores, name)],
        base=folder / "base" if "base" in given else None,
        statistics=str(folder / "statistics.zarr") if "statistics" in given else None,
    )


def named(table: list[Fault]):
    assert len({fault.name for fault in table}) == len(table)
    return pytest.mark.parametrize("fault", table, ids=lambda fault: fault.name)


def check(fault: Fault, folder: Path, name: str) -> None:
    fault.damage(folder / name)
    found = inspect(folder, name, fault.given)
    assert not found.passed
    assert any(re.search(fault.finding, line) for line in found.findings), found.findings
    assert all(str(folder) in line for line in found.findings), "each finding names its place"


@named(faults.STORE)
def test_damage_of_a_store_is_found_and_named(fault, copy):
    check(fault, copy, "retain.zarr")


@named(faults.STATISTICS)
def test_damage_of_statistics_is_found_and_named(fault, copy):
    check(fault, copy, "statistics.zarr")


@named(faults.WEAKENED)
def test_damage_of_a_weakened_checkpoint_is_found_and_named(fault, copy):
    check(fault, copy, "weak")


@named(faults.ADAPTER)
def test_damage_of_an_adapter_is_found_and_named(fault, copy):
    check(fault, copy, "adapter")


@named(faults.GATES)
def test_damage_of_a_gates_file_is_found_and_named(fault, copy):
    check(fault, copy, "gates")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, id=f"{name}: {fault.name}")
        for name, table in zip(
            RESULTS, (faults.WEAKENED, faults.ADAPTER, faults.GATES), strict=True
        )
        for fault in table
        if "statistics" not in fault.given
    ],
)
def test_it_is_still_found_when_more_is_given(name, fault, copy):
    check(fault._replace(given=("base", "statistics")), copy, name)


def test_what_is_whole_passes_and_is_not_touched(copy):
    before, times = tree_bytes(copy), {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    names = ("statistics.zarr", *RESULTS, "retain.zarr", "forget.zarr")
    found = audit(
        [str(copy / name) for name in names],
        base=copy / "base",
        statistics=str(copy / "statistics.zarr"),
    )
    assert (found.findings, found.notes) == ([], [])
    for line in (
        r"retain\.zarr: 4 parts as sealed, 11 records of 11 examples, \d+ positions",
        r"forget\.zarr: 2 parts as sealed, 5 records of 5 examples, \d+ positions",
        r"statistics\.zarr: 22 arrays as digested",
        r"statistics\.zarr: derived anew from 2 stores, bit for bit",
        r"weak: \d+ tensors as in kvwstream\.json",
        r"base: is the base that the manifest names",
        r"weak: 2 weakened tensors made anew, bit for bit",
        r"adapter: gates of 2 sites as in kvwstream\.json",
        r"adapter: gates of 2 sites made anew, bit for bit",
        r"gates: gates of 2 sites as in its manifest",
        r"gates: gates of 2 sites made anew, bit for bit",
    ):
        assert any(re.search(line, verified) for verified in found.verified), found.verified
    assert tree_bytes(copy) == before
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == times


@pytest.mark.parametrize("model", ["gpt2", "one_layer"])
def test_other_models_pass(model, request, tmp_path, data):
    """GPT-2's axes and a single layer's number are all zeros, which Zarr likes to leave out."""
    if model == "gpt2":
        base = request.getfixturevalue("gpt2")
    else:
        base = save_model(tmp_path / "model", llama_config(layers=1), chat=False)
    stores = [str(tmp_path / name) for name in STORES]
    for store, name in zip(stores, ("plain", "forget"), strict=True):
        store_of(base, data[name], Path(store), batch_size=2, part_size=2)
    statistics, weak = str(tmp_path / "statistics.zarr"), tmp_path / "weak"
    reduce(stores[:1], statistics, stores[1:])
    apply(base, statistics, weak, Strength(0.3, LayerRange(0, 0)))
    found = audit([*stores, statistics, str(weak)], base=base, statistics=statistics)
    assert (found.findings, found.notes) == ([], [])


def test_retain_statistics_alone_pass(copy):
    retain, alone = str(copy / "retain.zarr"), str(copy / "alone.zarr")
    reduce([retain], alone)
    found = audit([retain, alone])
    assert (found.findings, found.notes) == ([], [])
    assert any("alone.zarr: derived anew from 1 stores" in line for line in found.verified)


def test_what_could_not_be_checked_is_said(copy):
    assert inspect(copy, "statistics.zarr").notes == [
        f"{copy}/statistics.zarr: not derived anew, that needs the stores it came from; "
        "missing or changed: retain.zarr, forget.zarr"
    ]
    assert inspect(copy, "weak").notes == [
        f"{copy}/weak: not compared with its base; give --base MODEL"
    ]
    assert inspect(copy, "weak", ("base",)).notes == [
        f"{copy}/weak: weights not made anew; give --statistics S"
    ]
    for name in ("adapter", "gates"):
        without_base = f"{copy}/{name}: not compared with its base; give --base MODEL"
        without_statistics = f"{copy}/{name}: gates not made anew; give --statistics S"
        assert inspect(copy, name).notes == [without_base, without_statistics]
        assert inspect(copy, name, ("base",)).notes == [without_statistics]
        assert inspect(copy, name, ("statistics",)).notes == [without_base]


def test_every_missing_part_is_listed_at_once(copy):
    for part in (0, 1, 3):
        (copy / f"retain.zarr/parts/{part:06d}/zarr.json").unlink()
    shutil.rmtree(copy / "retain.zarr/parts/000003")
    assert inspect(copy, "retain.zarr").findings == [
        f"{copy}/retain.zarr/parts/{part:06d}: missing seal; run `kvwstream collect` again"
        for part in (0, 1, 3)
    ]


def test_stale_statistics_are_found(copy, data):
    """The store was collected anew with other options; the statistics are of the old one."""
    shutil.rmtree(copy / "retain.zarr")
    store_of(copy / "base", data["retain"], copy / "retain.zarr", tokens="all")
    found = inspect(copy, "statistics.zarr", ("stores",))
    assert len(found.findings) == 1
    assert re.search(
        r"statistics\.zarr: made from another retain\.zarr than .*/retain\.zarr; "
        r"run `kvwstream reduce` again",
        found.findings[0],
    )


@pytest.mark.parametrize("name", RESULTS)
def test_another_base_is_found(name, copy, tmp_path, llama):
    other = save_model(tmp_path / "other", llama_config(layers=3), seed=1)
    for base in (other, llama):
        found = audit([str(copy / name)], base=base, statistics=str(copy / "statistics.zarr"))
        assert len(found.findings) == 1
        assert re.search(
            rf"{base}: is not the base: its weights are \w{{12}}…, the manifest says",
            found.findings[0],
        )


@pytest.mark.parametrize("name", RESULTS)
def test_other_statistics_are_found(name, copy):
    reduce([str(copy / "forget.zarr")], str(copy / "other.zarr"), [str(copy / "retain.zarr")])
    other = str(copy / "other.zarr")
    found = audit([str(copy / name)], base=copy / "base", statistics=other)
    assert len(found.findings) == 1
    assert re.search(r"other\.zarr: is not what the weights were made from", found.findings[0])


def test_what_is_no_artefact_is_found(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    no_artefact = "no store, no statistics, and no kvwstream.json of `apply` there"
    for name, finding in (
        ("nowhere", "missing, nothing is there"),
        ("empty", no_artefact),
        ("file", "not a whole safetensors file of numbers"),
        ("copy/base", no_artefact),
    ):
        (found,) = audit([str(tmp_path / name)]).findings
        assert found.startswith(f"{tmp_path}/{name}: {finding}")


def test_a_damage_does_not_hide_another(copy):
    flip(copy / "retain.zarr/parts/000000/abs_sum/c/0/0")
    (copy / "retain.zarr/parts/000002/zarr.json").unlink()
    flip(copy / "forget.zarr/parts/000001/token_count/c/0/0")
    flip(copy / "statistics.zarr/exponent/c/0")
    faults.flip_tensor(copy / "weak", faults.FIRST)
    names = (*STORES, "statistics.zarr", "weak")
    found = audit([str(copy / name) for name in names], base=copy / "base")
    for place in (
        r"retain\.zarr/parts/000000/abs_sum",
        r"retain\.zarr/parts/000002: missing seal",
        r"forget\.zarr/parts/000001/token_count",
        r"statistics\.zarr/exponent",
        rf"weak: tensor {faults.FIRST}",
    ):
        assert any(re.search(place, line) for line in found.findings), (place, found.findings)


@pytest.mark.parametrize("name", ["forget.zarr", "statistics.zarr", "weak", "adapter"])
def test_every_file_matters(name, copy):
    """Without a file, or with a bit or the end of it lost, no artefact passes."""
    given = ("base", "statistics") if name in RESULTS else ()
    survived = []
    for file in sorted(path for path in (copy / name).rglob("*") if path.is_file()):
        content = file.read_bytes()
        vandals = {"deleted": Path.unlink, "cut": lambda f: truncate(f, 0.9), "flipped": flip}
        for what, vandal in vandals.items():
            vandal(file)
            found = inspect(copy, name, given)
            if found.passed:
                survived.append(f"{file.relative_to(copy)} {what}")
            file.write_bytes(content)
    assert survived == []
    assert inspect(copy, name, given).passed


def test_every_byte_matters_of_a_gates_file_and_of_every_manifest(copy):
    """With nothing to compare them with."""
    survived = []
    names = ("gates", "adapter/kvwstream.json", "adapter/adapter_config.json")
    for name in (*names, "weak/kvwstream.json"):
        file = copy / name
        content = file.read_bytes()
        for at in range(len(content)):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :])
            if inspect(copy, name.split("/")[0]).passed:
                survived.append((name, at, content[at]))
        file.write_bytes(content)
    assert survived == []


def test_the_command_needs_neither_torch_nor_transformers(copy):
    names = (*STORES, "statistics.zarr", *RESULTS)
    code = (
        "import sys\n"
        "from kvwstream.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    argv = [*names, "--base", "base", "--statistics", "statistics.zarr"]
    done = subprocess.run(
        [sys.executable, "-c", code, "audit", *argv],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *report, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert all(line.startswith(" holds  ") for line in report)
    assert " holds  statistics.zarr: derived anew from 2 stores, bit for bit" in report
    assert " holds  weak: 2 weakened tensors made anew, bit for bit" in report


def test_a_base_without_weights_is_a_finding(copy):
    result = audit([str(copy / "weak")], base=copy / "retain.zarr")
    assert any("retain.zarr: no model.safetensors" in finding for finding in result.findings)


def test_side_files_are_checked_without_a_base(copy):
    (copy / "weak" / "tokenizer.json").unlink()
    (copy / "weak" / "extra.safetensors").write_bytes(b"weights")
    found = audit([str(copy / "weak")]).findings
    assert any("file tokenizer.json: missing" in finding for finding in found)
    assert any("file extra.safetensors: extra" in finding for finding in found)
