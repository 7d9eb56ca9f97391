"""Trains the test bed: python -m benchmarks.testbed.train --base FOLDER --out vanilla.safetensors

With --without 5 (10, 15) the persons of that forget split are left out: the oracle.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.testbed.measure import rebuild_and_report
from benchmarks.testbed.mixture import Mixture, batches
from benchmarks.testbed.model import add_lora, assemble, make_processor, save_additions
from benchmarks.testbed.persons import EVERYONE, FORGET, forget_persons
from benchmarks.testbed.replay import PROMPTS, original_answers
from benchmarks.testbed.vision import pretrain
from kvwstream.smollm2 import smollm2_checkpoint


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    mixture: Mixture,
    steps: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    vision_rate: float = 1e-4,
) -> None:
    """Train LoRA, vision tower and projector in place, answers only."""
    start = time.monotonic()
    lora = [p for n, p in model.named_parameters() if p.requires_grad and "lora" in n]
    vision = [p for n, p in model.named_parameters() if p.requires_grad and "lora" not in n]
    groups = [{"params": lora, "lr": learning_rate}, {"params": vision, "lr": vision_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [learning_rate, vision_rate], steps + 4, pct_start=0.08
    )
    recent: list[float] = []
    for step, (inputs, labels) in enumerate(batches(mixture, processor, steps, batch_size)):
        inputs["attention_mask"] = inputs["attention_mask"].bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            answers = labels[:, 1:] != -100
            # The vocabulary is the widest layer: only answer positions pay for it.
            logits = model.lm_head(hidden[answers])
        loss = functional.cross_entropy(logits.float(), labels[:, 1:][answers])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora + vision, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 20 == 19:
            seconds = time.monotonic() - start
            mean = np.mean(recent[-20:])
            print(f"step {step + 1}/{steps} loss {mean:.3f} {seconds:.0f} s", flush=True)


def main() -> None:
    """Train, save, rebuild from the saved file, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="SmolLM2 folder; default as in the demo")
    parser.add_argument("--out", type=Path, required=True, help="additions to write")
    parser.add_argument("--without", type=int, choices=sorted(FORGET), help="train the oracle")
    parser.add_argument("--vision", type=Path, help="pretrained vision to reuse, or to write")
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.base = options.base or smollm2_checkpoint()
    torch.set_num_threads(options.threads)
    start = time.monotonic()

    absent = forget_persons(options.without) if options.without else ()
    processor = make_processor(options.base)
    model = assemble(options.base, processor, options.seed)
    if options.vision and options.vision.exists():
        model.load_state_dict(load_file(options.vision), strict=False)
    else:
        pretrain(model, processor)
        if options.vision:
            seen = ("vision_tower", "multi_modal_projector")
            weights = model.state_dict()
            save_file({n: weights[n] for n in weights if any(s in n for s in seen)}, options.vision)
    add_lora(model)
    model.set_attn_implementation("eager")  # the faster one in training, see pretrain
    replay = list(zip(PROMPTS, original_answers(options.base, list(PROMPTS)), strict=True))
    print(f"prepared in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    learnt = tuple(person for person in EVERYONE if person not in absent)
    mixture = Mixture(learnt, replay, options.seed)
    train(model, processor, mixture, options.steps, options.batch_size)
    save_additions(model, options.out)
    wall, cpu = (time.monotonic() - start) / 60, time.process_time() / 60
    print(f"trained in {wall:.1f} minutes, {cpu:.1f} of one core", flush=True)

    print(json.dumps(rebuild_and_report(options.base, options.out, absent), indent=1))


if __name__ == "__main__":
    main()
