"""Weakened checkpoints: the right bytes changed, and no other."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kvwstream import weakening
from kvwstream.accessor import LayerRange, gates
from kvwstream.checkpoint import Checkpoint
from kvwstream.errors import ModelError, OptionError, PlanMismatchError, StorageError
from kvwstream.gates import gated
from kvwstream.models import inference, load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from tests.conftest import save_model, tree_bytes

ALL = LayerRange(0, 1)


class Case:
    """A checkpoint, its statistics and a weakened copy."""

    def __init__(self, model: Path, data: dict[str, Path], folder: Path, layers: LayerRange):
        self.model, self.out, self.layers = model, folder / "weakened", layers
        self.urls = {kind: str(folder / f"{kind}.zarr") for kind in ("plain", "forget")}
        for kind, url in self.urls.items():
            collect(prepare(str(model), read_examples(str(data[kind]))), url)
        self.stored = reduce([self.urls["plain"]], str(folder / "s.zarr"), [self.urls["forget"]])
        self.gamma = 0.3
        self.strength = Strength(self.gamma, layers)
        self.manifest = apply(model, self.stored.location.url, self.out, self.strength)


@pytest.fixture(scope="module", params=["llama", "gpt2", "sharded"])
def case(request, data, tmp_path_factory) -> Case:
    layers = LayerRange(1, 1) if request.param == "sharded" else ALL
    model = request.getfixturevalue(request.param)
    return Case(model, data, tmp_path_factory.mktemp("apply"), layers)


def headers(folder: Path) -> dict[str, bytes]:
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        result[path.name] = raw[: 8 + int.from_bytes(raw[:8], "little")]
    return result


def test_every_other_byte_is_unchanged(case: Case):
    base, made = tree_bytes(case.model), tree_bytes(case.out)
    assert made.keys() - base.keys() == {"kvwstream.json"}
    assert not base.keys() - made.keys()
    assert headers(case.model) == headers(case.out)
    weakened = {s.tensor for s in case.stored.sites if s.layer in case.layers}
    checkpoint = Checkpoint.open(case.model)
    for name, raw in base.items():
        allowed = np.zeros(len(raw), bool)
        for tensor_name, tensor in checkpoint.tensors.items():
            if tensor.shard == name and tensor_name in weakened:
                allowed[tensor.start : tensor.stop] = True
        changed = np.frombuffer(raw, np.uint8) != np.frombuffer(made[name], np.uint8)
        assert not (changed & ~allowed).any(), name
        assert changed.any() == allowed.any(), name


def test_scaled_weights_are_equation_6(case: Case):
    """v_i times exp(-gamma S_i): columns of a Linear, rows of a Conv1D."""
    before, after = (
        {k: v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}
        for folder in (case.model, case.out)
    )
    exponents = case.stored.exponent()
    for site in case.stored.sites:
        if site.layer not in case.layers:
            continue
        gate = torch.from_numpy(gates(exponents[site.vectors], case.gamma))
        weight = before[site.tensor]
        scaled = weight.double() * (gate[:, None] if site.axis == 0 else gate)
        # one rounding at most: half a unit in the last place of the dtype
        ulp = torch.finfo(weight.dtype).eps * scaled.abs() / 2
        assert ((after[site.tensor].double() - scaled).abs() <= ulp + 1e-300).all()
        assert (gate < 1).any()


def test_gates_on_coefficients_equal_scaled_weights(case: Case, data):
    base, weakened = load_model(case.model, "float32"), load_model(case.out, "float32")
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    values = np.ones(sum(site.width for site in case.stored.sites))
    for site in case.stored.sites:
        if site.layer in case.layers:
            values[site.vectors] = gates(case.stored.exponent()[site.vectors], case.gamma)
    with inference(base.model), inference(weakened.model):
        plain = base.model(input_ids=ids).logits
        with gated(base.model, case.stored.sites, values):
            gate = base.model(input_ids=ids).logits
        again = base.model(input_ids=ids).logits
        scaled = weakened.model(input_ids=ids).logits
    error, effect = (gate - scaled).abs().max(), (gate - plain).abs().max()
    assert error < effect * (0.2 if "sharded" in str(case.model) else 1e-3)  # bfloat16, float32
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_plain_transformers_loads_the_result(case: Case):
    model, info = AutoModelForCausalLM.from_pretrained(case.out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for path in case.out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_untouched_shards_are_hard_links(case: Case):
    touched = {
        Checkpoint.open(case.model).tensors[name].shard for name in case.manifest["weakened"]
    }
    shards = {path.name for path in case.model.glob("*.safetensors")}
    assert bool(shards - touched) == ("sharded" in str(case.model))
    for name in shards:
        same = (case.model / name).samefile(case.out / name)
        assert same == (name not in touched)


@pytest.mark.parametrize("shares", [True, False])
def test_where_blocks_are_shared_only_value_projections_are_written(
    case: Case, tmp_path, monkeypatch, shares
):
    """The copy in place of the file system's, which few file systems can make."""
    written, tensors = [], Checkpoint.open(case.model).tensors

    def cloned(source: Path, target: Path) -> bool:
        target.write_bytes(source.read_bytes() if shares else b"")
        return shares

    def count(file: int, block: bytes, place: int) -> None:
        written.append(len(block))
        write_at(file, block, place)

    write_at = weakening._write_at
    monkeypatch.setattr(weakening, "clone", cloned)
    monkeypatch.setattr(weakening, "_write_at", count)
    apply(case.model, case.stored.location.url, tmp_path / "w", case.strength)
    assert tree_bytes(tmp_path / "w") == tree_bytes(case.out)
    weakened = case.manifest["weakened"].keys()
    shards = {tensors[name].shard for name in weakened}
    names = weakened if shares else [n for n, t in tensors.items() if t.shard in shards]
    assert sum(written) == sum(tensors[name].stop - tensors[name].start for name in names)
    linked = [name for name in {t.shard for t in tensors.values()} if name not in shards]
    assert all((case.model / n).samefile(tmp_path / "w" / n) != shares for n in linked)


