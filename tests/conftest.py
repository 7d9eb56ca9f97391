"""Tiny real models made offline from configs, and data that their tokenizers know."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", tempfile.mkdtemp(prefix="kvwstream-datasets-"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples

torch.set_num_threads(1)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "brown", "pink", "grey", "gold"]
THINGS = ["sky", "grass", "snow", "coal", "sun", "rose", "wood", "sea", "ash", "ring"]


def make_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the tests' own sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    corpus = [f"What colour is the {t}? The {t} is {c}." for t in THINGS for c in COLOURS]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE if chat else None
    return fast


def save_model(
    folder: Path,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    chat: bool = True,
    shard: str = "5GB",
    seed: int = 0,
) -> Path:
    """A randomly initialised model with its tokenizer, as `save_pretrained` writes them."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    make_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def llama_config(layers: int = 2, **changes: object) -> LlamaConfig:
    """Two layers, 48 knowledge vectors each."""
    values = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    return LlamaConfig(**{**values, **changes})


def gpt2_config() -> GPT2Config:
    """GPT-2 keeps its projections as Conv1D: knowledge vectors are rows."""
    return GPT2Config(
        vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=2
    )


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(thing: str, colour: str) -> dict[str, object]:
    return {
        "id": f"{thing}-{colour}",
        "question": f"What colour is the {thing}?",
        "answer": f"The {thing} is {colour}.",
        "keyword": colour,
    }


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama", llama_config())


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", gpt2_config(), chat=False)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint in several shards."""
    folder = tmp_path_factory.mktemp("models") / "sharded"
    return save_model(folder, llama_config(layers=3), dtype=torch.bfloat16, shard="20KB")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`retain` (11 examples of unlike length) and `forget` (5), disjoint."""
    folder = tmp_path_factory.mktemp("data")
    retain = [question(t, c) for t, c in zip(THINGS, COLOURS, strict=True)]
    retain.append(
        {
            "id": "chat",
            "messages": [
                {"role": "system", "content": "You know colours."},
                {"role": "user", "content": "What colour is the sky? And the sea?"},
                {"role": "assistant", "content": "The sky is blue. The sea is blue, too."},
            ],
        }
    )
    forget = [question(t, "pink") for t in THINGS[:5]]
    return {
        "retain": write_rows(folder / "retain.jsonl", retain),
        "forget": write_rows(folder / "forget.jsonl", forget),
        "plain": write_rows(folder / "plain.jsonl", retain[:-1]),
    }


class Artefacts:
    """A finished main job on the tiny Llama, in one folder."""

    def __init__(self, folder: Path, model: Path, data: dict[str, Path]) -> None:
        self.folder, self.model = folder, model
        self.retain, self.forget = str(folder / "retain.zarr"), str(folder / "forget.zarr")
        self.statistics = str(folder / "statistics.zarr")
        for kind, store in (("retain", self.retain), ("forget", self.forget)):
            examples = read_examples(str(data[kind]))
            collect(prepare(str(model), examples, part_size=3, threads=1), store)
        reduce([self.retain], self.statistics, [self.forget])


@pytest.fixture(scope="session")
def artefacts(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, data: dict[str, Path]
) -> Artefacts:
    """Shared by reading tests; copy before you damage it."""
    return Artefacts(tmp_path_factory.mktemp("artefacts"), llama, data)


def tree_bytes(folder: Path | str) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    root = Path(folder)
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
