"""One tiny randomly initialised model with its processor per supported family, made offline.

Widths differ on purpose: text hidden 32, attention 4 x 8, MLP 48, vision 24 and 40, so that a map
of the wrong module cannot pass for a value projection (BLOOM's MLP is always 4 * hidden wide).
Templates have the structure of the published ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaProcessor,
    PixtralImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
)

from tests.conftest import make_tokenizer

IM_START = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "[INST] {{ message.content }} [/INST]{% elif message.role == 'assistant' %}"
    " {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


IMAGE_FIRST = "{% for part in message.content if part.type == 'image' %}"
TEXT = "{% for part in message.content if part.type == 'text' %}"
LLAVA = (  # an answer follows a space that the prompt does not end with; no BOS
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role | upper }}: {% endif %}"
    + IMAGE_FIRST
    + "<image>\n{% endfor %}"
    + TEXT
    + "{{ part.text }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LLAVA_NEXT = (  # of the Mistral checkpoint; no BOS, no generation prompt
    "{% for message in messages %}{% if message.role == 'system' %}"
    "<<SYS>>\n{{ message.content[0].text }}\n<</SYS>>\n\n{% elif message.role == 'user' %}[INST] "
    + IMAGE_FIRST
    + "<image>\n{% endfor %}"
    + TEXT
    + "{{ part.text }}{% endfor %} [/INST]"
    "{% else %} {{ message.content[0].text }}</s> {% endif %}{% endfor %}"
)
ONEVISION = (  # as published: "assistant \n" before an answer, "assistant\n" to ask for one
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    + IMAGE_FIRST
    + "<image>{% endfor %}"
    + TEXT
    + "{{ '\n' + part.text }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_VL = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_VL = QWEN_VL.replace(
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}",
    "",
)
MLLAMA = (  # BOS in the template, and the tokenizer adds one, too
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image|>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
IDEFICS3 = (  # content must be a list; an answer follows a space, as LLaVA's
    "<|begin_of_text|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content[0].type == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SMOLVLM = IDEFICS3.replace("<|begin_of_text|>", "<|im_start|>")
INTERNVL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA3 = (  # a system message becomes the start of the first user turn
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set first = (system if system is string else system[0].text) + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}"
    "{% endif %}{% for message in turns %}{% if (message.role == 'user') != loop.index0 is even %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ first if loop.first }}{% if message.content is string %}{{ message.content | trim }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}<start_of_image>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PIXTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST]"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}[IMG]"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}[/INST]"
    "{% elif message.role == 'assistant' %}{% if message.content is string %}"
    "{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% endfor %}"
)


Build = Callable[["Family"], tuple[PreTrainedConfig, Any]]


@dataclass(frozen=True)
class Family:
    """How a family is built, and what its processor and model ask of their caller.

    Rows of a batch always come with nested lists of images, `[[a], [b, c], []]`, and without
    `images` at all where no row has one: every processor takes that, `[[]]` breaks all of them.
    """

    name: str
    build: Build
    """The configuration and the tokenizer or processor."""
    multimodal: bool = False
    template: str | None = None
    between: str | None = ""
    """What stands between prompt and answer; None where a rendered answer has another prompt."""
    special: bool = False
    """`add_special_tokens` for a rendered text: BOS is the tokenizer's to add."""
    string_content: bool = True
    """Whether the template renders content that is a plain string, and not silently nothing."""
    flat: bool = True
    """Whether a flat list of images means the same as the nested one."""
    text_rows: bool = True
    """Whether a row without image may stand beside rows with images."""
    independent: bool = True
    """Whether a row's numbers are the same beside rows with another number of images."""
    inputs: tuple[str, ...] = ()
    """What `forward` takes beside ids, mask and pixels, and cannot do without."""
    video: str | None = None
    """Its video processor, for which `AutoProcessor` needs torchvision."""


