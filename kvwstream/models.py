"""A model and its processor from a local folder or a hub id. Hub code is never executed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch.utils import deterministic
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_torchvision_available

import kvwstream
from kvwstream.errors import ModelError, OptionError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

BLOCK = 64
"""Weights that bitsandbytes rounds together."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, its processor and the folder they came from."""

    model: PreTrainedModel
    processor: Any
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return torch.device(self.model.device)


def load_config(folder: Path) -> PretrainedConfig:
    """The model's configuration; `ModelError` if there is none or it needs code from the hub."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises a dozen kinds; all mean the same to the reader
        raise ModelError(f"{folder}: {first_line(error)}") from error


def load_processor(folder: Path, config: PretrainedConfig) -> Any:
    """Tokenizer of a language model, processor of a vision-language model."""
    multimodal = is_multimodal(config)
    loader = AutoProcessor if multimodal else AutoTokenizer
    try:
        return loader.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = first_line(error)
        words = ("torchvision", "video processor")
        if not is_torchvision_available() and any(w in str(error).lower() for w in words):
            reason = "it needs the package torchvision: pip install torchvision"
        kind = "processor" if multimodal else "tokenizer"
        raise ModelError(f"{folder}: its {kind} cannot be loaded: {reason}") from error


def load_model(
    folder: Path,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    bits: int | None = None,
) -> LoadedModel:
    """Model in eval mode; `dtype` auto is the checkpoint's own, `device` auto a GPU if present.

    `device_map` (auto, balanced, sequential: the package accelerate) spreads the layers over every
    GPU that the process sees; then `device` is not used. `bits` 8 or 4 rounds the weights of the
    linear layers, the output layer apart, by the package bitsandbytes (LLM.int8 or NF4).
    """
    config = load_config(folder)
    processor = load_processor(folder, config)
    try:
        model, info = _auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=resolve_dtype(dtype, config),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_placed(config, dtype, device, device_map, bits),
        )
    except Exception as error:
        raise ModelError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise ModelError(
            f"{folder}: {len(absent)} weights are missing or of another shape, the first is "
            f"{absent[0]}; the model would run with random numbers in their place"
        )
    model.requires_grad_(False).eval()
    if bits == 4 and model.device.type == "cpu":
        _check_blocks(model, folder)
    if bits is None and device_map is None:
        model.to(resolve_device(device))
    elif any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"{folder}: does not fit into the memory that --device-map {device_map} found, weights "
            "would be read from disk in every pass; give the worker more GPUs"
        )
    return LoadedModel(model, processor, folder)


def _placed(
    config: PretrainedConfig, dtype: str, device: str, device_map: str | None, bits: int | None
) -> dict[str, Any]:
    """Where `from_pretrained` puts the weights; quantised ones cannot be moved later."""
    if bits is None:
        return {"device_map": device_map}
    # LLM.int8 multiplies in float16 and says so at every layer of every pass.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    how = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=resolve_dtype(dtype, config),
    )
    return {"device_map": {"": resolve_device(device)}, "quantization_config": how}


def _check_blocks(model: PreTrainedModel, folder: Path) -> None:
    """`ModelError` where bitsandbytes could not pack 4-bit weights for a CPU, at the first pass."""
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit" and (width := int(module.in_features)) % BLOCK:
            raise ModelError(
                f"{folder}: {name} takes {width} channels, and 4 bits on a CPU need a multiple of "
                f"{BLOCK}; use a GPU, or leave --deployment out"
            )


def model_skeleton(folder: Path) -> PreTrainedModel:
    """The module tree without weights (meta device): enough to find sites."""
    config = load_config(folder)
    try:
        with torch.device("meta"):
            model = _auto_class(config).from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder}: no such model can be built: {first_line(error)}") from error
    return cast(PreTrainedModel, model)


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU; `OptionError` for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {device}: not available here ({first_line(error)})") from error
    return torch.device(device)


def resolve_dtype(dtype: str, config: PretrainedConfig) -> torch.dtype:
    """`auto` is the dtype that the configuration names, float32 where it names none."""
    if dtype == "auto":
        return getattr(config, "dtype", None) or config.get_text_config().dtype or torch.float32
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype}: choose auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def attention_of(config: PretrainedConfig) -> str:
    """The attention implementation that a model of this config runs; it can change bits."""
    return str(config._attn_implementation)


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the model takes images beside text."""
    return hasattr(config, "vision_config")


def environment_of(device: torch.device) -> dict[str, str]:
    """What may change the bits of a forward pass beside the plan: versions and kind of device."""
    kind = device.type
    if kind == "cuda":
        kind += f" {torch.cuda.get_device_name(device)}"
    elif kind == "cpu":
        kind += f" {torch.backends.cpu.get_cpu_capability()}"
    return {
        "kvwstream": kvwstream.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": kind,
    }


@contextmanager
def inference(model: PreTrainedModel, threads: int | None = None) -> Iterator[None]:
    """No gradients, eval mode, reproducible kernels, a fixed number of CPU threads.

    Deterministic algorithms are on and TF32 is off, so that the same inputs give the same bits;
    everything is as before afterwards.
    """
    training, before = model.training, torch.get_num_threads()
    model.eval()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with _deterministic(), torch.inference_mode():
            yield
    finally:
        model.train(training)
        torch.set_num_threads(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    memory: Any = deterministic
    settings = [
        (matmul, "allow_tf32", False),
        (cudnn, "allow_tf32", False),
        (memory, "fill_uninitialized_memory", False),  # nothing reads it; filling takes time
    ]
    before = [getattr(owner, name) for owner, name, _ in settings]
    on = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn)
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def _auto_class(config: PretrainedConfig) -> Any:
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM
