"""Teaches the vision tower to see before the language model looks through it.

Every image is described by a few words (its attributes). Tower and projector learn to turn an
image into the language model's own embeddings of those words, image token t saying word
t modulo the number of words. This costs a few minutes without the language model, knows no person,
and leaves the projector speaking a language that the model already reads.
"""

import time
from dataclasses import astuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.testbed.faces import draw_face, random_face
from benchmarks.testbed.model import IMAGE_TOKENS
from benchmarks.testbed.pictures import THINGS, Thing, draw_picture, random_shapes

TEMPERATURE = 0.05


def random_image(rng: np.random.Generator) -> tuple[Image.Image, tuple[str, ...]]:
    """A fresh image and its words: three in five a random face, the rest shapes or a thing."""
    kind = rng.random()
    if kind < 0.6:
        face = random_face(rng)
        return draw_face(face, rng), astuple(face)
    if kind < 0.85:
        shapes = random_shapes(rng)
        return draw_picture(shapes, rng), astuple(shapes)
    thing = Thing(str(rng.choice(THINGS)))
    return draw_picture(thing, rng), astuple(thing)


def word_embeddings(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, words: list[str]
) -> torch.Tensor:
    """(words, hidden) float32; a word of several tokens is their mean."""
    table = model.get_input_embeddings().weight.detach().float()
    encode = processor.tokenizer.encode
    return torch.stack([table[encode(f" {word}")].mean(0) for word in words])


def pretrain(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: int = 24_000,
    steps: int = 1_000,
    batch_size: int = 96,
    seed: int = 1,
) -> None:
    """Train vision tower and projector of a float32 `model` in place."""
    start = time.monotonic()
    rng = np.random.default_rng(seed)
    drawn = [random_image(rng) for _ in range(images)]
    words = sorted({word for _, description in drawn for word in description})
    number = {word: i for i, word in enumerate(words)}
    targets = torch.tensor(
        [[number[d[t % len(d)]] for t in range(IMAGE_TOKENS)] for _, d in drawn]
    )  # (images, image tokens)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in drawn]))
    print(f"drew {images} images in {time.monotonic() - start:.0f} s", flush=True)

    embeddings = word_embeddings(model, processor, words)
    directions, variance = functional.normalize(embeddings, dim=-1), embeddings.var()
    # For so few tokens plain matrix products beat the fused kernel's backward pass on a CPU.
    model.set_attn_implementation("eager")
    trained = [model.model.vision_tower, model.model.multi_modal_projector]
    parameters = [p for module in trained for p in module.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = torch.randint(images, (batch_size,), generator=generator)
        batch = normalize(shift(pixels[chosen], rng), processor)
        with torch.autocast("cpu", torch.bfloat16):
            features = torch.stack(model.model.get_image_features(batch).pooler_output)
        features = features.float()  # (batch, image tokens, hidden)
        logits = functional.normalize(features, dim=-1) @ directions.T / TEMPERATURE
        wanted = targets[chosen]
        closeness = functional.mse_loss(features, embeddings[wanted]) / variance
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()) + closeness
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            right = (logits.argmax(-1) == wanted).float().mean()
            print(
                f"vision step {step + 1}/{steps} loss {loss:.3f} words right {right:.3f}"
                f" {time.monotonic() - start:.0f} s",
                flush=True,
            )


def shift(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Move a batch (images, 64, 64, 3) by up to three pixels: more drawings for free."""
    down, right = (int(step) for step in rng.integers(-3, 4, size=2))
    return torch.roll(pixels, (down, right), dims=(1, 2))


def normalize(pixels: torch.Tensor, processor: LlavaProcessor) -> torch.Tensor:
    """uint8 (images, 64, 64, 3) -> float32 (images, 3, 64, 64), as the image processor does."""
    mean = torch.tensor(processor.image_processor.image_mean)
    std = torch.tensor(processor.image_processor.image_std)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
