"""Sums behind a shared prefix are those of each record alone, and a model that lies is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MistralConfig

from kvwstream import pixels, prefix_cache
from kvwstream.collector import record_sums
from kvwstream.errors import ModelError, NumericalError
from kvwstream.models import inference, load_model
from kvwstream.pipelines.measure import Measurer
from kvwstream.pipelines.prepare import prepare
from kvwstream.pixels import Pictures
from kvwstream.prefix_cache import PrefixCache
from kvwstream.readers import read_examples
from tests.conftest import COLOURS, THINGS, llama_config, question, save_model, write_rows
from tests.families import build_family

BEGINNING = "Long ago there was a town by the sea where every thing had a colour of its own. "


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    rows = [question(thing, colour) for thing, colour in zip(THINGS, COLOURS, strict=True)]
    for row in rows:
        row["question"] = BEGINNING + row["question"]
    return write_rows(tmp_path_factory.mktemp("facts") / "facts.jsonl", rows)


def sliding_config() -> MistralConfig:
    """A window of fewer tokens than the prefix has."""
    values = llama_config(max_position_embeddings=256).to_dict()
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        values.pop(name, None)
    return MistralConfig(**{**values, "sliding_window": 8})


@pytest.fixture(scope="module", params=["llama", "sliding window"])
def model(request, tmp_path_factory):
    config = llama_config(max_position_embeddings=256)
    config = config if request.param == "llama" else sliding_config()
    return save_model(tmp_path_factory.mktemp("model") / "m", config)


def alone(loaded, prepared, record: int) -> np.ndarray:
    with inference(loaded.model):
        batch = prepared.record_batch(record)
        sums = record_sums(loaded.model, prepared.sites, batch, prepared.plan.moments)
    return sums[:, 0].numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sums_are_those_of_each_record_alone(model, facts, batch_size):
    examples, moments = read_examples(str(facts)), ("abs", "signed", "square")
    prepared = prepare(str(model), examples, batch_size=batch_size, moments=moments)
    assert prepared.table.prefix.min() > 8
    loaded = load_model(model)
    with inference(loaded.model):
        data = Measurer(loaded, prepared).part(prepared.plan.part(0))
    for record in range(prepared.plan.num_records):
        expected = alone(loaded, prepared, record)
        for moment, values in zip(moments, expected, strict=True):
            off = np.abs(data.sums[moment][record] - values).max()
            assert off <= 1e-5 * np.abs(values).max()
        examples = prepared.plan.examples_of(record)
        positions = prepared.table.num_positions[examples.start : examples.stop].sum()
        assert set(data.counts[record]) == {positions}


def test_the_prefix_of_a_group_runs_once(model, facts, monkeypatch):
    """However many passes the group is cut into."""
    prepared = prepare(str(model), read_examples(str(facts)), pass_tokens=60)
    assert prepared.table.forward.max() >= 2
    assert len(set(prepared.table.group)) == 1
    loaded, began = load_model(model), []
    whole = PrefixCache.__init__
    monkeypatch.setattr(PrefixCache, "__init__", lambda self: (began.append(1), whole(self))[1])
    with inference(loaded.model):
        Measurer(loaded, prepared).part(prepared.plan.part(0))
    assert len(began) == 1


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """One large group behind a short beginning, then five small ones behind longer ones."""
    rows = [question(thing, colour) for thing, colour in zip(THINGS, COLOURS, strict=True)]
    for colour in COLOURS[:5]:
        for thing in THINGS[:3]:
            row = question(f"{thing} of {colour}", colour)
            rows.append({**row, "question": f"{colour}! {BEGINNING}{row['question']}"})
    return write_rows(tmp_path_factory.mktemp("groups") / "groups.jsonl", rows)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_groups_that_run_together_are_those_alone_in_any_order_of_parts(model, groups, batch_size):
    """And whoever measures a part: the bits are those of the plan."""
    options = {"part_size": 9, "batch_size": batch_size, "pass_tokens": 300}
    prepared = prepare(str(model), read_examples(str(groups)), **options)
    plan, loaded = prepared.plan, load_model(model)
    runs = [run for part in plan.parts for run in prepared.passes(part)]
    assert any(run.prefix and len(set(run.groups)) > 1 for run in runs)
    with inference(loaded.model):
        one = Measurer(loaded, prepared)
        found = {part: one.part(part).sums["abs"] for part in plan.parts}
        for part in reversed(list(plan.parts)):
            again = Measurer(loaded, prepared).part(part).sums["abs"]
            assert found[part].tobytes() == again.tobytes()
            for record, sums in zip(range(part.start, part.stop), found[part], strict=True):
                expected = alone(loaded, prepared, record)[0]
                assert np.abs(sums - expected).max() <= 1e-5 * np.abs(expected).max()


def test_rows_behind_another_groups_prefix_are_refused(tmp_path, groups, monkeypatch):
    """Also where the first pass that shares is of one group."""
    model = save_model(tmp_path / "m", llama_config(max_position_embeddings=256))
    follow = PrefixCache.follow
    monkeypatch.setattr(PrefixCache, "follow", lambda self, row_of: follow(self, 0 * row_of))
    prepared = prepare(str(model), read_examples(str(groups)), pass_tokens=300)
    runs = [run for run in prepared.passes(prepared.plan.part(0)) if run.prefix]
    together = [len(set(run.groups)) > 1 for run in runs]
    assert not together[0]
    assert any(together)
    loaded = load_model(model)
    with inference(loaded.model), pytest.raises(ModelError, match="--no-sharing"):
        Measurer(loaded, prepared).part(prepared.plan.part(0))


def test_no_sharing_is_another_plan_with_the_same_sums(model, facts):
    examples = read_examples(str(facts))
    one, two = (prepare(str(model), examples, sharing=sharing) for sharing in (True, False))
    assert one.plan.digest != two.plan.digest
    assert not two.table.prefix.any()
    loaded = load_model(model)
    with inference(loaded.model):
        sums = {
            name: row
            for prepared in (one, two)
            for name, row in zip(
                ((prepared is one, name) for name in prepared.table.ids),
                Measurer(loaded, prepared).part(prepared.plan.part(0)).sums["abs"],
                strict=True,
            )
        }
    for name in one.table.ids:
        np.testing.assert_allclose(sums[True, name], sums[False, name], rtol=1e-4, atol=1e-5)


def test_a_model_for_which_a_prefix_means_something_else_is_refused(model, facts, monkeypatch):
    """As a mask would do that looks at the tail alone."""
    real = prefix_cache._behind
    monkeypatch.setattr(
        prefix_cache, "_behind", lambda prefixes, new, row_of: real(0 * prefixes, new, row_of)
    )
    prepared = prepare(str(model), read_examples(str(facts)))
    loaded = load_model(model)
    with inference(loaded.model), pytest.raises(ModelError, match="--no-sharing"):
        Measurer(loaded, prepared).part(prepared.plan.part(0))


def test_a_value_that_is_not_finite_names_its_record_and_example(tmp_path, facts):
    """Among others that share its pass: the one whose token has a poisoned embedding."""
    model = save_model(tmp_path / "m", llama_config(max_position_embeddings=256))
    prepared = prepare(str(model), read_examples(str(facts)), batch_size=2)
    loaded, victim = load_model(model), 5
    ids = prepared.encoder.token_ids(prepared.examples[victim])
    others = {
        token
        for index, example in enumerate(prepared.examples)
        if index != victim
        for token in prepared.encoder.token_ids(example)
    }
    (poison, *_) = [token for token in ids if token not in others]
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[poison] = float("nan")
    with inference(loaded.model), pytest.raises(NumericalError) as caught:
        Measurer(loaded, prepared).part(prepared.plan.part(0))
    for word in (f"record {victim // 2}", repr(prepared.table.ids[victim]), "--dtype float32"):
        assert word in str(caught.value)


def test_an_image_is_decoded_and_scaled_once_for_its_questions(tmp_path, monkeypatch):
    """And once more for the record that is measured alone."""
    model, rows = build_family("llava", tmp_path / "m", torch.float32), []
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        for thing in THINGS[:3]:
            row = question(f"{thing} {number}", COLOURS[number % 10])
            rows.append({**row, "images": [f"{number}.png"]})
    prepared = prepare(str(model), read_examples(str(write_rows(tmp_path / "rows.jsonl", rows))))
    part, decoded, scaled = prepared.plan.part(0), [], []
    assert any(len(set(run.groups)) > 1 for run in prepared.passes(part))
    processor = prepared.encoder.processor.image_processor
    processor._answers.clear()
    prepared.encoder._pictures = Pictures()
    kind, load = type(processor._inner), pixels.load_image
    real = kind.__call__

    def scale(self, images, *arguments, **options):
        scaled.extend(image for shown in images for image in shown)
        return real(self, images, *arguments, **options)

    monkeypatch.setattr(kind, "__call__", scale)
    monkeypatch.setattr(pixels, "load_image", lambda *what: (decoded.append(1), load(*what))[1])
    loaded = load_model(model)
    with inference(loaded.model):
        Measurer(loaded, prepared).part(part)
    assert len(scaled) == 12 + 1
    assert len(decoded) <= 12 + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_synchronisation_inside_a_forward(model, facts):
    prepared = prepare(str(model), read_examples(str(facts)), device="cuda")
    loaded = load_model(model, device="cuda")
    batch = prepared.record_batch(0).to(loaded.device)
    with inference(loaded.model):
        record_sums(loaded.model, prepared.sites, batch, ("abs",))
        torch.cuda.set_sync_debug_mode("error")
        try:
            record_sums(loaded.model, prepared.sites, batch, ("abs",))
        finally:
            torch.cuda.set_sync_debug_mode("default")
