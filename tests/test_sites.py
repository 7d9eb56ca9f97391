"""Value projections are found by structure, or the model is refused with what was found."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from kvwstream.checkpoint import Checkpoint, match_tensors
from kvwstream.errors import ModelError
from kvwstream.models import model_skeleton
from kvwstream.sites import find_sites
from tests.conftest import gpt2_config, llama_config


def skeleton(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_a_linear_model():
    sites = find_sites(skeleton(llama_config(layers=3)))
    assert [s.path for s in sites] == [f"model.layers.{n}.mlp.down_proj" for n in range(3)]
    assert [(s.layer, s.width, s.offset, s.axis) for s in sites] == [
        (0, 48, 0, 1),
        (1, 48, 48, 1),
        (2, 48, 96, 1),
    ]


def test_a_conv1d_model():
    sites = find_sites(skeleton(gpt2_config()))
    assert [(s.path, s.width, s.axis) for s in sites] == [
        (f"transformer.h.{n}.mlp.c_proj", 128, 0) for n in range(2)
    ]


def test_sites_of_the_skeleton_are_those_of_the_weights(llama, gpt2, sharded):
    for folder in (llama, gpt2, sharded):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert find_sites(model) == find_sites(model_skeleton(folder))


def test_attention_as_wide_as_the_mlp_is_not_mistaken_for_it():
    sites = find_sites(skeleton(llama_config(head_dim=12)))  # 4 heads of 12 are 48, too
    assert all("mlp.down_proj" in site.path for site in sites)


def test_an_mlp_as_narrow_as_the_hidden_state_cannot_be_told():
    with pytest.raises(ModelError, match=r"found \['mlp.gate_proj', 'mlp.up_proj'"):
        find_sites(skeleton(llama_config(intermediate_size=32)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda layer: setattr(layer, "mlp", nn.Identity()), "expected one list of 2 decoder"),
        (
            lambda layer: setattr(layer, "mlp2", type(layer.mlp)(layer_config())),
            "expected one value projection .* found .*mlp.down_proj.*mlp2.down_proj",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_found(change, found):
    model = skeleton(llama_config())
    with torch.device("meta"):
        change(model.model.layers[1])
    with pytest.raises(ModelError, match=found):
        find_sites(model)


def layer_config():
    return llama_config()


def test_tensors_are_matched_by_their_longest_common_ending(llama):
    sites = find_sites(model_skeleton(llama))
    checkpoint = Checkpoint.open(llama)
    assert match_tensors(sites, checkpoint) == sites
    moved = {f"prefix.{name.removeprefix('model.')}": t for name, t in checkpoint.tensors.items()}
    other = Checkpoint(llama, checkpoint.shards, moved)
    assert [s.tensor for s in match_tensors(sites, other)] == [
        f"prefix.layers.{n}.mlp.down_proj.weight" for n in range(2)
    ]


def test_ambiguous_or_foreign_tensors_are_refused(llama):
    sites = find_sites(model_skeleton(llama))
    checkpoint = Checkpoint.open(llama)
    name = "model.layers.0.mlp.down_proj.weight"
    tensor = checkpoint.tensors[name]
    twice = {"a." + name[6:]: tensor, "b." + name[6:]: tensor}
    integer = {**checkpoint.tensors, name: tensor._replace(dtype="I8")}
    turned = {**checkpoint.tensors, name: tensor._replace(shape=tensor.shape[::-1])}
    for tensors, message in (
        (twice, "cannot tell which tensor"),
        ({}, "cannot tell which tensor"),
        (integer, "has dtype I8; only floating point"),
        (turned, "expected 48 on axis 1"),
    ):
        with pytest.raises(ModelError, match=message):
            match_tensors(sites, Checkpoint(llama, checkpoint.shards, tensors))
