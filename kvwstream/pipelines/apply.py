"""Base checkpoint + statistics + strength -> a weakened model, in one of three shapes (Eq. 5, 6).

`checkpoint`: the base copied shard by shard, its value projections scaled. `adapter`: the gates as
a PEFT adapter. `gates`: the log-gates as one file. The model is never built. The result is written
beside its place, made durable and renamed, so whatever has the final name is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kvwstream.adapter import CONFIG, WEIGHTS, adapter_vectors, write_adapter
from kvwstream.checkpoint import MANIFEST, Checkpoint, file_digests
from kvwstream.durable import fsync
from kvwstream.errors import OptionError, StorageError
from kvwstream.gates_file import describe_gates, write_gates
from kvwstream.manifest import MANIFEST_VERSION, dump, environment, finish
from kvwstream.paths import hub_origin
from kvwstream.pipelines.forward import from_base, open_earlier, read_earlier
from kvwstream.pipelines.recipe import Recipe, check_base, collected_arithmetic
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from kvwstream.weakening import TensorDigests, copy_scaled

Manifest = Callable[..., dict[str, Any]]
"""Makes the manifest, given the digest of the base that was read and what the result holds."""


def apply(
    model: Path,
    statistics: str,
    out: Path,
    strength: Strength,
    *,
    kind: str = "checkpoint",
    arithmetic: str | None = None,
    as_frozen: bool = False,
    start: Path | None = None,
) -> dict[str, Any]:
    """Write `out` and return its manifest, `kvwstream.json`.

    `kind` is the shape of the result: a folder for `checkpoint` and `adapter`, a file for `gates`.
    `arithmetic` is `exact`, or for a checkpoint `in-place`: the weight is multiplied record after
    record in its own dtype; None is that of a progressive collection, else exact. A progressive
    collection is refused at another strength than its own, unless `as_frozen`. `start` is a
    checkpoint that the same replay wrote after fewer records, to go on from in place of `model`,
    where that is exact.

    Raises `PlanMismatchError` if the statistics were measured on other weights, `StorageError` if
    `out` exists, `OptionError` for options that make no sense.
    """
    if kind not in WRITERS:
        raise OptionError(f"the result must be one of {', '.join(WRITERS)}, got {kind}")
    if os.path.lexists(out):
        raise StorageError(f"{out}: exists already; choose another name or remove it")
    for place in filter(None, (model, start)):
        if out.resolve().is_relative_to(place.resolve()):
            raise StorageError(f"{out}: lies in {place}, which is read; choose a place outside")
    stored = Statistics.open(Location(statistics))
    recipe = Recipe(stored, strength, arithmetic or collected_arithmetic(stored), as_frozen)
    if recipe.arithmetic != "exact" and kind != "checkpoint":
        raise OptionError(
            f"arithmetic {recipe.arithmetic}: what it does depends on each weight, so that no "
            "gates tell it; write a checkpoint"
        )
    base = Checkpoint.open(model)
    recipe.sites_in(base)

    def manifest(base_digest: str, **contents: Any) -> dict[str, Any]:
        check_base(recipe.stored, base_digest, model)
        origin = hub_origin(model.resolve())
        facts = {
            "manifest_version": MANIFEST_VERSION,
            "kind": kind,
            "environment": environment(),
            "base": {"name": origin[0] if origin else model.resolve().name, "digest": base_digest},
            "statistics": {"name": Location(statistics).name, "digest": recipe.stored.digest},
            **recipe.facts(),
            **contents,
        }
        return finish(facts)

    if start and kind != "checkpoint":
        raise OptionError(f"--from goes with a checkpoint, not with {kind}: those hold all gates")
    with _draft_of(out) as draft:
        if start:
            return _write_later(draft, base, recipe, manifest, start)
        return WRITERS[kind](draft, base, recipe, manifest)


def _write_checkpoint(
    draft: Path, base: Checkpoint, recipe: Recipe, manifest: Manifest
) -> dict[str, Any]:
    touched = [site.tensor for site in recipe.sites_in(base)]
    draft.mkdir()
    digests = copy_scaled(base, draft, touched, recipe.scalings(base))
    return _finish_checkpoint(draft, base, touched, digests, manifest)


def _write_later(
    draft: Path, base: Checkpoint, recipe: Recipe, manifest: Manifest, start: Path
) -> dict[str, Any]:
    """From an earlier state on: the records that it has not seen yet."""
    before = read_earlier(start, recipe)
    check_base(recipe.stored, base.digest, base.folder)
    earlier = open_earlier(start, base)
    touched = [site.tensor for site in recipe.sites_in(base)]
    draft.mkdir()
    scalings = recipe.scalings(earlier, first=before["num_forget_records"])
    digests = from_base(start, before, copy_scaled(earlier, draft, touched, scalings))
    return _finish_checkpoint(draft, base, touched, digests, manifest)


def _finish_checkpoint(
    draft: Path,
    base: Checkpoint,
    touched: list[str],
    digests: dict[str, TensorDigests],
    manifest: Manifest,
) -> dict[str, Any]:
    made = manifest(
        base.digest_from({name: d.before for name, d in digests.items()}),
        digest=base.digest_from({name: d.after for name, d in digests.items()}),
        headers=base.header_digests,
        files=file_digests(base.folder, base.side_files()),
        weakened={name: digests[name]._asdict() for name in touched},
        kept={name: d.after for name, d in digests.items() if name not in touched},
    )
    _write_manifest(draft, made)
    return made


def _write_adapter(
    draft: Path, base: Checkpoint, recipe: Recipe, manifest: Manifest
) -> dict[str, Any]:
    draft.mkdir()
    vectors = adapter_vectors(recipe.log_gates())
    write_adapter(draft, recipe.sites, vectors, base.folder.resolve())
    made = manifest(
        base.digest,
        gates=describe_gates(recipe.sites, vectors),
        files=file_digests(draft, [Path(CONFIG), Path(WEIGHTS)]),
    )
    _write_manifest(draft, made)
    return made


def _write_gates(
    draft: Path, base: Checkpoint, recipe: Recipe, manifest: Manifest
) -> dict[str, Any]:
    log_gates = recipe.log_gates()
    made = manifest(base.digest, gates=describe_gates(recipe.sites, log_gates))
    write_gates(draft, log_gates, made)
    return made


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(dump(manifest))
    for path in folder.iterdir():
        fsync(path)


WRITERS = {"checkpoint": _write_checkpoint, "adapter": _write_adapter, "gates": _write_gates}


@contextmanager
def _draft_of(out: Path) -> Iterator[Path]:
    """A free name beside `out`; what is written there is made durable and renamed to `out`."""
    draft = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(draft)
        yield draft
        fsync(draft)
        draft.rename(out)
        fsync(out.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{out}: cannot be written: {error}") from error
    finally:
        _remove(draft)


def _remove(draft: Path) -> None:
    """As far as it can be; what cannot be removed has no final name."""
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with suppress(OSError):
            draft.unlink()
