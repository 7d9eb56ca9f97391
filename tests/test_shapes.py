"""The shapes `energy` and `coherent`: laws, against a plain loop, through every verb to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file

from kvwstream.accessor import LARGEST_ENERGY, LayerRange, coherent, energy, gates
from kvwstream.adapter import read_vectors
from kvwstream.errors import OptionError
from kvwstream.gates_file import GatesFile
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.derive import reduce_serial
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import MOMENTS
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import OF_FURTHER_MOMENTS, Statistics
from kvwstream.strength import Strength
from tests.conftest import Artefacts, tree_bytes

LAYERS = LayerRange(0, 1)
OURS = pytest.mark.parametrize("shape", ["energy", "coherent"])
WIDTH = 6
sizes = arrays(np.float64, WIDTH, elements=st.floats(0, 1e3))
some = arrays(np.float64, WIDTH, elements=st.just(0.0) | st.floats(1e-3, 1e3))
signed = arrays(np.float64, WIDTH, elements=st.floats(-1e3, 1e3))
masks = arrays(np.bool_, WIDTH)


@given(sizes, signed, sizes, sizes, masks)
def test_nothing_is_weakened_that_the_retain_data_use_as_much(forget, mean, retain, square, mask):
    found = energy(forget, mean, retain, square, mask)
    assert ((found >= 0) & (found <= LARGEST_ENERGY**2)).all()
    assert not found[~mask | (forget <= retain)].any()


@given(sizes, signed, sizes, sizes, st.floats(1, 1e3))
def test_more_forget_energy_never_weakens_less_nor_more_retain_energy_more(f, m, r, q, factor):
    everywhere = np.ones(WIDTH, bool)
    before = energy(f, m, r, q, everywhere)
    assert (energy(f, factor * m, r, q, everywhere) >= before).all()
    assert (energy(f, m, r, factor * q, everywhere) <= before).all()
    np.testing.assert_array_equal(energy(f, -m, r, q, everywhere), before)


@given(sizes, signed, sizes, sizes, masks, st.permutations(range(WIDTH)))
def test_names_of_vectors_do_not_matter(forget, mean, retain, square, mask, order):
    values = (forget, mean, retain, square, mask)
    moved = energy(*(value[order] for value in values))
    np.testing.assert_array_equal(moved, energy(*values)[order])


def test_by_hand():
    """(4/2)^2, capped, as strong as in retain, no retain tokens, no direction."""
    found = energy(
        np.array([3.0, 2e6, 1.0, 3.0, 3.0]),
        np.array([2.0, 1e6, 2.0, 2.0, 0.0]),
        np.ones(5),
        np.full(5, 2.0),
        np.array([True, True, True, False, True]),
    )
    np.testing.assert_allclose(found, [4.0, LARGEST_ENERGY**2, 0, 0, 0], rtol=1e-11)


@given(sizes, some, arrays(np.float64, WIDTH, elements=st.floats(-1, 1)))
def test_coherent_is_the_square_of_a_where_all_coefficients_have_one_sign(a, mean, share):
    found = coherent(a, mean, mean * share)
    assert ((found >= 0) & (found <= a * a)).all()
    np.testing.assert_array_equal(coherent(a, mean, -mean * share), found)
    np.testing.assert_array_equal(coherent(a, mean, -mean), np.where(mean > 0, a * a, 0))
    np.testing.assert_allclose(found, np.where(mean > 0, a * a * abs(share), 0), atol=1e-12)


def test_coherent_by_hand():
    """Half, all, cancelled, none, no A."""
    found = coherent(
        np.array([3.0, 3, 3, 3, 0]), np.array([2.0, 2, 2, 0, 2]), np.array([-1.0, 2, 0, 0, 2])
    )
    np.testing.assert_array_equal(found, [4.5, 9, 0, 0, 0])


class Measured:
    """A tiny model's stores with all moments, and their statistics."""

    def __init__(self, folder: Path, model: Path, data: dict[str, Path]) -> None:
        self.model = model
        self.stores = {}
        for kind in ("retain", "forget"):
            store = self.stores[kind] = str(folder / f"{kind}.zarr")
            examples = read_examples(str(data[kind]))
            collect(prepare(str(model), examples, moments=MOMENTS, part_size=2), store)
        self.url = str(folder / "statistics.zarr")
        reduce([self.stores["retain"]], self.url, [self.stores["forget"]])
        self.stored = Statistics.open(Location(self.url))

    def parts(self, kind: str) -> Iterator:
        store = CollectStore.open(Location(self.stores[kind]))
        return (store.read_part(number) for number in range(store.plan.num_parts))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, llama, data) -> Measured:
    return Measured(tmp_path_factory.mktemp("shapes"), llama, data)