def test_an_error_of_the_disk_is_told_whenever_it_comes(case: Case, tmp_path, monkeypatch):
    """Flushing begins while tensors are computed; what fails then is not flushed again."""
    failed = []

    def fail_once(path: Path) -> None:
        if path.suffix == ".safetensors" and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(weakening, "fsync", fail_once)
    with pytest.raises(StorageError, match=r"cannot be written: .*Input/output error"):
        apply(case.model, case.stored.location.url, tmp_path / "w", case.strength)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_says_what_was_done(case: Case):
    manifest = json.loads((case.out / "kvwstream.json").read_text())
    assert manifest == case.manifest
    assert manifest["base"]["digest"] == Checkpoint.open(case.model).digest
    assert manifest["digest"] == Checkpoint.open(case.out).digest
    assert manifest["statistics"]["digest"] == case.stored.digest
    assert (manifest["gamma"], manifest["layers"]) == (case.gamma, str(case.layers))
    after = Checkpoint.open(case.out).tensor_digests
    for name, digests in manifest["weakened"].items():
        assert digests["after"] == after[name] != digests["before"]


def test_gamma_zero_changes_nothing_but_adds_the_manifest(case: Case, tmp_path):
    apply(case.model, case.stored.location.url, tmp_path / "w", Strength(0.0, case.layers))
    made = tree_bytes(tmp_path / "w")
    del made["kvwstream.json"]
    assert made == tree_bytes(case.model)


@pytest.mark.parametrize("arithmetic", ["exact", "in-place"])
def test_until_zero_is_the_base_byte_for_byte(case: Case, tmp_path, arithmetic):
    """The base checkpoint is the undo, and this proves it."""
    strength = Strength(0.3, case.layers, until=0)
    url = case.stored.location.url
    manifest = apply(case.model, url, tmp_path / "w", strength, arithmetic=arithmetic)
    made = tree_bytes(tmp_path / "w")
    del made["kvwstream.json"]
    assert made == tree_bytes(case.model)
    assert manifest["digest"] == manifest["base"]["digest"] == case.stored.model_digest
    assert (manifest["until"], manifest["num_forget_records"]) == (0, 0)