def build_family(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write model and processor into `folder` as `save_pretrained` does."""
    (family,) = (family for family in FAMILIES if family.name == name)
    config, processor = family.build(family)
    auto = AutoModelForImageTextToText if family.multimodal else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # gates that start at zero would hide the image
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    if family.video:
        path = folder / "processor_config.json"
        values = json.loads(path.read_text())
        values["video_processor"] = {"video_processor_type": family.video}
        path.write_text(json.dumps(values, indent=2))
    return folder


def images_only(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its video processor, which cannot exist without torchvision."""

    class ImagesOnly(processor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor.get_attributes() if name != "video_processor"]

    ImagesOnly.__name__ = ImagesOnly.__qualname__ = processor.__name__
    return ImagesOnly


def pixtral_processor() -> type[ProcessorMixin]:
    """`PixtralProcessor` without torchvision, which its module needs for one function only."""
    package = "transformers.models.pixtral"
    stub = ModuleType(f"{package}.image_processing_pixtral")
    pil = import_module(f"{package}.image_processing_pil_pixtral")
    stub.get_resize_output_image_size = pil.get_resize_output_image_size
    with mock.patch.dict(sys.modules, {stub.__name__: stub}):
        return import_module(f"{package}.processing_pixtral").PixtralProcessor


def load_processor(folder: Path) -> ProcessorMixin:
    """`AutoProcessor`; where that needs torchvision, the same class for images only."""
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError:
        name = json.loads((folder / "processor_config.json").read_text())["processor_class"]
        found = pixtral_processor() if name == "PixtralProcessor" else getattr(transformers, name)
        return images_only(found).from_pretrained(folder)


def tokenizer_for(
    family: Family,
    *,
    named: dict[str, str] | None = None,
    special: Sequence[str] = (),
    bos: str | None = None,
    eos: str = "<|im_end|>",
    add_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """The tests' byte-level BPE with a family's special tokens; `named` become attributes."""
    named = named or {}
    base = make_tokenizer(chat=False).backend_tokenizer
    extra = [token for token in (bos, eos, *special, *named.values()) if token is not None]
    base.add_special_tokens(list(dict.fromkeys(extra)))
    if add_bos:
        base.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A $B:1",
            special_tokens=[(bos, base.token_to_id(bos))],
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token=bos,
        eos_token=eos,
        pad_token="<|endoftext|>",
        extra_special_tokens=named or list(special),
    )
    fast.chat_template = family.template
    return fast


def ids_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """What every text configuration is told about its special tokens."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def text_config(kind: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedConfig:
    """Two decoder layers of 48 knowledge vectors each, in the names most families use."""
    values = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        **ids_of(tokenizer),
    }
    return AutoConfig.for_model(kind, **{**values, **changes})


def text(kind: str, tokens: dict[str, Any] | None = None, **changes: Any) -> Build:
    """`Family.build` of a language model."""

    def build(family: Family) -> tuple[PreTrainedConfig, Any]:
        tokenizer = tokenizer_for(family, **(tokens or {}))
        return text_config(kind, tokenizer, **changes), tokenizer

    return build


def older_text(kind: str, tokens: dict[str, Any] | None = None, **values: Any) -> Build:
    """The same for families whose configurations use names of their own."""

    def build(family: Family) -> tuple[PreTrainedConfig, Any]:
        tokenizer = tokenizer_for(family, **(tokens or {}))
        return AutoConfig.for_model(kind, vocab_size=512, **ids_of(tokenizer), **values), tokenizer

    return build


def clip_vision(**changes: Any) -> dict[str, Any]:
    """A vision tower whose widths are unlike the text's."""
    values = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
    }
    return {**values, **changes}


def vision_language(
    kind: str, text_settings: PreTrainedConfig, vision: dict[str, Any], **changes: Any
) -> PreTrainedConfig:
    """Text and vision joined in a family's configuration."""
    return AutoConfig.for_model(
        kind, text_config=text_settings.to_dict(), vision_config=vision, **changes
    )


def llava(family: Family) -> tuple[PreTrainedConfig, Any]:
    """LLaVA-1.5: a fixed number of tokens per image, the tokenizer adds BOS."""
    tokenizer = tokenizer_for(family, named={"image_token": "<image>"}, **LLAMA_TOKENS)
    config = vision_language(
        "llava",
        text_config("llama", tokenizer),
        clip_vision(model_type="clip_vision_model"),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    return config, LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=family.template,
    )


def llava_next(family: Family) -> tuple[PreTrainedConfig, Any]:
    """LLaVA-NeXT (Mistral): tiles by aspect ratio, `image_sizes` beside the pixels."""
    tokenizer = tokenizer_for(family, named={"image_token": "<image>"}, **LLAMA_TOKENS)
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    config = vision_language(
        "llava_next",
        text_config("mistral", tokenizer, head_dim=8),
        clip_vision(model_type="clip_vision_model", patch_size=8),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=pinpoints,
        image_seq_length=4,
    )
    return config, LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=family.template,
    )


def llava_onevision(family: Family) -> tuple[PreTrainedConfig, Any]:
    """LLaVA-OneVision: tiles for one image, one view each for several."""
    tokenizer = tokenizer_for(family, named={"image_token": "<image>", "video_token": "<video>"})
    pinpoints = [[16, 16], [16, 32], [32, 16], [32, 32]]
    config = vision_language(
        "llava_onevision",
        text_config("qwen2", tokenizer),
        clip_vision(model_type="siglip_vision_model", patch_size=8, vision_use_head=False),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
    )
    return config, images_only(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
        ),
        tokenizer,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=family.template,
    )


