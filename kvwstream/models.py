"""A model and its processor from a local folder or a hub id. Hub code is never executed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_torchvision_available

from kvwstream.errors import ModelError, OptionError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def load_model(folder: Path, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Model in eval mode; `dtype` auto is the checkpoint's own, `device` auto a GPU if present."""
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
        )
    except Exception as error:
        raise ModelError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error
    absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if absent:
        raise ModelError(
            f"{folder}: {len(absent)} weights are missing or of another shape, the first is "
            f"{absent[0]}; the model would run with random numbers in their place"
        )
    model.requires_grad_(False)
    return LoadedModel(model.eval().to(resolve_device(device)), processor, folder)


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


@contextmanager
def inference(model: PreTrainedModel, threads: int | None = None) -> Iterator[None]:
    """No gradients, eval mode, a fixed number of CPU threads; everything as before afterwards."""
    training, before = model.training, torch.get_num_threads()
    model.eval()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
        torch.set_num_threads(before)


def _auto_class(config: PretrainedConfig) -> Any:
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM
