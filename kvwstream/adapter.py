"""Gates as a PEFT adapter: (IA)^3 vectors on the input of the value projections.

Written byte for byte as PEFT reads it, without PEFT and without the model. Modules are named in
full, so that nothing else matches: no vision tower, no layer outside the range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from kvwstream.coefficients import Float64
from kvwstream.gates_file import read_tensors
from kvwstream.paths import hub_origin
from kvwstream.plan import Site
from kvwstream.reproducible import exp_negative

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_FIELDS = ("base_model_name_or_path", "revision", "auto_mapping")
"""Fields of the configuration that say where the base is, not what is done to it."""
PREFIX, SUFFIX = "base_model.model.", ".ia3_l"
Float32 = npt.NDArray[np.float32]


def adapter_vectors(log_gates: Mapping[str, Float64]) -> dict[str, Float32]:
    """(IA)^3 vectors by module path: gates rounded once to float32, shape (1, width)."""
    gates = {path: exp_negative(values) for path, values in log_gates.items()}
    return {path: values.astype(np.float32)[None] for path, values in gates.items()}


def adapter_config(axes: Mapping[str, int]) -> dict[str, Any]:
    """What PEFT must know of the modules, given the axis of each one's weight (`Site.axis`)."""
    paths = sorted(axes)
    return {
        "peft_type": "IA3",
        "task_type": None,
        "inference_mode": True,
        "init_ia3_weights": True,
        "target_modules": paths,
        "feedforward_modules": paths,
        "fan_in_fan_out": 0 in axes.values(),
        "modules_to_save": None,
    }


def base_reference(base: Path) -> dict[str, Any]:
    """Where PEFT finds the base model, and its class, for who loads both by the adapter alone."""
    name, revision = hub_origin(base) or (str(base), None)
    try:
        (architecture,) = json.loads((base / "config.json").read_text())["architectures"]
        mapping = {"base_model_class": architecture, "parent_library": "transformers"}
    except (OSError, ValueError, KeyError, TypeError):  # it can still be put on a loaded model
        mapping = None
    values = (name, revision, mapping)
    return dict(zip(BASE_FIELDS, values, strict=True))


def write_adapter(
    folder: Path, sites: Sequence[Site], vectors: Mapping[str, Float32], base: Path
) -> None:
    """Write the adapter's two files; `base` is the folder of the base checkpoint."""
    config = base_reference(base) | adapter_config({site.path: site.axis for site in sites})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {f"{PREFIX}{path}{SUFFIX}": values for path, values in vectors.items()}
    (folder / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))


def read_vectors(folder: Path) -> dict[str, Float32]:
    """The (IA)^3 vectors by module path; `DamageError` if the file cannot be read."""
    _, tensors = read_tensors(folder / WEIGHTS)
    return {name.removeprefix(PREFIX).removesuffix(SUFFIX): v for name, v in tensors.items()}