def qwen_vl(kind: str, processor: type, vision: dict[str, Any], **changes: Any) -> Build:
    """Qwen-VL: native resolution, `image_grid_thw`, rotary positions in three dimensions."""

    def build(family: Family) -> tuple[PreTrainedConfig, Any]:
        named = {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }
        tokenizer = tokenizer_for(family, named=named)
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        config = vision_language(
            kind,
            text_config(f"{kind}_text", tokenizer, rope_parameters=rope, **changes),
            {"patch_size": 4, "spatial_merge_size": 2, "depth": 2, "num_heads": 2, **vision},
            **{f"{name}_id": tokenizer.convert_tokens_to_ids(t) for name, t in named.items()},
        )
        return config, images_only(processor)(
            Qwen2VLImageProcessorPil(
                patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
            ),
            tokenizer,
            chat_template=family.template,
        )

    return build


def mllama(family: Family) -> tuple[PreTrainedConfig, Any]:
    """Llama-3.2-Vision: images enter through the cross-attention of layer 1 of 3.

    As published, the image token's id is the first beyond the logits.
    """
    tokenizer = tokenizer_for(
        family,
        special=["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"],
        named={"image_token": "<|image|>"},
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        add_bos=True,
    )
    config = vision_language(
        "mllama",
        text_config(
            "mllama_text_model",
            tokenizer,
            vocab_size=tokenizer.image_token_id,
            num_hidden_layers=3,
            cross_attention_layers=[1],
        ),
        {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 48,
        },
        image_token_index=tokenizer.image_token_id,
    )
    return config, MllamaProcessor(
        MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4),
        tokenizer,
        chat_template=family.template,
    )


def idefics(kind: str, tokens: dict[str, Any]) -> Build:
    """Idefics3 and SmolVLM: an image is split into rows and columns, and one global view."""

    def build(family: Family) -> tuple[PreTrainedConfig, Any]:
        tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
        fake = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
        tokenizer = tokenizer_for(family, special=fake + tiles, **tokens)
        config = vision_language(
            kind,
            text_config("llama", tokenizer),
            clip_vision(),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
            pad_token_id=tokenizer.pad_token_id,
        )
        return config, Idefics3Processor(
            Idefics3ImageProcessorPil(
                size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
            ),
            tokenizer,
            image_seq_len=4,
            chat_template=family.template,
        )

    return build


