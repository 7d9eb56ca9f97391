"""Base checkpoint + statistics + gamma + layers -> weakened checkpoint (Eq. 5 and 6).

Streamed shard by shard; the model is never built. The result is written beside its place, made
durable and renamed, so whatever has the final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import kvwstream
from kvwstream.accessor import LayerRange, check_gamma, vector_gates
from kvwstream.checkpoint import MANIFEST, Checkpoint, file_digests, match_tensors
from kvwstream.durable import fsync
from kvwstream.errors import PlanMismatchError, StorageError
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.weakening import Scaling, copy_scaled

MANIFEST_VERSION = 1


def apply(
    model: Path, statistics: str, out: Path, *, gamma: float, layers: LayerRange
) -> dict[str, Any]:
    """Write the weakened checkpoint `out` and return its manifest, `kvwstream.json`.

    `gamma` scales the exponent S; `layers` are inclusive. Raises `PlanMismatchError` if the
    statistics were measured on other weights, `StorageError` if `out` exists, `OptionError` for
    gamma or layers that make no sense.
    """
    check_gamma(gamma)
    if os.path.lexists(out):
        raise StorageError(f"{out}: exists already; choose another name or remove it")
    if out.resolve().is_relative_to(model.resolve()):
        raise StorageError(f"{out}: lies in the base checkpoint; choose a place outside of it")
    stored = Statistics.open(Location(statistics))
    checkpoint = Checkpoint.open(model)
    scalings = scalings_for(checkpoint, stored, gamma, layers)

    draft = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        digests = copy_scaled(checkpoint, draft, scalings)
        before = checkpoint.digest_from({name: d.before for name, d in digests.items()})
        check_base(stored, before, model)
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "kvwstream": kvwstream.__version__,
            "base": {"name": model.resolve().name, "digest": before},
            "statistics": {"name": Path(statistics).name, "digest": stored.digest},
            "gamma": gamma,
            "layers": str(layers),
            "schedule": stored.attributes["model"]["schedule"],
            "arithmetic": "exact",
            "num_forget_records": stored.num_forget_records,
            "digest": checkpoint.digest_from({name: d.after for name, d in digests.items()}),
            "headers": checkpoint.header_digests,
            "files": file_digests(model, checkpoint.side_files()),
            "weakened": {
                name: {"before": digests[name].before, "after": digests[name].after}
                for name in scalings
            },
            "kept": {name: d.after for name, d in digests.items() if name not in scalings},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        fsync(draft / MANIFEST)
        fsync(draft)
        draft.rename(out)
        fsync(out.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def scalings_for(
    checkpoint: Checkpoint, stored: Statistics, gamma: float, layers: LayerRange
) -> dict[str, Scaling]:
    """The gates of every tensor within `layers`; `PlanMismatchError` if it is another model."""
    missing = [site.tensor for site in stored.sites if site.tensor not in checkpoint.tensors]
    if missing:
        raise PlanMismatchError(
            f"{checkpoint.folder}: has no tensor {missing[0]}; {stored.location.url} was measured "
            "on another model"
        )
    sites = match_tensors(stored.sites, checkpoint)
    values = vector_gates(sites, stored.exponent(), gamma, layers)
    return {
        site.tensor: Scaling(site.axis, values[site.vectors])
        for site in sites
        if site.layer in layers
    }


def check_base(stored: Statistics, digest: str, model: Path) -> None:
    """`PlanMismatchError` unless `digest` is that of the weights that were measured."""
    if digest != stored.model_digest:
        raise PlanMismatchError(
            f"{stored.location.url}: measured on weights {stored.model_digest[:12]}…, but {model} "
            f"has {digest[:12]}…; statistics fit the very weights they were measured on"
        )
