"""Stores collected apart count as one where that means something, and are refused where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvwstream.errors import DataError, PlanMismatchError
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.pipelines.sources import check_compatible
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from tests.conftest import Artefacts, llama_config, save_model, tree_bytes
from tests.test_cli import run

NUMBERS = ("retain_mean", "retain_standard_error", "retain_token_count", "accessor", "exponent")


@pytest.fixture(scope="module")
def halves(llama, data, tmp_path_factory) -> Path:
    """The data to retain in one store, and in two of other parts and another order."""
    folder = tmp_path_factory.mktemp("halves")
    examples = read_examples(str(data["retain"]))
    some = {
        "whole": (examples, 3, 0),
        "a": (examples[:4], 2, 0),
        "b": (examples[4:], 5, 7),
        "a2": (examples[:2], 1, 0),
        "forget": (read_examples(str(data["forget"])), 3, 0),
    }
    for name, (rows, part_size, seed) in some.items():
        prepared = prepare(str(llama), rows, part_size=part_size, seed=seed, threads=1)
        collect(prepared, str(folder / f"{name}.zarr"))
    return folder


def open_store(url: Path | str) -> CollectStore:
    return CollectStore.open(Location(str(url)))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_stores_are_one_store_of_both(order, halves, tmp_path):
    forget = ("--forget", halves / "forget.zarr")
    retain = [word for name in order for word in ("--retain", halves / f"{name}.zarr")]
    run("reduce", *retain, *forget, tmp_path / "two.zarr")
    run("reduce", "--retain", halves / "whole.zarr", *forget, tmp_path / "one.zarr")
    one, two = (Statistics.open(Location(str(tmp_path / f"{n}.zarr"))) for n in ("one", "two"))
    for name in NUMBERS:
        np.testing.assert_allclose(one.read(name), two.read(name), rtol=1e-12, atol=1e-12)
    sources = [(s["role"], s["name"]) for s in two.attributes["sources"]]
    assert sources == [
        *(("retain", f"{name}.zarr") for name in order),
        ("forget", "forget.zarr"),
    ]
    assert two.attributes["num_retain_records"] == 11
    stores = [str(halves / f"{name}.zarr") for name in ("b", "a", "forget")]
    found = audit([*stores, str(tmp_path / "two.zarr")])
    assert (found.findings, found.notes) == ([], [])


def test_several_stores_to_forget_follow_one_another(halves, tmp_path):
    """A's rows are those of the first store, then those of the second."""
    retain, a, b = (str(halves / f"{name}.zarr") for name in ("forget", "a", "b"))
    both = reduce([retain], str(tmp_path / "ab.zarr"), [a, b])
    alone = [reduce([retain], str(tmp_path / f"{n}.zarr"), [s]) for n, s in enumerate((a, b))]
    for name in ("accessor", "forget_mean", "examples"):
        joined = np.concatenate([one.read(name) for one in alone])
        np.testing.assert_array_equal(both.read(name), joined)


def test_an_overlap_is_refused_and_every_example_is_named(halves, tmp_path, capfd):
    a, a2 = halves / "a.zarr", halves / "a2.zarr"
    before = tree_bytes(halves)
    run("reduce", "--retain", a, "--retain", a2, tmp_path / "r.zarr", expect=1)
    told = capfd.readouterr().err
    assert f"{a2}: 2 examples stand in an earlier store too" in told
    for name in open_store(a2).examples.ids:
        assert f"{name} = {name}" in told
    with pytest.raises(DataError, match="4 examples stand in an earlier store too"):
        reduce([str(halves / "whole.zarr")], str(tmp_path / "r.zarr"), [str(a)])
    assert not (tmp_path / "r.zarr").exists()
    assert tree_bytes(halves) == before


def test_one_store_twice_is_an_overlap(halves, tmp_path):
    with pytest.raises(DataError, match="4 examples stand in an earlier store too"):
        reduce([str(halves / "a.zarr")] * 2, str(tmp_path / "r.zarr"))


def test_stores_of_other_dtype_tokens_moments_or_model_are_refused(llama, data, halves, tmp_path):
    """Each with a line that names the difference; order, batches and parts may differ."""
    examples = read_examples(str(data["forget"]))
    model = save_model(tmp_path / "model", llama_config(), seed=1)
    wider = save_model(tmp_path / "wider", llama_config(intermediate_size=64))
    others = {
        "dtype: float32 there, bfloat16 here": (llama, {"dtype": "bfloat16"}),
        "tokens: answer there, all here": (llama, {"tokens": "all"}),
        "moments: abs there, abs,square here": (llama, {"moments": ("abs", "square")}),
        "model_digest: ": (model, {}),
        "sites_digest: ": (wider, {}),
    }
    for number, (line, (base, options)) in enumerate(others.items()):
        other = str(tmp_path / f"{number}.zarr")
        collect(prepare(str(base), examples, threads=1, **options), other)
        for roles in (([str(halves / "a.zarr"), other], []), ([str(halves / "a.zarr")], [other])):
            with pytest.raises(PlanMismatchError) as caught:
                reduce(roles[0], str(tmp_path / "r.zarr"), roles[1])
            first, *lines = str(caught.value).splitlines()
            assert first == f"{halves}/a.zarr and {other} do not belong together:"
            assert any(found.strip().startswith(line) for found in lines)
            assert number == len(others) - 1 or len(lines) == 1
    assert not (tmp_path / "r.zarr").exists()


def test_every_difference_that_decides_the_numbers_has_its_line(artefacts: Artefacts):
    """And no other: what is named here is the whole list."""
    one, other = open_store(artefacts.retain), open_store(artefacts.forget)
    decisive = {
        "model_digest": "0" * 64,
        "config_digest": "0" * 64,
        "sites_digest": "0" * 64,
        "processor_digest": "0" * 64,
        "tokens": "question",
        "moments": ("abs", "signed"),
        "dtype": "float16",
        "attention": "eager",
    }
    free = {"seed": 3, "batch_size": 1, "part_size": 5, "threads": 2}
    check_compatible([one, replace(other, plan=replace(other.plan, **free))])
    with pytest.raises(PlanMismatchError) as caught:
        check_compatible([one, replace(other, plan=replace(other.plan, **decisive, **free))])
    _, *lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == list(decisive)
    assert "attention: sdpa there, eager here" in lines[-1]
