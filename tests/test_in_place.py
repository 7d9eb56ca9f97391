"""The in-place arithmetic: weights multiplied record after record in their own dtype.

The reference is torch's `mul_` on the whole weight; nothing of the package takes part in it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from kvwstream.accessor import LayerRange
from kvwstream.checkpoint import Checkpoint, Tensor
from kvwstream.errors import OptionError
from kvwstream.pipelines import recipe
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples
from kvwstream.rounding import encode, scale, scale_in_place
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import ACCESSORS, Strength
from kvwstream.weakening import InPlace
from tests.conftest import gpt2_config, llama_config, save_model, tree_bytes

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ALGORITHM = Path(__file__).parent.parent / "docs" / "algorithm.md"
ALL = LayerRange(0, 1)


class Case:
    """A model in a dtype and its statistics."""

    def __init__(self, config, dtype: torch.dtype, data: dict[str, Path], folder: Path) -> None:
        chat = config.model_type == "llama"
        self.model = save_model(folder / "model", config, dtype=dtype, chat=chat)
        stores = {kind: str(folder / f"{kind}.zarr") for kind in ("plain", "forget")}
        for kind, store in stores.items():
            collect(prepare(str(self.model), read_examples(str(data[kind]))), store)
        self.stored: Statistics = reduce(
            [stores["plain"]], str(folder / "s.zarr"), [stores["forget"]]
        )
        self.url = self.stored.location.url

    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        return {n: t for p in folder.glob("*.safetensors") for n, t in load_file(p).items()}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def config(request):
    """Columns of a Linear, rows of a Conv1D."""
    return llama_config() if request.param == "llama" else gpt2_config()


@pytest.fixture(scope="module", params=DTYPES)
def case(request, config, data, tmp_path_factory) -> Case:
    return Case(config, DTYPES[request.param], data, tmp_path_factory.mktemp("in-place"))


def torch_loop(case: Case, gamma: float, until: int, layers: LayerRange = ALL):
    """The weight of every site after the first `until` records, by `mul_` alone."""
    rows = case.stored.read("accessor")
    weights = {name: w.clone() for name, w in case.weights(case.model).items()}
    for site in case.stored.sites:
        if site.layer in layers:
            for record in range(until):
                row = rows[record, site.offset : site.offset + site.width]
                gate = torch.tensor([math.exp(-gamma * a) for a in row], dtype=torch.float64)
                gate = gate.to(weights[site.tensor].dtype)
                weights[site.tensor].mul_(gate[:, None] if site.axis == 0 else gate)
    return weights


@pytest.mark.parametrize("until", range(6))
def test_every_moment_is_that_of_a_torch_loop_to_the_bit(case: Case, until, tmp_path):
    strength = Strength(0.3, ALL, until=until)
    apply(case.model, case.url, tmp_path / "w", strength, arithmetic="in-place")
    made, expected = case.weights(tmp_path / "w"), torch_loop(case, 0.3, until)
    changed = 0
    for name, weight in expected.items():
        assert torch.equal(made[name].view(torch.uint8), weight.view(torch.uint8)), name
        changed += not torch.equal(weight, case.weights(case.model)[name])
    assert changed == (len(case.stored.sites) if until else 0)


def test_layers_outside_the_range_keep_their_bits(case: Case, tmp_path):
    strength = Strength(0.3, LayerRange(1, 1))
    apply(case.model, case.url, tmp_path / "w", strength, arithmetic="in-place")
    expected = torch_loop(case, 0.3, 5, strength.layers)
    made = case.weights(tmp_path / "w")
    assert all(torch.equal(made[name], weight) for name, weight in expected.items())


def test_it_differs_from_the_exact_arithmetic_by_its_roundings_alone(case: Case, tmp_path):
    strength = Strength(0.3, ALL)
    for arithmetic in ("exact", "in-place"):
        apply(case.model, case.url, tmp_path / arithmetic, strength, arithmetic=arithmetic)
    exact, in_place = (case.weights(tmp_path / a) for a in ("exact", "in-place"))
    for site in case.stored.sites:
        one, two = exact[site.tensor], in_place[site.tensor]
        # per record: the gate is off by half a unit in the last place, the product by another half
        eps = torch.finfo(one.dtype).eps
        bound = 5 * 1.1 * eps * one.double().abs() + 10 * torch.finfo(one.dtype).smallest_normal
        assert ((one.double() - two.double()).abs() <= bound).all()
        assert not torch.equal(one, two)


def test_batches_of_sites_give_the_same_bytes(case: Case, tmp_path, monkeypatch):
    """As with a model whose gates do not fit into the memory set aside for them."""
    strength = Strength(0.3, ALL, 1.5, 0.1)
    apply(case.model, case.url, tmp_path / "one", strength, arithmetic="in-place")
    monkeypatch.setattr(recipe, "BUDGET", 1)
    apply(case.model, case.url, tmp_path / "two", strength, arithmetic="in-place")
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")
    given = recipe.Recipe(case.stored, strength, "in-place")
    assert [len(b) for b in given.scalings(Checkpoint.open(case.model))] == [1, 1]


@pytest.mark.parametrize("rule", ACCESSORS)
def test_it_is_audited_like_any_other(case: Case, rule, tmp_path):
    strength = Strength(0.3, ALL, 2.0, 0.05, rule, until=4)
    out = tmp_path / "w"
    manifest = apply(case.model, case.url, out, strength, arithmetic="in-place")
    assert (manifest["arithmetic"], manifest["num_forget_records"]) == ("in-place", 4)
    found = audit([str(out)], base=case.model, statistics=case.url)
    assert (found.findings, found.notes) == ([], [])
    assert any("2 weakened tensors made anew, bit for bit" in line for line in found.verified)


def test_gates_alone_cannot_tell_it(case: Case, tmp_path):
    for kind in ("adapter", "gates"):
        with pytest.raises(OptionError, match="what it does depends on each weight"):
            apply(
                case.model, case.url, tmp_path / "w", Strength(0.3, ALL), kind=kind,
                arithmetic="in-place",
            )  # fmt: skip
    with pytest.raises(OptionError, match="arithmetic must be one of exact, in-place, got fast"):
        apply(case.model, case.url, tmp_path / "w", Strength(0.3, ALL), arithmetic="fast")
    assert not list(tmp_path.iterdir())


# The multiplication itself

patterns = st.lists(st.integers(0, 0xFFFF), min_size=6, max_size=6)


def torch_steps(weight: torch.Tensor, gates: torch.Tensor, axis: int) -> torch.Tensor:
    weight = weight.clone()
    for gate in gates:
        weight.mul_(gate[:, None] if axis == 0 else gate)
    return weight


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@given(values=patterns, gates=st.lists(patterns, max_size=3), axis=st.sampled_from([0, 1]))
def test_any_bits_multiply_as_in_torch(dtype, values, gates, axis):
    """Zeros, subnormals and infinities of both signs too; NaN stays NaN."""
    weight = torch.tensor(values, dtype=torch.uint16).view(DTYPES[dtype]).reshape(2, 3)
    span = 6 // 3 if axis == 0 else 3
    steps = torch.tensor(gates, dtype=torch.uint16).reshape(-1, 6)[:, :span].contiguous()
    steps = (steps & 0x7FFF).view(DTYPES[dtype])
    steps = torch.nan_to_num(steps).clamp(0, 1)  # a gate lies between 0 and 1
    raw = weight.view(torch.uint8).numpy().tobytes()
    pattern = steps.view(torch.uint16).numpy()
    own = pattern if dtype == "BF16" else pattern.view("<f2")
    made = scale_in_place(raw, dtype, 3, axis, own, first_row=0)
    expected = torch_steps(weight, steps, axis)
    got = torch.frombuffer(bytearray(made), dtype=DTYPES[dtype]).reshape(2, 3)
    assert torch.equal(got.isnan(), expected.isnan())
    same = (got.view(torch.int16) == expected.view(torch.int16)) | expected.isnan()
    assert same.all()
    assert ((got.abs() <= weight.abs()) | expected.isnan()).all(), "no record strengthens"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_and_blocks_do_not_show(dtype, axis, rng):
    """More rows and columns than a tile holds, in one block or in two."""
    weight = torch.from_numpy(rng.normal(size=(150, 1100))).to(DTYPES[dtype])
    gates = np.exp(-rng.random((7, weight.shape[axis])))
    own = np.stack([encode(row, dtype) for row in gates])
    steps = torch.from_numpy(gates).to(torch.float32 if dtype == "F32" else torch.float64)
    expected = torch_steps(weight, steps.to(DTYPES[dtype]), axis)
    raw = weight.view(torch.uint8).numpy().tobytes()
    row = len(raw) // 150
    blocks = [
        scale_in_place(raw[a * row : b * row], dtype, 1100, axis, own, first_row=a)
        for a, b in ((0, 71), (71, 150))
    ]
    assert b"".join(blocks) == expected.view(torch.uint8).numpy().tobytes()


def test_no_records_leave_every_bit():
    """Those of signalling NaN too."""
    raw = np.arange(0x10000, dtype="<u2").tobytes()
    for dtype in ("F16", "BF16"):
        none = np.empty((0, 256), encode(np.empty(0), dtype).dtype)
        assert scale_in_place(raw, dtype, 256, 1, none, first_row=0) == raw


# The dead zone of bfloat16

STEPS, GAMMA = 188, 0.02
"""As in the authors' code on CLEAR forget05."""
LIMIT = -math.log1p(-(2.0**-9)) / GAMMA
"""Below it a gate rounds to 1: 0.0977."""