def plain_loop(measured: Measured, shape: str) -> list[float]:
    """S by Python's own numbers, from the sums of every record."""
    forget, retain = (list(measured.parts(kind)) for kind in ("forget", "retain"))
    tokens = sum(int(part.counts[:, 0].sum()) for part in retain)
    result = []
    for vector in range(measured.stored.sites[-1].vectors.stop):
        mean, square = (
            sum(float(row[vector]) for part in retain for row in part.sums[moment]) / tokens
            for moment in ("abs", "square")
        )
        total = 0.0
        for part in forget:
            for record, counts in enumerate(part.counts[:, 0].tolist()):
                signed, size = (
                    float(part.sums[moment][record, vector]) / counts
                    for moment in ("signed", "abs")
                )
                if size > mean and shape == "energy":
                    total += min(signed**2 / (square + 1e-12), LARGEST_ENERGY) ** 2
                elif size > mean:
                    a = math.log(size + 1e-12) - math.log(mean + 1e-12)
                    total += a * a * abs(signed) / size
        result.append(total)
    return result


@OURS
def test_s_is_that_of_a_plain_loop(measured: Measured, shape: str):
    found = Strength(0.1, LAYERS, shape=shape).exponent(measured.stored)
    assert found.any()
    np.testing.assert_allclose(found, plain_loop(measured, shape), rtol=1e-11)


def test_reduce_gives_the_bits_of_the_serial_specification(measured: Measured):
    widths = np.array([site.width for site in measured.stored.sites])
    expected = reduce_serial(measured.parts("retain"), measured.parts("forget"), widths)
    assert expected.keys() >= OF_FURTHER_MOMENTS
    for name, values in expected.items():
        np.testing.assert_array_equal(measured.stored.read(name), values, err_msg=name)


def test_they_are_kept_where_all_moments_are_and_the_paper_does_not_see_them(
    measured: Measured, artefacts: Artefacts
):
    other = Statistics.open(Location(artefacts.statistics))
    assert not OF_FURTHER_MOMENTS & other.attributes["sha256"].keys()
    plain = Strength(0.1, LAYERS, shape="paper").exponent(measured.stored)
    assert plain.tobytes() == measured.stored.exponent().tobytes()


def test_a_second_request_gives_the_bytes_of_both_at_once(measured: Measured, data, tmp_path):
    examples = read_examples(str(data["forget"]))
    halves = [str(tmp_path / f"{number}.zarr") for number in range(2)]
    for half, chosen in zip(halves, (examples[:2], examples[2:]), strict=True):
        collect(prepare(str(measured.model), chosen, moments=MOMENTS, part_size=2), half)
    retain, names = measured.stores["retain"], ("whole", "first", "second")
    whole, first, second = (tmp_path / f"{name}.zarr" for name in names)
    reduce([retain], str(whole), halves)
    reduce([retain], str(first), halves[:1])
    reduce([], str(second), halves[1:], after=str(first))
    assert tree_bytes(whole) == tree_bytes(second)


@OURS
def test_checkpoint_adapter_and_gates_agree_and_are_made_anew(
    measured: Measured, tmp_path: Path, shape: str
):
    strength = Strength(0.7, LAYERS, 0.5, 0.01, until=4, shape=shape)
    results = {kind: tmp_path / kind for kind in ("checkpoint", "adapter", "gates")}
    for kind, place in results.items():
        manifest = apply(measured.model, measured.url, place, strength, kind=kind)
        assert manifest["shape"] == shape
    log_gates = GatesFile.read(results["gates"]).log_gates
    vectors = read_vectors(results["adapter"])
    total = strength.exponent(measured.stored)
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (measured.model, results["checkpoint"])
    )
    for site in measured.stored.sites:
        expected = gates(total[site.vectors], strength.gamma)
        assert (expected < 0.999).any()
        np.testing.assert_allclose(np.exp(log_gates[site.path]), expected, rtol=1e-12)
        np.testing.assert_array_equal(vectors[site.path].ravel(), expected.astype(np.float32))
        scaled = (before[site.tensor].double() * torch.from_numpy(expected)).float()
        assert torch.equal(after[site.tensor], scaled)
    paths = [*map(str, results.values()), measured.url, *measured.stores.values()]
    report = audit(paths, base=measured.model, statistics=measured.url)
    assert report.passed, report.findings


@OURS
def test_in_place_takes_the_rows_one_by_one(measured: Measured, tmp_path: Path, shape: str):
    strength = Strength(0.7, LAYERS, shape=shape)
    apply(measured.model, measured.url, tmp_path / "w", strength, arithmetic="in-place")
    report = audit([str(tmp_path / "w")], base=measured.model, statistics=measured.url)
    assert report.passed, report.findings


@OURS
def test_what_it_needs_is_said(artefacts: Artefacts, tmp_path: Path, shape: str):
    for options, message in (
        (
            {"shape": shape, "accessor": "running"},
            f"{shape} is .* got accessor running; leave it at record",
        ),
        (
            {"shape": shape, "accessor": "mean"},
            f"{shape} is .* got accessor mean; leave it at record",
        ),
        ({"shape": "best"}, "shape must be one of paper, energy, coherent, got best"),
    ):
        with pytest.raises(OptionError, match=message):
            Strength(0.1, LAYERS, **options)
    strength = Strength(0.1, LAYERS, shape=shape)
    with pytest.raises(OptionError, match="collect both data sets with --moments abs,signed,sq"):
        apply(artefacts.model, artefacts.statistics, tmp_path / "w", strength)
