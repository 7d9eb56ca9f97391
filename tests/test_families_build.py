"""The tiny families load without a warning and behave as their entries say."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.utils import is_torchvision_available

from tests.families import FAMILIES, PIXTRAL, Family, build_family, load_processor

# PaliGemma's processor converts torch tensors with an old NumPy protocol
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
IMAGES = [
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for n in range(3)
]
MULTIMODAL = [family for family in FAMILIES if family.multimodal]
TORCHVISION = [f for f in FAMILIES if f.video or f.template == PIXTRAL]
CHAT = [family for family in FAMILIES if family.template is not None]
QUESTION, ANSWER = "What colour is the sky?", "The sky is blue."


@dataclass(frozen=True)
class Built:
    """A family as it comes back from disk."""

    family: Family
    folder: Path
    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def render(self, images: int = 0, answer: str | None = None) -> str:
        """A question about some images, up to where the answer starts, or with the answer."""
        if self.family.template is None:
            return "<image>" * images + QUESTION
        messages = [{"role": "user", "content": self.content(QUESTION, images)}]
        if answer is not None:
            messages.append({"role": "assistant", "content": self.content(answer)})
        options = {} if self.family.multimodal else {"enable_thinking": False}
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None, **options
        )

    def content(self, text: str, images: int = 0) -> Any:
        if not self.family.multimodal:
            return text
        return [{"type": "image"}] * images + [{"type": "text", "text": text}]

    def inputs(self, texts: list[str], images: Any = None, **options: Any) -> dict[str, Tensor]:
        """The batch as `forward` takes it."""
        given = {"images": images} if images is not None else {}
        defaults = {
            "padding": True,
            "padding_side": "right",
            "return_tensors": "pt",
            "add_special_tokens": self.family.special,
        }
        inputs = dict(self.processor(text=texts, **given, **{**defaults, **options}))
        inputs.pop("labels", None)
        return inputs

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return self.model(**inputs).logits


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    family = request.param
    folder = build_family(family.name, tmp_path_factory.mktemp(family.name))
    auto = AutoModelForImageTextToText if family.multimodal else AutoModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = auto.from_pretrained(folder, output_loading_info=True)
        load = load_processor if family.multimodal else AutoTokenizer.from_pretrained
        processor = load(folder)
    assert not any(report.values()), report
    return Built(family, folder, model.eval(), processor)


def of(families: Sequence[Family]) -> pytest.MarkDecorator:
    """Run a test with each of these families, as `built`."""
    return pytest.mark.parametrize(
        "built", families, indirect=True, ids=[family.name for family in families]
    )


@of(FAMILIES)
def test_loads_offline(built: Built) -> None:
    config = AutoConfig.from_pretrained(built.folder)
    assert config.get_text_config().hidden_size == 32
    assert len(built.tokenizer("sky")["input_ids"]) > 0
    assert all(torch.isfinite(parameter).all() for parameter in built.model.parameters())


@of(FAMILIES)
def test_bfloat16_is_kept(built: Built, tmp_path: Path) -> None:
    folder = build_family(built.family.name, tmp_path / "model", dtype=torch.bfloat16)
    model = type(built.model).from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    own = dict(built.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name].bfloat16()), name


@of(TORCHVISION)
def test_auto_processor_names_torchvision(built: Built) -> None:
    if is_torchvision_available():
        AutoProcessor.from_pretrained(built.folder)
    else:
        with pytest.raises(ImportError, match="Torchvision"):
            AutoProcessor.from_pretrained(built.folder)


@of(FAMILIES)
def test_mixed_batch(built: Built) -> None:
    counts = [1, 2] if built.family.multimodal else [0]
    counts += [0] * built.family.text_rows
    rows = [IMAGES[:1], IMAGES[1:], []]
    texts = [built.render(count) for count in counts]
    images = [rows[count - 1] for count in counts] if built.family.multimodal else None
    inputs = built.inputs(texts, images)
    logits = built.logits(inputs)
    tokens = built.model.config.get_text_config().vocab_size
    assert logits.shape == (*inputs["input_ids"].shape, tokens)
    assert torch.isfinite(logits).all()
    assert logits[0, -1].std() > 0.1
    alone = []
    for text, row, together in zip(texts, images or [[]] * len(texts), logits, strict=True):
        single = built.logits(built.inputs([text], [row] if row else None))[0]
        alone.append(float((single - together[: len(single)]).abs().max()))
    assert (max(alone) < 1e-4) == built.family.independent, alone
    prompts = built.inputs(texts, images, padding_side="left")
    with torch.inference_mode():
        written = built.model.generate(**prompts, max_new_tokens=3, do_sample=False)
    assert written.shape[0] == len(texts)
    assert written.shape[1] > prompts["input_ids"].shape[1]


@of(MULTIMODAL)
def test_rows_with_equally_many_images_are_independent(built: Built) -> None:
    texts, images = [built.render(1)] * 2, [[IMAGES[0]], [IMAGES[1].resize((64, 24))]]
    together = built.logits(built.inputs(texts, images))
    for text, row, values in zip(texts, images, together, strict=True):
        single = built.logits(built.inputs([text], [row]))[0]
        torch.testing.assert_close(values[: len(single)], single, rtol=0, atol=1e-4)


@of(MULTIMODAL)
def test_images_matter_and_stay_small(built: Built) -> None:
    first, second = (built.inputs([built.render(1)], [[image]]) for image in IMAGES[:2])
    assert not torch.allclose(built.logits(first)[0, -1], built.logits(second)[0, -1], atol=1e-2)
    if not built.family.text_rows:
        return
    assert first["input_ids"].shape[1] - built.inputs([built.render()])["input_ids"].shape[1] < 40


@of(MULTIMODAL)
def test_flat_list_of_images(built: Built) -> None:
    texts = [built.render(1), built.render(2)]
    nested = built.inputs(texts, [IMAGES[:1], IMAGES[1:]])
    try:
        flat = built.inputs(texts, IMAGES)
    except ValueError:
        assert not built.family.flat
    else:
        same = nested["input_ids"].shape == flat["input_ids"].shape
        assert same == built.family.flat
        assert not same or all(torch.equal(value, flat[name]) for name, value in nested.items())


@of(MULTIMODAL)
def test_empty_rows_only_are_refused(built: Built) -> None:
    with pytest.raises((ValueError, IndexError)):
        built.logits(built.inputs([built.render()], [[]]))


@of(MULTIMODAL)
def test_required_inputs(built: Built) -> None:
    texts = [built.render(2)]
    options = {"suffix": [ANSWER]} if built.family.template is None else {}
    inputs = built.inputs(texts, [[IMAGES[0], IMAGES[1].resize((64, 24))]], **options)
    assert set(built.family.inputs) <= inputs.keys()
    right = built.logits(inputs)
    for name in built.family.inputs:
        rest = {key: value for key, value in inputs.items() if key != name}
        try:
            wrong = built.logits(rest)
        except (ValueError, TypeError, AttributeError, RuntimeError):
            continue
        assert not torch.allclose(wrong, right, atol=1e-3), name


@of(FAMILIES)
def test_one_bos(built: Built) -> None:
    text, bos = built.render(int(built.family.multimodal)), built.tokenizer.bos_token
    images = [[IMAGES[0]]] if built.family.multimodal else None
    ids = built.inputs([text], images)["input_ids"][0].tolist()
    wanted = bos is not None and built.family.name != "phi3"  # knows one and never writes it
    assert ids.count(built.tokenizer.bos_token_id) == wanted
    if built.family.multimodal:  # the rule of `apply_chat_template(tokenize=True)`
        special = not (bos and text.startswith(bos))
        again = built.inputs([text], images, add_special_tokens=special)
        assert again["input_ids"][0].tolist() == ids


@of(CHAT)
def test_answer_stands_behind_the_prompt(built: Built) -> None:
    images = int(built.family.multimodal)
    prompt, whole = built.render(images), built.render(images, ANSWER)
    if built.family.between is None:
        assert not whole.startswith(prompt)
    else:
        assert whole.startswith(prompt + built.family.between + ANSWER)


@of(CHAT)
def test_string_content(built: Built) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    text = built.processor.apply_chat_template(messages, tokenize=False)
    assert (QUESTION in text) == built.family.string_content


@of([family for family in MULTIMODAL if family.template is None])
def test_suffix_is_causal(built: Built) -> None:
    """PaliGemma: only a suffix is an answer that the prompt does not see."""
    text, images = [built.render(1)], [IMAGES[:1]]
    prompt = built.inputs(text, images)
    length = prompt["input_ids"].shape[1]
    answers = [built.inputs(text, images, suffix=[s]) for s in (ANSWER, "Red is a rose.")]
    for whole in answers:
        ids, types = whole["input_ids"][0], whole["token_type_ids"][0]
        assert torch.equal(ids[:length], prompt["input_ids"][0])
        assert types.tolist() == [0] * length + [1] * (len(ids) - length)
        assert ids[-1] == built.tokenizer.eos_token_id
        logits = built.logits(whole)[:, :length]
        torch.testing.assert_close(logits, built.logits(prompt), rtol=0, atol=1e-4)
        whole.pop("token_type_ids")
    first, second = (built.logits(whole)[0, :length] for whole in answers)
    assert not torch.allclose(first, second, atol=1e-2)


@of(CHAT)
def test_an_answer_does_not_change_what_came_before(built: Built) -> None:
    images = int(built.family.multimodal)
    row = [[IMAGES[0]]] if images else None
    prompt = built.render(images)
    short = built.inputs([prompt], row)
    long = built.inputs([prompt + (built.family.between or "") + ANSWER], row)
    length = short["input_ids"].shape[1]
    assert torch.equal(long["input_ids"][:, :length], short["input_ids"])
    torch.testing.assert_close(
        built.logits(long)[:, :length], built.logits(short), rtol=0, atol=1e-4
    )
