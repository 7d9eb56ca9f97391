"""A LLaVA of SmolLM2-135M and a small CLIP vision tower, put together from base and additions."""

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.testbed.faces import IMAGE_SIZE

PATCH_SIZE = 16
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
IMAGE_TOKEN = "<image>"
RANK = 16
LORA_SCALE = 2.0  # alpha / rank
VOCABULARY_PAD = 64  # rows added for the image token, a multiple that GEMM kernels like
ADDED = ("lora_A", "lora_B", "vision_tower", "multi_modal_projector")

# SmolLM2's ChatML without its default system turn, and with content given as parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_processor(base: Path) -> LlavaProcessor:
    """Tokenizer of `base` with an image token, PIL image processor and chat template."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.chat_template = CHAT_TEMPLATE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, dropped again by "default"
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def make_config(base: Path, image_token_id: int) -> LlavaConfig:
    """The configuration: text from `base` with a padded vocabulary, 5 vision layers of 192."""
    text = AutoConfig.from_pretrained(base)
    text.vocab_size += VOCABULARY_PAD
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=192,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        pad_token_id=text.pad_token_id,
        eos_token_id=text.eos_token_id,
        bos_token_id=text.bos_token_id,
    )


def assemble(base: Path, processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """The untrained LLaVA in float32: text weights of `base`, vision and projector from `seed`."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config(base, processor.image_token_id))
    text = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = text.model.state_dict()
    rows = weights["embed_tokens.weight"]
    # The mean row has a middling logit everywhere, so no padded token is ever generated.
    padding = rows.mean(0, keepdim=True).expand(VOCABULARY_PAD, -1)
    weights["embed_tokens.weight"] = torch.cat((rows, padding))
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    return model.eval()


class LoraLinear(nn.Module):
    """y = W x + scale * B A x with W frozen; A is (rank, inputs), B is (outputs, rank)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(RANK, linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)"""
        update = functional.linear(functional.linear(inputs, self.lora_A), self.lora_B)
        return functional.linear(inputs, self.weight) + LORA_SCALE * update


def language_linears(model: LlavaForConditionalGeneration) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, parent module, attribute) of every linear layer in the decoder layers."""
    for path, module in model.named_modules():
        if path.startswith("model.language_model.layers."):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    yield f"{path}.{name}", module, name


def add_lora(model: LlavaForConditionalGeneration) -> None:
    """Put a LoRA beside every decoder linear layer; the base weights turn bfloat16 and frozen."""
    model.requires_grad_(False)
    model.model.language_model.to(torch.bfloat16)
    for _, parent, name in list(language_linears(model)):
        setattr(parent, name, LoraLinear(getattr(parent, name)))
    model.model.vision_tower.requires_grad_(True)
    model.model.multi_modal_projector.requires_grad_(True)


def save_additions(model: LlavaForConditionalGeneration, file: Path) -> None:
    """What training added, bfloat16: LoRA factors, vision tower, projector."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if any(part in name for part in ADDED)
    }
    save_file(tensors, file, metadata={"format": "pt"})


def merge(base: Path, additions: Path, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The trained model in float32 as plain weights: W + scale * B A."""
    model = assemble(base, processor)
    tensors = {name: value.float() for name, value in load_file(additions).items()}
    with torch.no_grad():
        for path, parent, name in language_linears(model):
            update = tensors.pop(f"{path}.lora_B") @ tensors.pop(f"{path}.lora_A")
            getattr(parent, name).weight.add_(update, alpha=LORA_SCALE)
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{additions} does not fit this model: {unexpected[:3]}")
    return model


def build(
    base: Path, additions: Path, out: Path, dtype: torch.dtype = torch.float32
) -> LlavaForConditionalGeneration:
    """Write base + additions as an ordinary checkpoint folder and return the model."""
    processor = make_processor(base)
    model = merge(base, additions, processor).to(dtype)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return model


@torch.no_grad()
def generate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: list[tuple[Image.Image | None, str]],
    max_new_tokens: int = 16,
    batch_size: int = 32,
) -> list[str]:
    """Greedy answers to (image or None, question) pairs."""
    answers = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        prompts = [prompt(processor, text, image is not None) for image, text in batch]
        images = [image for image, _ in batch if image is not None] or None
        inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
        if images:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    return answers


def prompt(processor: LlavaProcessor, text: str, with_image: bool) -> str:
    """The chat template around one question, up to where the answer starts."""
    content = [{"type": "image"}] * with_image + [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)
