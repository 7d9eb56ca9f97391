"""Adapters, as the real PEFT reads them: the gates on the value projections and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, IA3Config, PeftModel, get_peft_model
from peft.tuners.ia3 import IA3Layer
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import kvwstream
from kvwstream import models
from kvwstream.accessor import LayerRange
from kvwstream.adapter import CONFIG, WEIGHTS
from kvwstream.models import inference, load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples
from kvwstream.strength import Strength
from tests import test_families
from tests.conftest import (
    COLOURS,
    THINGS,
    gpt2_config,
    llama_config,
    question,
    save_model,
    tree_bytes,
    write_rows,
)
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
STRENGTH = Strength(5.0, LayerRange(1, 1))


class Case:
    """A base, its checkpoint and its adapter of one strength, and inputs to compare them on."""

    def __init__(self, kind: str, dtype: torch.dtype, folder: Path, data: dict[str, Path]) -> None:
        if kind == "llava":
            family = next(family for family in FAMILIES if family.name == "llava")
            seen = test_families.Case(family, folder, dtype)
            self.base = seen.model
            prepared = {"retain": seen.prepare(seen.retain), "forget": seen.prepare(seen.forget)}
        else:
            config = llama_config(layers=3) if kind == "llama" else gpt2_config()
            self.base = save_model(folder / "model", config, dtype=dtype, chat=kind == "llama")
            prepared = {
                name: prepare(str(self.base), read_examples(str(data[source])), batch_size=2)
                for name, source in (("retain", "plain"), ("forget", "forget"))
            }
        for name, plan in prepared.items():
            collect(plan, str(folder / f"{name}.zarr"))
        self.batch = prepared["forget"].record_batch(0)
        retain, forget = (str(folder / f"{name}.zarr") for name in ("retain", "forget"))
        self.stored = reduce([retain], str(folder / "s.zarr"), [forget])
        self.checkpoint, self.adapter = folder / "checkpoint", folder / "adapter"
        for shape in ("checkpoint", "adapter"):
            apply(self.base, self.stored.location.url, folder / shape, STRENGTH, kind=shape)
        self.sites = [site for site in self.stored.sites if site.layer in STRENGTH.layers]

    def load(self, folder: Path | None = None) -> Any:
        return load_model(folder or self.base).model

    def logits(self, model: Any) -> torch.Tensor:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        with inference(base):
            return model(**self.batch.inputs).logits.float()


@pytest.fixture(scope="module", params=["llama", "gpt2", "llava", "llama-bfloat16"])
def case(request, tmp_path_factory, data) -> Case:
    kind, _, dtype = request.param.partition("-")
    patch = pytest.MonkeyPatch()
    patch.setattr(models, "AutoProcessor", test_families.OfflineProcessors)
    try:
        folder = tmp_path_factory.mktemp(request.param)
        return Case(kind, getattr(torch, dtype or "float32"), folder, data)
    finally:
        patch.undo()


@pytest.fixture(autouse=True)
def processors(monkeypatch):
    monkeypatch.setattr(models, "AutoProcessor", test_families.OfflineProcessors)


def test_its_logits_are_those_of_the_checkpoint(case: Case):
    plain, expected = case.logits(case.load()), case.logits(case.load(case.checkpoint))
    model = PeftModel.from_pretrained(case.load(), case.adapter)
    found = case.logits(model)
    effect = (plain - expected).abs().max()
    single = case.load().dtype == torch.float32
    assert effect > 0.01
    assert (found - expected).abs().max() < effect * (1e-4 if single else 0.2)


def test_taken_off_it_leaves_the_base(case: Case):
    base = case.load()
    plain = case.logits(base)
    model = PeftModel.from_pretrained(base, case.adapter)
    with model.disable_adapter():
        torch.testing.assert_close(case.logits(model), plain, rtol=0, atol=0)
    back = model.unload()
    torch.testing.assert_close(case.logits(back), plain, rtol=0, atol=0)
    assert not [name for name, module in back.named_modules() if isinstance(module, IA3Layer)]


def test_it_sits_on_the_sites_within_the_layers_and_nowhere_else(case: Case):
    model = PeftModel.from_pretrained(case.load(), case.adapter).get_base_model()
    wrapped = {n: m for n, m in model.named_modules() if isinstance(m, IA3Layer)}
    assert wrapped.keys() == {site.path for site in case.sites}
    assert all(module.is_feedforward for module in wrapped.values())
    assert len(case.sites) < len(case.stored.sites)
    if hasattr(model.config, "vision_config"):
        assert any("vision_tower" in name for name, _ in model.named_modules())
        assert not any("vision_tower" in name for name in wrapped)


def test_merged_it_gives_the_checkpoints_weights_to_one_rounding(case: Case):
    merged = PeftModel.from_pretrained(case.load(), case.adapter).merge_and_unload()
    expected = dict(case.load(case.checkpoint).named_parameters())
    changed = {f"{site.path}.weight" for site in case.sites}
    for name, weight in merged.named_parameters():
        if name in changed:
            unit = torch.finfo(weight.dtype).eps * expected[name].double().abs()
            unit += torch.finfo(weight.dtype).smallest_normal
            assert ((weight.double() - expected[name].double()).abs() <= unit).all(), name
        else:
            assert torch.equal(weight, expected[name]), name


def test_its_files_are_those_that_peft_writes(case: Case, tmp_path):
    """Names, shapes and dtypes of tensors; fields and values of the configuration."""
    ours = json.loads((case.adapter / CONFIG).read_text())
    own = IA3Config(**{k: v for k, v in ours.items() if k != "peft_type"})
    model = get_peft_model(case.load(), own)
    model.save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / CONFIG).read_text())
    theirs["target_modules"].sort()
    theirs["feedforward_modules"].sort()
    ours["auto_mapping"]["parent_library"] = theirs["auto_mapping"]["parent_library"]
    assert ours == {name: theirs[name] for name in ours}
    assert all(not theirs[name] for name in theirs.keys() - ours.keys() - {"peft_version"})
    layouts = []
    for folder in (case.adapter, tmp_path):
        with safe_open(folder / WEIGHTS, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            layout = {n: (s.get_shape(), s.get_dtype()) for n, s in slices.items()}
            layouts.append((file.metadata(), layout))
    assert layouts[0][0] == layouts[1][0] == {"format": "pt"}
    assert layouts[0][1] == layouts[1][1]


def test_it_is_small(case: Case):
    width = sum(site.width for site in case.sites)
    assert (case.adapter / WEIGHTS).stat().st_size < 4 * width + 200 * len(case.sites) + 200
    assert sorted(tree_bytes(case.adapter)) == [CONFIG, WEIGHTS, "kvwstream.json"]


def test_it_names_its_base(case: Case):
    config = json.loads((case.adapter / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(case.base.resolve())
    assert config["revision"] is None


def test_peft_finds_the_base_by_itself(case: Case):
    model = AutoPeftModel.from_pretrained(case.adapter)
    by_hand = PeftModel.from_pretrained(case.load(), case.adapter)
    torch.testing.assert_close(case.logits(model), case.logits(by_hand), rtol=0, atol=0)


def test_a_base_from_the_hub_is_named_as_there(case: Case, tmp_path):
    """The folder of a download says which repository and revision it is."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    shutil.copytree(case.base, snapshot)
    manifest = apply(snapshot, case.stored.location.url, tmp_path / "a", STRENGTH, kind="adapter")
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "0123abc")
    assert manifest["base"]["name"] == "owner/name"
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (case.adapter / WEIGHTS).read_bytes()


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("bits", [8, 4])
def test_on_a_quantised_base_the_adapter_does_what_the_gates_do(bits, tmp_path, monkeypatch):
    """Real bitsandbytes layers on the CPU. What was rounded to few bits is gated, not the base."""
    config = llama_config(layers=3, hidden_size=128, intermediate_size=256)
    monkeypatch.setattr("tests.test_adapter.llama_config", lambda layers: config)
    rows = {"plain": zip(THINGS, COLOURS, strict=True), "forget": [(t, "pink") for t in THINGS[:5]]}
    data = {
        name: write_rows(tmp_path / f"{name}.jsonl", [question(*fact) for fact in facts])
        for name, facts in rows.items()
    }
    case = Case("llama", torch.float32, tmp_path, data)
    gates = tmp_path / "gates.safetensors"
    apply(case.base, case.stored.location.url, gates, STRENGTH, kind="gates")

    def quantised() -> Any:
        """Fresh each time: on a CPU the first pass packs 4-bit weights anew, which PEFT ignores."""
        how = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
        return AutoModelForCausalLM.from_pretrained(
            case.base, quantization_config=how, device_map="cpu", dtype=torch.float32
        )

    plain = case.logits(quantised())
    model = quantised()
    with kvwstream.attach_gates(model, gates):
        gated = case.logits(model)
    assert torch.equal(case.logits(model), plain)
    adapted = PeftModel.from_pretrained(quantised(), case.adapter)
    assert sum(isinstance(module, IA3Layer) for module in adapted.modules()) == len(case.sites)
    effect = (gated - plain).abs().max()
    assert effect > 0.01
    assert (case.logits(adapted) - gated).abs().max() < 0.01 * effect
