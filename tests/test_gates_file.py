"""Gates as one file: what is in it, and that they come off a model as they went on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save
from torch import nn

import kvwstream
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.errors import DamageError, ModelError
from kvwstream.gates import gated
from kvwstream.models import inference, load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples
from kvwstream.strength import Strength
from tests.conftest import llama_config, save_model
from tests.faults import flip, truncate

STRENGTH = Strength(3.0, LayerRange(1, 1))


class Case:
    """A base, its statistics, and a gates file and a checkpoint of one strength."""

    def __init__(self, model: Path, data: dict[str, Path], folder: Path) -> None:
        self.model, self.file = model, folder / "gates.safetensors"
        stores = {kind: str(folder / f"{kind}.zarr") for kind in ("plain", "forget")}
        for kind, store in stores.items():
            collect(prepare(str(model), read_examples(str(data[kind]))), store)
        self.stored = reduce([stores["plain"]], str(folder / "s.zarr"), [stores["forget"]])
        url = self.stored.location.url
        self.manifest = apply(model, url, self.file, STRENGTH, kind="gates")
        self.checkpoint = folder / "checkpoint"
        apply(model, url, self.checkpoint, STRENGTH)
        self.ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))

    def logits(self, model: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=self.ids).logits

    def values(self) -> np.ndarray:
        total = STRENGTH.exponent(self.stored)
        return vector_gates(self.stored.sites, total, STRENGTH.gamma, STRENGTH.layers)


@pytest.fixture(scope="module", params=["llama", "gpt2", "sharded"])
def case(request, data, tmp_path_factory) -> Case:
    model = request.getfixturevalue(request.param)
    return Case(model, data, tmp_path_factory.mktemp("gates"))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_the_file_holds_minus_gamma_s_of_the_layers(case: Case):
    rows = case.stored.read("accessor")
    tensors = load_file(case.file)
    sites = [site for site in case.stored.sites if site.layer == 1]
    assert tensors.keys() == {site.path for site in sites}
    for site in sites:
        expected = [
            0.0 - 3.0 * sum((float(a) for a in rows[:, vector]), start=0.0)
            for vector in range(site.offset, site.offset + site.width)
        ]
        found = tensors[site.path]
        assert (found.dtype, found.shape) == (np.float64, (site.width,))
        assert found.tolist() == expected
        assert not np.signbit(found[found == 0]).any()
    with safe_open(case.file, "np") as file:
        manifest = json.loads(file.metadata()["kvwstream.json"])
    assert manifest == case.manifest
    assert manifest["kind"] == "gates"
    assert manifest["base"]["digest"] == case.stored.model_digest
    assert manifest["statistics"]["digest"] == case.stored.digest


def test_attached_the_model_is_weakened_and_then_as_before(case: Case):
    model = load_model(case.model).model
    plain = case.logits(model)
    with kvwstream.attach_gates(model, case.file):
        weakened = case.logits(model)
        assert hooks(model) == 1
    assert hooks(model) == 0
    assert torch.equal(case.logits(model), plain)
    expected = case.logits(load_model(case.checkpoint).model)
    effect = (plain - expected).abs().max().item()
    single = model.dtype == torch.float32
    assert effect > 0.002
    assert (weakened - expected).abs().max() < effect * (1e-3 if single else 0.3)


def test_its_rounding_is_that_of_gates_from_statistics(case: Case):
    model = load_model(case.model).model
    with gated(model, case.stored.sites, case.values()):
        expected = case.logits(model)
    with kvwstream.attach_gates(model, str(case.file)):
        assert torch.equal(case.logits(model), expected)


def test_an_exception_takes_them_off_too(case: Case):
    model = load_model(case.model).model
    plain, state = case.logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(KeyError, match="stop"), kvwstream.attach_gates(model, case.file):
        case.logits(model)
        raise KeyError("stop")
    assert hooks(model) == 0
    assert torch.equal(case.logits(model), plain)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_two_files_multiply_and_come_off_in_any_order(case: Case):
    model = load_model(case.model, "float32").model
    values = case.values()
    with gated(model, case.stored.sites, values * values):
        expected = case.logits(model)
    one = kvwstream.attach_gates(model, case.file)
    two = kvwstream.attach_gates(model, case.file)
    with one:
        two.__enter__()
        twice = case.logits(model)
    two.__exit__(None, None, None)
    torch.testing.assert_close(twice, expected, rtol=1e-5, atol=1e-5)
    assert hooks(model) == 0


def test_any_module_with_the_paths_will_do(case: Case):
    """No transformers class is asked for: a bare tree of torch modules with those names."""

    class Tree(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.get_submodule(site.path)(x)

    site = next(site for site in case.stored.sites if site.layer == 1)
    model = Tree()
    *parents, last = site.path.split(".")
    at = model
    for name in parents:
        at.add_module(name, nn.Module())
        at = at.get_submodule(name)
    at.add_module(last, nn.Linear(site.width, 3, bias=False))
    x = torch.eye(site.width)
    plain = model(x)
    with kvwstream.attach_gates(model, case.file):
        weakened = model(x)
    exponents = STRENGTH.exponent(case.stored)[site.vectors]
    gates = torch.tensor([math.exp(-3.0 * s) for s in exponents], dtype=torch.float32)
    torch.testing.assert_close(weakened, plain * gates[:, None], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        (
            llama_config(intermediate_size=64),
            r"1 of 1 sites do not fit LlamaForCausalLM.*"
            r"model\.layers\.1\.mlp\.down_proj: 64 channels, expected 48",
        ),
        (llama_config(layers=1), r"model\.layers\.1\.mlp\.down_proj: no such module"),
    ],
)
def test_a_model_whose_sites_do_not_fit_is_refused_by_name(llama, data, tmp_path, config, finding):
    case = Case(llama, data, tmp_path)
    model = load_model(save_model(tmp_path / "other", config)).model
    refused = pytest.raises(ModelError, match=f"(?s){finding}")
    with refused, kvwstream.attach_gates(model, case.file):
        pytest.fail("it was let in")
    assert hooks(model) == 0


def test_a_module_that_is_no_linear_map_is_refused(llama, data, tmp_path):
    case = Case(llama, data, tmp_path)
    model = load_model(llama).model
    model.model.layers[1].mlp.down_proj = nn.Dropout()
    refused = pytest.raises(ModelError, match="down_proj: Dropout is no linear map")
    with refused, kvwstream.attach_gates(model, case.file):
        pytest.fail("it was let in")


def test_a_file_that_is_not_as_written_is_refused(case: Case, tmp_path):
    model = load_model(case.model).model

    def forge(path: Path) -> None:
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        name = next(iter(tensors))
        tensors[name] = tensors[name] * 0.5
        path.write_bytes(save(tensors, metadata))

    def foreign(path: Path) -> None:
        path.write_bytes(save({"x": np.zeros(2)}, {"format": "pt"}))

    table = [
        (lambda path: flip(path, at=1), "gates of .*: changed"),
        (forge, "gates of .*: changed"),
        (lambda path: truncate(path, 0.9), "not a whole safetensors file"),
        (foreign, "holds no gates that `kvwstream apply --as gates` wrote"),
        (lambda path: path.unlink(), "No such file"),
    ]
    for number, (damage, message) in enumerate(table):
        path = tmp_path / str(number)
        path.write_bytes(case.file.read_bytes())
        damage(path)
        refused = pytest.raises(DamageError, match=message)
        with refused, kvwstream.attach_gates(model, path):
            pytest.fail("it was let in")


def test_it_is_written_whole_or_not_at_all(case: Case, tmp_path):
    url = case.stored.location.url
    apply(case.model, url, tmp_path / "deep" / "g", STRENGTH, kind="gates")
    assert (tmp_path / "deep" / "g").read_bytes() == case.file.read_bytes()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["g"]
    with pytest.raises(kvwstream.KvwstreamError, match="exists already"):
        apply(case.model, url, tmp_path / "deep" / "g", STRENGTH, kind="gates")
    # what an earlier, killed run left beside it is in nobody's way
    (tmp_path / ".g.partial").mkdir()
    apply(case.model, url, tmp_path / "g", STRENGTH, kind="gates")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "g"]


def test_a_model_in_training_mode_stays_there(case: Case):
    model = load_model(case.model).model.train()
    with kvwstream.attach_gates(model, case.file), inference(model):
        case.logits(model)
    assert model.training