@pytest.mark.parametrize("shape", [{}, {"power": 2.0}, {"threshold": 0.2, "power": 0.5}])
@pytest.mark.parametrize("until", range(6))
def test_every_moment_is_a_plain_loop_stopped_there(case: Case, tmp_path, shape, until):
    """The forget records one after the other, from their stored A, in Python's own numbers."""
    strength = Strength(0.3, case.layers, until=until, **shape)
    apply(case.model, case.stored.location.url, tmp_path / "w", strength)
    rows = case.stored.read("accessor")
    before, after = (
        {k: v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}
        for folder in (case.model, tmp_path / "w")
    )
    for site in case.stored.sites:
        weight, made = before[site.tensor].double(), after[site.tensor].double()
        if site.layer not in case.layers:
            assert torch.equal(made, weight)
            continue
        for vector in range(site.width):
            total = 0.0
            for record in range(until):
                a = max(0.0, float(rows[record, site.offset + vector]) - strength.threshold)
                total += a**strength.power
            chosen = (slice(None), vector) if site.axis == 1 else vector
            expected = weight[chosen] * math.exp(-0.3 * total)
            half_ulp = torch.finfo(before[site.tensor].dtype).eps * expected.abs() / 2
            error = (made[chosen] - expected).abs()
            assert (error <= half_ulp * (1 + 1e-6) + 1e-300).all()


def test_every_shape_says_what_it_was_made_from(case: Case, tmp_path):
    strength = Strength(0.3, case.layers, 1.5, 0.1, "running", 3)
    url = case.stored.location.url
    said = [
        apply(case.model, url, tmp_path / kind, strength, kind=kind)
        for kind in ("checkpoint", "adapter", "gates")
    ]
    expected = {
        "manifest_version": 3,
        "base": {"name": case.model.name, "digest": Checkpoint.open(case.model).digest},
        "statistics": {"name": "s.zarr", "digest": case.stored.digest},
        "gamma": 0.3,
        "layers": str(case.layers),
        "power": 1.5,
        "threshold": 0.1,
        "accessor": "running",
        "until": 3,
        "schedule": "frozen",
        "arithmetic": "exact",
        "num_forget_records": 3,
        "environment": {
            name: metadata.version(name) for name in ("kvwstream", "numpy", "safetensors")
        },
    }
    for kind, manifest in zip(("checkpoint", "adapter", "gates"), said, strict=True):
        assert manifest["kind"] == kind
        assert {name: manifest[name] for name in expected} == expected
    for kind in ("checkpoint", "adapter"):
        assert json.loads((tmp_path / kind / "kvwstream.json").read_text()) in said


def test_the_three_shapes_hold_the_same_gates(case: Case, tmp_path):
    url = case.stored.location.url
    for kind in ("adapter", "gates"):
        apply(case.model, url, tmp_path / kind, case.strength, kind=kind)
    log_gates = load_file(tmp_path / "gates")
    vectors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    total = case.stored.exponent()
    sites = [site for site in case.stored.sites if site.layer in case.layers]
    assert len(log_gates) == len(vectors) == len(sites) == len(case.manifest["weakened"])
    for site in sites:
        gate = torch.from_numpy(gates(total[site.vectors], case.gamma))
        assert torch.equal(
            log_gates[site.path], torch.from_numpy(-case.gamma * total[site.vectors])
        )
        vector = vectors[f"base_model.model.{site.path}.ia3_l"]
        assert torch.equal(vector, gate.to(torch.float32)[None])


@pytest.mark.parametrize("kind", ["adapter", "gates"])
def test_shapes_of_another_base_are_refused_and_leave_nothing(case: Case, kind, tmp_path):
    other = save_model(tmp_path / "other", load_model(case.model).model.config, seed=3, chat=False)
    url = case.stored.location.url
    table = [
        (other, {}, PlanMismatchError, "measured on weights"),
        (case.model, {"until": 6}, OptionError, "until 6: the statistics hold 5"),
        (case.model, {"layers": LayerRange(0, 9)}, OptionError, "the model has layers"),
    ]
    for model, options, error, message in table:
        strength = dataclasses.replace(case.strength, **options)
        with pytest.raises(error, match=message):
            apply(model, url, tmp_path / "w", strength, kind=kind)
        assert [path.name for path in tmp_path.iterdir()] == ["other"]
    with pytest.raises(OptionError, match="one of checkpoint, adapter, gates, got patch"):
        apply(case.model, url, tmp_path / "w", case.strength, kind="patch")


def test_the_same_call_gives_the_same_bytes(case: Case, tmp_path):
    apply(case.model, case.stored.location.url, tmp_path / "w", case.strength)
    assert tree_bytes(tmp_path / "w") == tree_bytes(case.out)