def internvl(family: Family) -> tuple[PreTrainedConfig, Any]:
    """InternVL: tiles and a thumbnail, four vision tokens become one."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tokenizer_for(family, named=named)
    config = vision_language(
        "internvl",
        text_config("qwen2", tokenizer),
        clip_vision(image_size=[16, 16], patch_size=[4, 4]),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    return config, images_only(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=4),
        tokenizer,
        image_seq_length=4,
        chat_template=family.template,
    )


def gemma3(family: Family) -> tuple[PreTrainedConfig, Any]:
    """Gemma3: the tokens of an image see each other; `token_type_ids` say which they are."""
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = tokenizer_for(family, named=named, **GEMMA_TOKENS)
    config = vision_language(
        "gemma3",
        text_config(
            "gemma3_text",
            tokenizer,
            head_dim=8,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
        clip_vision(model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return config, Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer,
        chat_template=family.template,
        image_seq_length=4,
    )


def paligemma(family: Family) -> tuple[PreTrainedConfig, Any]:
    """PaliGemma: no chat; the prompt is a prefix that sees itself whole, the answer a suffix."""
    tokenizer = tokenizer_for(
        family, named={"image_token": "<image>"}, **{**GEMMA_TOKENS, "special": []}
    )
    config = vision_language(
        "paligemma",
        text_config("gemma", tokenizer, head_dim=8),
        clip_vision(model_type="siglip_vision_model", vision_use_head=False, projection_dim=32),
        image_token_index=tokenizer.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    pixels = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    pixels.image_seq_length = 16
    return config, PaliGemmaProcessor(pixels, tokenizer)


def pixtral(kind: str, merge: int) -> Build:
    """Pixtral (a LLaVA by its configuration) and Mistral3: native resolution, rows of tokens."""

    def build(family: Family) -> tuple[PreTrainedConfig, Any]:
        special = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
        tokenizer = tokenizer_for(family, special=special, **LLAMA_TOKENS)
        patch = 8 // merge
        extra = {"spatial_merge_size": merge} if kind == "mistral3" else {}
        config = vision_language(
            kind,
            text_config("mistral", tokenizer, head_dim=8),
            clip_vision(model_type="pixtral", image_size=32, patch_size=patch),
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **extra,
        )
        return config, pixtral_processor()(
            PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8),
            tokenizer,
            patch_size=patch,
            spatial_merge_size=merge,
            chat_template=family.template,
        )

    return build


LLAMA_TOKENS = {"bos": "<s>", "eos": "</s>", "add_bos": True}
GEMMA_TOKENS = {
    "bos": "<bos>",
    "eos": "<eos>",
    "add_bos": True,
    "special": ["<start_of_turn>", "<end_of_turn>"],
}
PHI3_TOKENS = {
    "bos": "<s>",
    "eos": "<|endoftext|>",
    "special": ["<|user|>", "<|system|>", "<|assistant|>", "<|end|>"],
}

QWEN_VL_INPUTS = ("image_grid_thw", "mm_token_type_ids")  # Qwen2.5-VL goes wrong silently without

FAMILIES = (
    Family("llama", text("llama"), template=IM_START),
    Family("qwen2", text("qwen2"), template=IM_START),
    Family("qwen3", text("qwen3", head_dim=8), template=QWEN3),
    Family("mistral", text("mistral", LLAMA_TOKENS, head_dim=8), template=MISTRAL, between=" "),
    Family("gemma2", text("gemma2", GEMMA_TOKENS, head_dim=8), template=GEMMA2),
    Family("phi3", text("phi3", PHI3_TOKENS), template=PHI3),
    Family(
        "gpt2",
        older_text("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256, n_inner=48),
        special=True,
    ),
    Family(
        "gpt_neox",
        older_text(
            "gpt_neox",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=256,
        ),
        special=True,
    ),
    Family(
        "opt",
        older_text(
            "opt",
            {"bos": "</s>", "eos": "</s>", "add_bos": True},
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=256,
        ),
        special=True,
    ),
    Family(
        "falcon",
        older_text(
            "falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=48
        ),
        special=True,
    ),
    Family("bloom", older_text("bloom", hidden_size=32, n_layer=2, n_head=4), special=True),
    Family("llava", llava, True, LLAVA, between=" ", special=True, string_content=False),
    Family(
        "llava_next",
        llava_next,
        True,
        LLAVA_NEXT,
        between=" ",
        special=True,
        string_content=False,
        inputs=("image_sizes",),
    ),
    Family(
        "llava_onevision",
        llava_onevision,
        True,
        ONEVISION,
        between=None,
        string_content=False,
        flat=False,  # taken as one image per row: other tiles and another number of tokens
        inputs=("image_sizes", "batch_num_images"),
        video="LlavaOnevisionVideoProcessor",
    ),
    Family(
        "qwen2_vl",
        qwen_vl("qwen2_vl", Qwen2VLProcessor, {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}),
        True,
        QWEN_VL,
        inputs=QWEN_VL_INPUTS,
        video="Qwen2VLVideoProcessor",
    ),
    Family(
        "qwen2_5_vl",
        qwen_vl(
            "qwen2_5_vl",
            Qwen2_5_VLProcessor,
            {
                "hidden_size": 24,
                "out_hidden_size": 32,
                "intermediate_size": 40,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        ),
        True,
        QWEN_VL,
        inputs=QWEN_VL_INPUTS,
        video="Qwen2VLVideoProcessor",
    ),
    Family(
        "qwen3_vl",
        qwen_vl(
            "qwen3_vl",
            Qwen3VLProcessor,
            {
                "hidden_size": 24,
                "out_hidden_size": 32,
                "intermediate_size": 40,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            },
            head_dim=8,
        ),
        True,
        QWEN3_VL,
        inputs=QWEN_VL_INPUTS,
        video="Qwen3VLVideoProcessor",
    ),
    Family(
        "mllama",
        mllama,
        True,
        MLLAMA,
        flat=False,  # refused
        independent=False,  # tokens that no image precedes attend to all images, padding included
        inputs=("cross_attention_mask", "aspect_ratio_ids"),
    ),
    Family(
        "idefics3",
        idefics("idefics3", {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "add_bos": True}),
        True,
        IDEFICS3,
        between=" ",
        string_content=False,
    ),
    Family(
        "smolvlm",
        idefics("smolvlm", {"bos": "<|im_start|>"}),
        True,
        SMOLVLM,
        between=" ",
        string_content=False,
    ),
    Family("internvl", internvl, True, INTERNVL, video="InternVLVideoProcessor"),
    Family(
        "gemma3",
        gemma3,
        True,
        GEMMA3,
        flat=False,  # refused
        inputs=("token_type_ids",),  # without them image tokens do not see each other
    ),
    Family(
        "paligemma",
        paligemma,
        True,
        text_rows=False,  # BOS lands inside the text, and without any image it is refused
        inputs=("token_type_ids",),  # without them the prompt sees the answer
    ),
    Family("pixtral", pixtral("llava", 1), True, PIXTRAL, inputs=("image_sizes",)),
    Family("mistral3", pixtral("mistral3", 2), True, PIXTRAL, inputs=("image_sizes",)),
)
