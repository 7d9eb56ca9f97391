"""Hooks, sums and sites against plain computations on the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kvwstream import checkpoint
from kvwstream.answers import AnswerEncoder
from kvwstream.checkpoint import Checkpoint, match_tensors
from kvwstream.collector import record_sums, site_inputs
from kvwstream.errors import ModelError
from kvwstream.models import inference, load_model
from kvwstream.pipelines.worker import check_weights
from kvwstream.readers import read_examples
from kvwstream.sites import find_sites

MOMENTS = ("abs", "signed", "square")


@pytest.fixture(params=["llama", "gpt2"])
def case(request, data):
    """Loaded model, its sites and a padded batch of three examples of unlike length."""
    loaded = load_model(request.getfixturevalue(request.param))
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    examples = sorted(read_examples(str(data["plain"])), key=lambda e: len(e.answer))[::4]
    spans = [encoder.locate(example) for example in examples]
    batch = encoder.batch(examples, spans, "answer")
    return loaded, find_sites(loaded.model), batch, examples, spans


def recorded_inputs(model: nn.Module, sites, batch) -> list[torch.Tensor]:
    """What every value projection saw, kept whole, in one plain forward pass."""
    seen: list[torch.Tensor] = []
    with inference(model), site_inputs(model, sites, lambda n, x: seen.append(x.clone())):
        model(**batch.inputs)
    return [x.reshape(-1, x.shape[-1]) for x in seen]


def test_sums_equal_those_of_the_recorded_inputs(case):
    loaded, sites, batch, examples, spans = case
    whole = torch.cat(recorded_inputs(loaded.model, sites, batch), dim=1).double()
    rows = whole[batch.rows]
    with inference(loaded.model):
        sums = record_sums(loaded.model, sites, batch, MOMENTS)[:, 0].double()
    for got, expected in zip(sums, (rows.abs(), rows, rows.square()), strict=True):
        torch.testing.assert_close(got, expected.sum(0), rtol=1e-5, atol=1e-6)


def test_rows_are_the_positions_that_predict_the_answer(case):
    _, _, batch, examples, spans = case
    ids = batch.inputs["input_ids"]
    width = ids.shape[1]
    start = 0
    for number, span in enumerate(spans):
        rows = batch.rows[start : start + batch.counts[number]]
        start += batch.counts[number]
        positions = (rows - number * width).tolist()
        assert positions == list(range(span.prompt - 1, span.total - 1))
        assert batch.inputs["attention_mask"][number, positions].all()
    assert start == len(batch.rows)


def test_padding_and_company_do_not_change_an_examples_sums(case, data):
    loaded, sites, batch, examples, spans = case
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    with inference(loaded.model):
        together = record_sums(loaded.model, sites, batch, MOMENTS, batch.counts)
        for number, example in enumerate(examples):
            alone = encoder.batch([example], [spans[number]], "answer")
            single = record_sums(loaded.model, sites, alone, MOMENTS)
            torch.testing.assert_close(together[:, number], single[:, 0], rtol=1e-4, atol=1e-5)


def test_nothing_runs_after_the_last_site(case):
    loaded, sites, batch, *_ = case
    ran = []
    modules = {name: m for name, m in loaded.model.named_modules() if isinstance(m, nn.Linear)}
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in modules.items()
    ]
    with inference(loaded.model):
        record_sums(loaded.model, sites, batch, MOMENTS)
    for handle in handles:
        handle.remove()
    assert "lm_head" not in ran
    assert sites[-1].path not in ran


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_gone_after_success_and_after_any_exception(case):
    loaded, sites, batch, *_ = case
    assert hooks_of(loaded.model) == 0
    with inference(loaded.model):
        record_sums(loaded.model, sites, batch, MOMENTS)
    assert hooks_of(loaded.model) == 0
    with pytest.raises(ZeroDivisionError), site_inputs(loaded.model, sites, lambda n, x: 1 // 0):
        assert hooks_of(loaded.model) == len(sites)
        loaded.model(**batch.inputs)
    assert hooks_of(loaded.model) == 0
    unknown = [*sites, sites[0]._replace(path="model.nowhere")]
    with pytest.raises(AttributeError), site_inputs(loaded.model, unknown, lambda n, x: None):
        pass
    assert hooks_of(loaded.model) == 0


def test_mode_threads_and_gradients_are_restored(case):
    loaded, *_ = case
    loaded.model.train()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="boom"), inference(loaded.model, 2):
        assert not loaded.model.training
        assert torch.get_num_threads() == 2
        raise RuntimeError("boom")
    assert loaded.model.training
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_a_site_that_is_bypassed_is_an_error(case):
    loaded, sites, batch, *_ = case
    layer = loaded.model.get_submodule(sites[0].path.rpartition(".")[0])
    layer.forward = lambda x: x  # as a fused kernel would do
    with inference(loaded.model), pytest.raises(ModelError, match="1 of 2 sites never ran"):
        record_sums(loaded.model, sites, batch, MOMENTS)


def test_a_site_that_runs_twice_is_an_error(case):
    loaded, sites, batch, *_ = case
    layer = loaded.model.get_submodule(sites[0].path.rpartition(".")[0])
    once = layer.forward
    layer.forward = lambda x: once(x) + once(x)
    with inference(loaded.model), pytest.raises(ModelError, match="ran twice in one forward pass"):
        record_sums(loaded.model, sites, batch, MOMENTS)


def test_a_site_that_sees_some_positions_only_is_an_error(case):
    loaded, sites, batch, *_ = case
    layer = loaded.model.get_submodule(sites[0].path.rpartition(".")[0])
    once = layer.forward

    def packed(x):
        return torch.cat([once(x[:, :-1].contiguous()), x[:, -1:]], dim=1)

    layer.forward = packed
    with inference(loaded.model), pytest.raises(ModelError, match=r"saw .* expected"):
        record_sums(loaded.model, sites, batch, MOMENTS)


def test_low_precision_is_cast_before_it_is_summed(tmp_path: Path, data):
    """1000 bfloat16 ones added in bfloat16 stop at 256; in float32 they reach 1000."""
    from tests.conftest import llama_config, save_model

    loaded = load_model(save_model(tmp_path / "m", llama_config(), dtype=torch.bfloat16))
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    examples = read_examples(str(data["retain"]))
    spans = [encoder.locate(e) for e in examples]
    batch = encoder.batch(examples * 9, spans * 9, "all")
    assert sum(batch.counts) > 1000
    sites = find_sites(loaded.model)
    with inference(loaded.model), site_inputs(loaded.model, sites, lambda n, x: torch.ones_like(x)):
        sums = record_sums(loaded.model, sites, batch, ("abs",))
    assert set(sums.ravel().tolist()) == {float(sum(batch.counts))}


def test_weights_of_many_blocks_are_those_of_the_checkpoint(llama, monkeypatch):
    """And one that was changed after loading is not."""
    monkeypatch.setattr(checkpoint, "BLOCK", 100)
    loaded = load_model(llama)
    sites = match_tensors(find_sites(loaded.model), Checkpoint.open(llama))
    check_weights(loaded, sites)
    with torch.no_grad():
        loaded.model.get_submodule(sites[-1].path).weight[-1, -1] += 1
    with pytest.raises(ModelError, match="cannot be matched to this model"):
        check_weights(loaded, sites)