def test_refusals_leave_nothing_behind(case: Case, tmp_path):
    other = save_model(tmp_path / "other", load_model(case.model).model.config, seed=3, chat=False)
    url = case.stored.location.url
    table = [
        (case.model, case.out, 0.1, ALL, StorageError, "exists already"),
        (other, tmp_path / "w", 0.1, case.layers, PlanMismatchError, "measured on weights"),
        (case.model, tmp_path / "w", 0.1, LayerRange(0, 9), OptionError, "the model has layers"),
    ]
    for model, out, gamma, layers, kind, message in table:
        before = tree_bytes(case.out)
        with pytest.raises(kind, match=message):
            apply(model, url, out, Strength(gamma, layers))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]
        assert tree_bytes(case.out) == before


def copy_of(model: Path, folder: Path) -> Path:
    return shutil.copytree(model, folder)


def test_other_formats_of_the_weights_are_not_shipped(llama, data, tmp_path):
    """A pickled twin beside the safetensors would still hold what was to be forgotten."""
    model = copy_of(llama, tmp_path / "model")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "notes").mkdir()
    (model / "notes" / "README.md").write_text("hello")
    case = Case(model, data, tmp_path, ALL)
    assert not (case.out / "pytorch_model.bin").exists()
    assert (case.out / "notes" / "README.md").read_text() == "hello"


def test_damaged_checkpoints_are_refused(sharded, llama, tmp_path):
    def cut(folder: Path) -> None:
        path = sorted(folder.glob("*.safetensors"))[0]
        path.write_bytes(path.read_bytes()[:-1])

    def rename(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        path.write_text(path.read_text().replace("layers.0.mlp.up", "layers.0.mlp.upp"))

    def drop(folder: Path) -> None:
        sorted(folder.glob("*.safetensors"))[1].unlink()

    def garble(folder: Path) -> None:
        sorted(folder.glob("*.safetensors"))[0].write_bytes(b"\xff" * 64)

    def pickled(folder: Path) -> None:
        for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")

    table = [
        (cut, "truncated, .* ends beyond the file"),
        (rename, "the shards do not match model.safetensors.index.json: 2 tensors"),
        (drop, "shards named by .* are missing"),
        (garble, "not a safetensors file"),
        (pickled, "holds pickled weights only"),
    ]
    for number, (damage, message) in enumerate(table):
        folder = copy_of(sharded, tmp_path / str(number))
        damage(folder)
        with pytest.raises(ModelError, match=message):
            Checkpoint.open(folder)


def test_statistics_alone_name_the_tensors(case: Case):
    """Apply builds no model: the sites stored beside the statistics are all it needs."""
    stored = Statistics.open(Location(case.stored.location.url))
    names = Checkpoint.open(case.model).tensors
    assert all(site.tensor in names for site in stored.sites)


def test_an_index_that_points_outside_is_refused(sharded, tmp_path):
    """Its shards would be written where they are read: over the base."""
    folder = copy_of(sharded, tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    shard = sorted(folder.glob("*.safetensors"))[0]
    outside = tmp_path / "elsewhere" / shard.name
    shard.rename(outside)
    index = folder / "model.safetensors.index.json"
    for name in (str(outside), f"../elsewhere/{shard.name}"):
        index.write_text((sharded / index.name).read_text().replace(shard.name, name))
        with pytest.raises(ModelError, match="names a shard outside the folder"):
            Checkpoint.open(folder)


def test_a_second_set_of_weights_is_neither_shipped_nor_ambiguous(llama, sharded, data, tmp_path):
    model = copy_of(llama, tmp_path / "model")
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    case = Case(model, data, tmp_path, ALL)
    assert not (case.out / "consolidated.safetensors").exists()
    both = copy_of(sharded, tmp_path / "both")
    shutil.copy(llama / "model.safetensors", both / "model.safetensors")
    with pytest.raises(ModelError, match=r"holds both model.safetensors and .*index.json"):
        Checkpoint.open(both)


def test_a_place_inside_the_base_is_refused(case: Case):
    before = tree_bytes(case.model)
    with pytest.raises(StorageError, match=r"lies in .*, which is read"):
        apply(case.model, case.stored.location.url, case.model / "w", case.strength)
    assert tree_bytes(case.model) == before


def test_a_missing_weight_is_refused_before_random_numbers_are_measured(llama, tmp_path):
    model = copy_of(llama, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .*layers.0.self_attn.q_proj"):
        load_model(model)