def factor(a: float, dtype: str, arithmetic: str) -> float:
    """Norm after 188 records with the same A, over the norm before, of a normal random weight."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(64, 512, generator=generator) * 0.02).to(DTYPES[dtype])
    raw = weight.view(torch.uint8).numpy().tobytes()
    if arithmetic == "exact":
        gate = np.full(512, math.exp(-GAMMA * a * STEPS))
        made = scale(raw, dtype, 512, 1, gate, first_row=0)
    else:
        gates = np.repeat(encode(np.full((1, 512), math.exp(-GAMMA * a)), dtype), STEPS, axis=0)
        tensor = Tensor("", dtype, (64, 512), 0, len(raw))
        made = InPlace(1, gates).scaled(raw, tensor, 0, memoryview(bytearray(len(raw))))
    after = torch.frombuffer(bytearray(made), dtype=DTYPES[dtype]).double()
    return float(after.norm() / weight.double().norm())


def test_the_dead_zone_of_bfloat16():
    """Just below the limit nothing changes, however often; just above, every step doubles."""
    assert abs(LIMIT - 0.0977) < 1e-4
    below, above = LIMIT - 1e-4, LIMIT + 1e-4
    assert factor(below, "BF16", "in-place") == 1.0
    assert abs(factor(below, "BF16", "exact") - math.exp(-GAMMA * below * STEPS)) < 1e-3
    assert factor(above, "BF16", "in-place") < 0.6 * factor(above, "BF16", "exact")
    # float16: from 0.0122 on
    narrow = -math.log1p(-(2.0**-12)) / GAMMA
    assert abs(narrow - 0.0122) < 1e-4
    assert (
        factor(narrow - 1e-4, "F16", "in-place") == 1.0 > factor(narrow + 1e-4, "F16", "in-place")
    )
    one = encode(np.array([math.exp(-GAMMA * below), math.exp(-GAMMA * above)]), "BF16")
    assert one.tolist() == [0x3F80, 0x3F7F]


def table() -> list[str]:
    """Rows of the table in docs/algorithm.md."""
    rows = []
    for a in (0.02, 0.05, 0.09, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0):
        values = [factor(a, "BF16", "exact")]
        values += [factor(a, dtype, "in-place") for dtype in ("BF16", "F16", "F32")]
        rows.append(f"| {a} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return rows


def test_the_table_of_the_documentation_is_measured_here():
    text = ALGORITHM.read_text()
    rows = table()
    assert all(row in text for row in rows), "\n".join(rows)
