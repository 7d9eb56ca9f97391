"""Tables of faults: the name of a damage, a vandal that does it, and what `audit` must say of it.

A vandal gets the folder of a store, of statistics or of a weakened checkpoint (a copy) and leaves
it damaged. The tables hold ways in which disks, copies, hands and liars are known to do harm; that
every single file matters is tested beside them, without a table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from safetensors import numpy as numbers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kvwstream.adapter import CONFIG, WEIGHTS
from kvwstream.canonical import canonical_json, digest_of
from kvwstream.checkpoint import INDEX, MANIFEST, Checkpoint
from kvwstream.stores.arrays import digest_array

PART = "parts/000001"
OTHER = "parts/000002"
SUMS = ("abs_sum", "signed_sum", "square_sum")
ARRAYS = (*SUMS, "token_count")


class Fault(NamedTuple):
    """A damage and the finding that must name it."""

    name: str
    damage: Callable[[Path], object]
    finding: str
    """Regular expression that one finding must match."""
    given: tuple[str, ...] = ()
    """What `audit` needs beside the path to find it: `stores`, `base`, `statistics`."""


# Tools of vandals


def flip(file: Path, at: float = 0.5, bit: int = 0) -> None:
    """Change one bit, `at` a fraction of the file."""
    content = bytearray(file.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 1 << bit
    file.write_bytes(content)


def truncate(file: Path, keep: float) -> None:
    """Keep the first bytes only, at least one less than there were."""
    content = file.read_bytes()
    file.write_bytes(content[: min(int(keep * len(content)), len(content) - 1)])


def edit_json(file: Path, edit: Callable[[Any], object]) -> None:
    """Rewrite a JSON file with its value changed in place, spelt as kvwstream spells."""
    value = json.loads(file.read_text())
    edit(value)
    file.write_bytes(canonical_json(value))


def edit_array(folder: Path, edit: Callable[[Any], object]) -> None:
    """Rewrite a Zarr array, checksums and all, with its values changed in place."""
    array = zarr.open_array(folder, mode="r+")
    values = np.asarray(array[...])
    edit(values)
    array[...] = values


def seal_of(part: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    edit_json(part / "zarr.json", lambda document: edit(document["attributes"]["seal"]))


def attributes_of(group: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    edit_json(group / "zarr.json", lambda document: edit(document["attributes"]))


def forge(part: Path, array: str, edit: Callable[[Any], object]) -> None:
    """Change an array and seal the part anew, as one who wants to deceive would."""
    edit_array(part / array, edit)

    def reseal(seal: dict[str, Any]) -> None:
        for name in seal["sha256"]:
            seal["sha256"][name] = digest_array(zarr.open_array(part / name, mode="r")[...])
        counts = zarr.open_array(part / "token_count", mode="r")[...]
        seal["num_tokens"] = int(counts.max(axis=1).sum())

    seal_of(part, reseal)


def forge_statistics(group: Path, name: str, edit: Callable[[Any], object]) -> None:
    """Change an array of statistics and its digest with it."""
    forge_table(group, name, lambda array: edit_array(array, edit))


def forge_table(table: Path, column: str, edit: Callable[[Path], object]) -> None:
    """Change a column of a table and its digest with it."""
    edit(table / column)
    digest = digest_array(np.asarray(zarr.open_array(table / column, mode="r")[...]))
    attributes_of(table, lambda attributes: attributes["sha256"].update({column: digest}))


def put(index: Any, value: Any) -> Callable[[Any], object]:
    """Set one element."""
    return lambda values: values.__setitem__(index, value)


def add(index: Any, value: Any) -> Callable[[Any], object]:
    """Add to one element."""
    return lambda values: values.__setitem__(index, values[index] + value)


def swap_seals(store: Path) -> None:
    one, two = (store / part / "zarr.json" for part in (PART, OTHER))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def copy_over(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def resize(folder: Path, length: int) -> None:
    zarr.open_array(folder, mode="r+").resize(length)


def edit_plan(field: str, value: Any) -> Callable[[Path], None]:
    return lambda store: attributes_of(store, lambda a: a["plan"].update({field: value}))


def flip_tensor(folder: Path, name: str) -> None:
    tensor = Checkpoint.open(folder).tensors[name]
    file = folder / tensor.shard
    content = bytearray(file.read_bytes())
    content[tensor.stop - 1] ^= 1
    file.write_bytes(content)


def edit_shard(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of the shard that holds `name`; the index is kept in step."""
    shard = Checkpoint.open(folder).tensors[name].shard
    tensors = load_file(folder / shard)
    edit(tensors)
    save_file(tensors, folder / shard, {"format": "pt"})

    def reindex(index: dict[str, Any]) -> None:
        others = {n: s for n, s in index["weight_map"].items() if s != shard}
        index["weight_map"] = others | dict.fromkeys(tensors, shard)

    edit_json(folder / INDEX, reindex)


def forge_tensor(folder: Path, name: str, factor: float) -> None:
    """Scale a weakened tensor once more and make the manifest agree."""
    edit_shard(folder, name, lambda tensors: tensors[name].mul_(factor))
    forged = Checkpoint.open(folder)

    def agree(manifest: dict[str, Any]) -> None:
        manifest["weakened"][name]["after"] = forged.tensor_digests[name]
        manifest["digest"] = forged.digest
        close(manifest)

    edit_json(folder / MANIFEST, agree)


def close(manifest: dict[str, Any]) -> None:
    """Make the manifest's own digest agree with what it says now."""
    manifest.pop("sha256")
    manifest["sha256"] = digest_of(manifest)


def edit_gates(file: Path, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Rewrite a gates file with its tensors and its manifest changed in place."""
    with safe_open(file, "np") as opened:
        manifest = json.loads(opened.metadata()[MANIFEST])
    tensors = numbers.load_file(file)
    edit(tensors, manifest)
    file.write_bytes(numbers.save(tensors, {MANIFEST: json.dumps(manifest)}))


def edit_vectors(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite an adapter's tensors; its manifest agrees with the file, not with the gates in it."""
    tensors = numbers.load_file(folder / WEIGHTS)
    edit(tensors)
    (folder / WEIGHTS).write_bytes(numbers.save(tensors, {"format": "pt"}))
    agree_on_files(folder)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite an adapter's configuration; its manifest agrees with the file."""
    edit_json(folder / CONFIG, edit)
    agree_on_files(folder)


def agree_on_files(folder: Path) -> None:
    def agree(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        close(manifest)

    edit_json(folder / MANIFEST, agree)


def forge_gate(tensors: dict[str, Any], manifest: dict[str, Any], edit: Any = None) -> None:
    """Change the gates of a site, and all digests with them, as one who wants to deceive would."""
    name = f"base_model.model.{SITE}.ia3_l" if SITE not in tensors else SITE
    tensors[name] = (edit or (lambda values: values / 2))(tensors[name])
    manifest["gates"][SITE]["sha256"] = hashlib.sha256(tensors[name].tobytes()).hexdigest()
    close(manifest)


def forge_vectors(folder: Path, edit: Any = None) -> None:
    tensors = numbers.load_file(folder / WEIGHTS)
    edit_json(folder / MANIFEST, lambda manifest: forge_gate(tensors, manifest, edit))
    edit_vectors(folder, lambda old: old.update(tensors))


def gates_say(field: str, value: Any) -> Callable[[Path], None]:
    """A gates file whose manifest was changed, its own digest with it."""

    def lie(tensors: dict[str, Any], manifest: dict[str, Any]) -> None:
        manifest[field] = value
        close(manifest)

    return lambda file: edit_gates(file, lie)


def adapter_says(field: str, value: Any) -> Callable[[Path], None]:
    """An adapter whose manifest was changed, its own digest with it."""

    def lie(manifest: dict[str, Any]) -> None:
        manifest[field] = value
        close(manifest)

    return lambda folder: edit_json(folder / MANIFEST, lie)


def manifest(field: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / MANIFEST, lambda m: m.update({field: value}))


def without(field: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / MANIFEST, lambda m: m.pop(field))


# The tables

STORE = [
    Fault("deleted seal", lambda s: (s / PART / "zarr.json").unlink(), rf"{PART}: missing seal"),
    Fault(
        "garbage seal",
        lambda s: (s / PART / "zarr.json").write_text("{"),
        rf"{PART}: its seal is missing or unreadable",
    ),
    Fault(
        "seal without digests",
        lambda s: seal_of(s / PART, lambda seal: seal.pop("sha256")),
        rf"{PART}: its seal is missing or unreadable",
    ),
    Fault(
        "seal of another plan",
        lambda s: seal_of(s / PART, lambda seal: seal.update(plan="0" * 64)),
        rf"{PART}: its seal says plan '0+', the plan says",
    ),
    Fault(
        "seal that counts wrong",
        lambda s: seal_of(s / PART, lambda seal: seal.update(num_tokens=1)),
        rf"{PART}: its seal says another number of tokens than token_count",
    ),
    Fault("seals swapped", swap_seals, rf"{PART}: its seal says number 2, the plan says 1"),
    Fault(
        "part copied over another",
        lambda s: copy_over(s / OTHER, s / PART),
        rf"{PART}: its seal says number 2, the plan says 1",
    ),
    Fault(
        "array of another part",
        lambda s: copy_over(s / OTHER / "abs_sum", s / PART / "abs_sum"),
        rf"{PART}/abs_sum: is not what the seal says",
    ),
    *(
        Fault(
            f"flipped bit in {array} at {at}",
            lambda s, array=array, at=at: flip(s / PART / array / "c/0/0", at),
            rf"{PART}/{array}: cannot be decoded",
        )
        for array in ARRAYS
        for at in (0, 0.5, 1)
    ),
    *(
        Fault(
            f"{array} truncated to {keep}",
            lambda s, array=array, keep=keep: truncate(s / PART / array / "c/0/0", keep),
            rf"{PART}/{array}: (cannot be decoded|is not what the seal says)",
        )
        for array in ARRAYS
        for keep in (0, 0.01, 0.5, 1)
    ),
    *(
        Fault(
            f"deleted chunk of {array}",
            lambda s, array=array: (s / PART / array / "c/0/0").unlink(),
            rf"{PART}/{array}/c/0/0: missing",
        )
        for array in ARRAYS
    ),
    *(
        Fault(
            f"deleted metadata of {array}",
            lambda s, array=array: (s / PART / array / "zarr.json").unlink(),
            rf"{PART}/{array}/zarr.json: missing",
        )
        for array in ARRAYS
    ),
    Fault(
        "garbage metadata",
        lambda s: (s / PART / "abs_sum/zarr.json").write_text("[]"),
        rf"{PART}/zarr.json: changed, or metadata of its arrays are",
    ),
    Fault(
        "deleted array",
        lambda s: shutil.rmtree(s / PART / "square_sum"),
        rf"{PART}/square_sum: is missing",
    ),
    Fault(
        "edited array with right checksums",
        lambda s: edit_array(s / PART / "abs_sum", add((0, 5), 1)),
        rf"{PART}/abs_sum: is not what the seal says",
    ),
    Fault(
        "counts edited and resealed",
        lambda s: forge(s / PART, "token_count", add((1, 0), 1)),
        rf"{PART}: record 4 counts \[\d+, \d+, \d+\]… tokens, its examples have \d+",
    ),
    *(
        Fault(
            f"{value} in {array}, resealed",
            lambda s, array=array, value=value: forge(s / PART, array, put((2, 7), value)),
            rf"{PART}/{array}: holds values that are not finite",
        )
        for array in SUMS
        for value in (np.nan, np.inf, -np.inf)
    ),
    Fault(
        "negative sum of absolute values, resealed",
        lambda s: forge(s / PART, "abs_sum", put((0, 0), -1)),
        rf"{PART}/abs_sum: holds values that no coefficients give",
    ),
    Fault(
        "extra part",
        lambda s: shutil.copytree(s / PART, s / "parts/000009"),
        r"parts/000009/zarr\.json: extra",
    ),
    Fault("extra file", lambda s: (s / "notes.txt").write_text("x"), r"notes\.txt: extra"),
    Fault(
        "extra file in a part",
        lambda s: (s / PART / "abs_sum/c/0/1").write_text("x"),
        rf"{PART}/abs_sum/c/0/1: extra",
    ),
    Fault(
        "parts exchanged for a file",
        lambda s: (shutil.rmtree(s / PART), (s / PART).write_text("")),
        rf"{PART}: missing seal",
    ),
    Fault(
        "edited plan",
        edit_plan("seed", 1),
        r"parts/000000: its seal says plan '\w+', the plan says '\w+'",
    ),
    Fault(
        "plan of fewer examples",
        edit_plan("num_examples", 9),
        r"parts/000003/zarr\.json: extra",
    ),
    Fault(
        "plan with a senseless value", edit_plan("tokens", "none"), r"the plan is damaged: tokens"
    ),
    Fault("plan with text for a number", edit_plan("part_size", "3"), r"the plan is damaged"),
    Fault(
        "plan with an unknown field", edit_plan("mood", "good"), r"damaged: .* unknown \['mood'\]"
    ),
    Fault(
        "other format version",
        edit_plan("format_version", 1),
        r"store format version 1: this kvwstream reads and writes version 3",
    ),
    Fault(
        "no plan",
        lambda s: (s / "zarr.json").unlink(),
        r"retain\.zarr: no store, no statistics",
    ),
    Fault(
        "garbage for a plan",
        lambda s: (s / "zarr.json").write_text("garbage"),
        r"retain\.zarr: no Zarr group with attributes is there",
    ),
    Fault(
        "edited sites table",
        lambda s: edit_array(s / "sites/layer", put(0, 2)),
        r"retain\.zarr/sites: changed, not as digested: layer$",
    ),
    Fault(
        "forged sites table",
        lambda s: forge_table(s / "sites", "layer", lambda a: edit_array(a, put(0, 2))),
        r"retain\.zarr/sites: changed, its digest is not the plan's",
    ),
    Fault(
        "shortened sites table",
        lambda s: forge_table(s / "sites", "layer", lambda a: resize(a, 1)),
        r"retain\.zarr/sites: .*unlike lengths",
    ),
    Fault(
        "deleted column of sites",
        lambda s: shutil.rmtree(s / "sites/width"),
        r"sites/width: is missing",
    ),
    Fault(
        "edited examples table",
        lambda s: edit_array(s / "examples/digest", put((0, 0), 1)),
        r"retain\.zarr/examples: changed, not as digested: digest$",
    ),
    Fault(
        "forged examples table",
        lambda s: forge_table(s / "examples", "digest", lambda a: edit_array(a, put((0, 0), 1))),
        r"retain\.zarr/examples: changed, its digest is not the plan's",
    ),
    Fault(
        "edited number of positions",
        lambda s: edit_array(s / "examples/num_positions", add(0, 1)),
        r"retain\.zarr/examples: changed, not as digested: num_positions$",
    ),
    Fault(
        "forged number of positions",
        lambda s: forge_table(s / "examples", "num_positions", lambda a: edit_array(a, add(0, 1))),
        r"parts/000000: record 0 counts \[\d+, \d+, \d+\]… tokens, its examples have \d+",
    ),
    Fault(
        "edited id of an example",
        lambda s: edit_array(s / "examples/id", put(0, "another")),
        r"retain\.zarr/examples: changed, not as digested: id$",
    ),
    Fault(
        "edited number of tokens",
        lambda s: edit_array(s / "examples/num_tokens", add(0, 1)),
        r"retain\.zarr/examples: changed, not as digested: num_tokens$",
    ),
    Fault(
        "shortened examples table",
        lambda s: forge_table(s / "examples", "num_positions", lambda a: resize(a, 2)),
        r"retain\.zarr/examples: .*unlike lengths",
    ),
    Fault(
        "flipped bit in the ids",
        lambda s: flip(s / "examples/id/c/0"),
        r"examples/id: cannot be decoded",
    ),
    Fault(
        "deleted marker of the tables",
        lambda s: (s / "parts/zarr.json").unlink(),
        r"parts/zarr\.json: missing",
    ),
]

FIRST_REVISION, SECOND_REVISION = (f"revisions/{number:06d}" for number in (1, 2))


def revision(number: int, /, **values: Any) -> Callable[[Path], None]:
    """Change values of a revision, as one who wants to deceive would."""
    group = f"revisions/{number:06d}"
    return lambda store: attributes_of(store / group, lambda a: a["revision"].update(values))


def drop_first(store: Path) -> None:
    """Forget the first withdrawal within the second, as if the example had come back."""

    def shrink(attributes: dict[str, Any]) -> None:
        (first,) = json.loads((store / FIRST_REVISION / "zarr.json").read_text())["attributes"][
            "revision"
        ]["removed"]
        at = attributes["revision"]["removed"].index(first)
        del attributes["revision"]["removed"][at], attributes["revision"]["digests"][at]

    attributes_of(store / SECOND_REVISION, shrink)


UNSOUND = "damaged: it does not follow from the store and the revision before it"

REVISED = [
    *(
        Fault(
            f"flipped bit in revision {number} at {at}",
            lambda s, number=number, at=at: flip(s / f"revisions/{number:06d}/zarr.json", at),
            rf"revisions/{number:06d}",
        )
        for number in (1, 2)
        for at in (0.3, 0.6, 0.9)
    ),
    Fault(
        "deleted first revision",
        lambda s: shutil.rmtree(s / FIRST_REVISION),
        rf"{FIRST_REVISION}: nothing is there",
    ),
    Fault(
        "deleted group of the revisions",
        lambda s: (s / "revisions/zarr.json").unlink(),
        r"revisions/zarr\.json: missing",
    ),
    Fault("a withdrawn example comes back", drop_first, rf"{SECOND_REVISION}: {UNSOUND}"),
    Fault(
        "an example beyond the store",
        revision(1, removed=[99], digests=["0" * 64]),
        rf"{FIRST_REVISION}: {UNSOUND}",
    ),
    Fault(
        "an example before the store",
        revision(1, removed=[-1], digests=["0" * 64]),
        rf"{FIRST_REVISION}: {UNSOUND}",
    ),
    Fault(
        "another example's digest",
        revision(1, digests=["0" * 64]),
        rf"{FIRST_REVISION}: {UNSOUND}",
    ),
    Fault(
        "nothing withdrawn", revision(2, removed=[], digests=[]), rf"{SECOND_REVISION}: {UNSOUND}"
    ),
    Fault("revision of another plan", revision(1, plan="0" * 64), rf"{FIRST_REVISION}: {UNSOUND}"),
    Fault("another number", revision(2, number=3), rf"{SECOND_REVISION}: {UNSOUND}"),
    Fault("no revision before it", revision(2, previous=None), rf"{SECOND_REVISION}: {UNSOUND}"),
    Fault("positions that are text", revision(1, removed=["a"]), r"000001: not a revision: "),
    Fault("an unknown field", revision(1, mood="good"), r"000001: not a revision: .*mood"),
    Fault(
        "the first revision a second time",
        lambda s: copy_over(s / FIRST_REVISION, s / SECOND_REVISION),
        rf"{SECOND_REVISION}: {UNSOUND}",
    ),
    Fault(
        "a revision left out",
        lambda s: (s / SECOND_REVISION).rename(s / "revisions/000003"),
        rf"{SECOND_REVISION}: nothing is there",
    ),
    Fault(
        "extra file beside a revision",
        lambda s: (s / FIRST_REVISION / "x").write_text(""),
        rf"{FIRST_REVISION}/x: extra",
    ),
]

STATISTICS = [
    *(
        Fault(
            f"flipped bit in {name}",
            lambda s, name=name: flip(next(f for f in (s / name / "c").rglob("*") if f.is_file())),
            rf"statistics\.zarr/{name}: cannot be decoded",
        )
        for name in ("retain_mean", "forget_mean", "accessor", "exponent", "tensor", "channel")
    ),
    *(
        Fault(
            f"missing {name}",
            lambda s, name=name: shutil.rmtree(s / name),
            rf"statistics\.zarr/{name}: is missing",
        )
        for name in ("retain_standard_error", "accessor", "site", "examples")
    ),
    Fault(
        "missing chunk",
        lambda s: (s / "exponent/c/0").unlink(),
        r"statistics\.zarr/exponent: is not what the group's digest says",
    ),
    Fault(
        "edited array",
        lambda s: edit_array(s / "accessor", add((1, 3), 0.5)),
        r"statistics\.zarr/accessor: is not what the group's digest says",
    ),
    Fault(
        "missing digest",
        lambda s: attributes_of(s, lambda a: a["sha256"].pop("accessor")),
        r"statistics\.zarr: the digest of accessor is missing",
    ),
    Fault(
        "no digests",
        lambda s: attributes_of(s, lambda a: a.pop("sha256")),
        r"statistics\.zarr: attributes missing or damaged: sha256$",
    ),
    Fault(
        "no sources",
        lambda s: attributes_of(s, lambda a: a.pop("sources")),
        r"statistics\.zarr: attributes missing or damaged: sources$",
    ),
    Fault(
        "sources of another shape",
        lambda s: attributes_of(s, lambda a: a.update(sources=[{"name": "retain.zarr"}])),
        r"statistics\.zarr: attributes missing or damaged: sources$",
    ),
    Fault(
        "extra array", lambda s: shutil.copytree(s / "layer", s / "mood"), r"mood/zarr.json: extra"
    ),
    Fault(
        "no group", lambda s: (s / "zarr.json").unlink(), r"statistics\.zarr: no store, no statist"
    ),
    Fault(
        "garbage for a group",
        lambda s: (s / "zarr.json").write_text("[]"),
        r"statistics\.zarr: no Zarr group with attributes is there",
    ),
    Fault(
        "other format version",
        lambda s: attributes_of(s, lambda a: a.update(format_version=0)),
        r"statistics of format version 0; this kvwstream reads version 3",
    ),
    Fault(
        "edited model digest",
        lambda s: attributes_of(s, lambda a: a["model"].update(model_digest="0" * 64)),
        r"derived anew from the stores, these differ: model$",
        ("stores",),
    ),
    Fault(
        "edited number of records",
        lambda s: attributes_of(s, lambda a: a.update(num_retain_records=12)),
        r"derived anew from the stores, these differ: num_retain_records$",
        ("stores",),
    ),
    Fault(
        "edited plan of a source",
        lambda s: attributes_of(s, lambda a: a["sources"][1]["plan"].update(seed=1)),
        r"derived anew from the stores, these differ: sources$",
        ("stores",),
    ),
    Fault(
        "edited role of a source",
        lambda s: attributes_of(s, lambda a: a["sources"][0].update(role="forget")),
        r"statistics\.zarr: damaged: none of its sources is to retain",
        ("stores",),
    ),
    Fault(
        "forged accessor",
        lambda s: forge_statistics(s, "accessor", add((1, 3), 0.5)),
        r"derived anew from the stores, these differ: accessor$",
        ("stores",),
    ),
    Fault(
        "forged exponent",
        lambda s: forge_statistics(s, "exponent", add(3, 0.5)),
        r"derived anew from the stores, these differ: exponent$",
        ("stores",),
    ),
    Fault(
        "forged last bit of the retain mean",
        lambda s: forge_statistics(s, "retain_mean", lambda v: np.nextafter(v, 9, out=v)),
        r"derived anew from the stores, these differ: retain_mean$",
        ("stores",),
    ),
    Fault(
        "forged name of a tensor",
        lambda s: forge_statistics(s, "tensor", put(0, "model.layers.1.mlp.down_proj.weight")),
        r"derived anew from the stores, these differ: tensor$",
        ("stores",),
    ),
    Fault(
        "forged name of an example",
        lambda s: forge_statistics(s, "examples", put(0, "somebody else's")),
        r"derived anew from the stores, these differ: examples$",
        ("stores",),
    ),
]

FIRST = "model.layers.0.mlp.down_proj.weight"
KEPT = "model.layers.2.mlp.down_proj.weight"
NORM = "model.norm.weight"

SITE = "model.layers.0.mlp.down_proj"
SHAPE = (("power", 2.0), ("threshold", 0.01), ("accessor", "running"), ("shape", "energy"))

WEAKENED = [
    Fault("bit of a weakened tensor", lambda w: flip_tensor(w, FIRST), rf"tensor {FIRST}: changed"),
    Fault("bit of a kept tensor", lambda w: flip_tensor(w, NORM), rf"tensor {NORM}: changed"),
    Fault(
        "missing tensor",
        lambda w: edit_shard(w, NORM, lambda t: t.pop(NORM)),
        rf"tensor {NORM}: missing",
    ),
    Fault(
        "extra tensor",
        lambda w: edit_shard(w, NORM, lambda t: t.update(extra=t[NORM].clone())),
        r"tensor extra: extra",
    ),
    Fault(
        "another shape of the same bytes",
        lambda w: edit_shard(w, NORM, lambda t: t.update({NORM: t[NORM].reshape(4, 8)})),
        rf"weak: a dtype, a shape or the digest in {MANIFEST} is changed",
    ),
    Fault(
        "missing shard",
        lambda w: next(w.glob("*-00002-of-*")).unlink(),
        r"weak: shards named by .* are missing: model-00002-of-\d+\.safetensors",
    ),
    Fault(
        "truncated shard",
        lambda w: truncate(next(w.glob("*-00002-of-*")), 0.7),
        r"model-00002-of-\d+\.safetensors: truncated, .* ends beyond the file",
    ),
    Fault(
        "empty shard",
        lambda w: truncate(next(w.glob("*-00002-of-*")), 0),
        r"model-00002-of-\d+\.safetensors: not a safetensors file",
    ),
    Fault(
        "index of another checkpoint",
        lambda w: edit_json(w / INDEX, lambda i: i["weight_map"].pop(NORM)),
        rf"shards do not match .* the first is {NORM}",
    ),
    Fault("no manifest", lambda w: (w / MANIFEST).unlink(), rf"weak: no store.* no {MANIFEST}"),
    Fault(
        "garbage manifest", lambda w: (w / MANIFEST).write_text("{"), rf"weak/{MANIFEST}: damaged"
    ),
    Fault(
        "manifest of another version",
        manifest("manifest_version", 9),
        rf"weak/{MANIFEST}: manifest version 9, expected 3",
    ),
    *(
        Fault(f"manifest without {field}", without(field), rf"weak/{MANIFEST}: damaged: .*{field}")
        for field in ("digest", "weakened", "kept", "base", "statistics", "gamma", "layers")
    ),
    *(
        Fault(
            f"manifest with {field} {value!r}",
            manifest(field, value),
            rf"weak/{MANIFEST}: damaged: .*",
        )
        for field, value in (
            ("gamma", "strong"),
            ("gamma", -1.0),
            ("layers", 3),
            ("layers", "2:1"),
            ("power", 0.3),
            ("threshold", None),
            ("accessor", "none"),
            ("until", "all"),
            ("until", 2.5),
            ("arithmetic", "fast"),
            ("kind", "patch"),
            ("weakened", {FIRST: "abc"}),
            ("kept", [NORM]),
            ("base", None),
        )
    ),
    Fault(
        "manifest: digest",
        manifest("digest", "0" * 64),
        rf"weak: a dtype, a shape or the digest in {MANIFEST} is changed: .* it says 000000000000…",
    ),
    Fault(
        "manifest: digest of a tensor",
        lambda w: edit_json(w / MANIFEST, lambda m: m["kept"].update({NORM: "0" * 64})),
        rf"tensor {NORM}: changed",
    ),
    Fault(
        "manifest: digest of the base",
        lambda w: edit_json(w / MANIFEST, lambda m: m["base"].update(digest="0" * 64)),
        r"base: is not the base: its weights are \w{12}…, the manifest says 000000000000…",
        ("base",),
    ),
    Fault(
        "manifest: digest before",
        lambda w: edit_json(w / MANIFEST, lambda m: m["weakened"][FIRST].update(before="0" * 64)),
        rf"base: tensor {FIRST}: changed",
        ("base",),
    ),
    Fault(
        "missing side file",
        lambda w: (w / "config.json").unlink(),
        r"file config\.json: missing",
        ("base",),
    ),
    Fault(
        "extra side file", lambda w: (w / "x.txt").write_text(""), r"file x\.txt: extra", ("base",)
    ),
    Fault(
        "extra pickled weights",
        lambda w: (w / "pytorch_model.bin").write_text(""),
        r"file pytorch_model\.bin: extra",
        ("base",),
    ),
    Fault(
        "changed side file",
        lambda w: flip(w / "tokenizer.json"),
        r"file tokenizer\.json: changed",
        ("base",),
    ),
    Fault(
        "manifest: gamma",
        manifest("gamma", 0.31),
        r"weak: 2 weakened tensors are not base times gate: .*layers\.0.*layers\.1",
        ("base", "statistics"),
    ),
    Fault(
        "manifest: layers",
        manifest("layers", "0:2"),
        rf"weak: layers 0:2 and the manifest disagree: .*{KEPT}",
        ("base", "statistics"),
    ),
    *(
        Fault(
            f"manifest: {field}",
            adapter_says(field, value),
            r"weak: 2 weakened tensors are not base times gate",
            ("base", "statistics"),
        )
        for field, value in SHAPE
    ),
    Fault(
        "manifest: another moment of the replay",
        adapter_says("until", 4),
        rf"weak: {MANIFEST} says num_forget_records 5, not 4",
        ("base", "statistics"),
    ),
    Fault(
        "manifest: a moment that never was",
        adapter_says("until", 9),
        r"weak: its manifest does not fit .*: until 9: the statistics hold 5 forget records",
        ("base", "statistics"),
    ),
    Fault(
        "manifest: arithmetic",
        adapter_says("arithmetic", "in-place"),
        r"weak: 2 weakened tensors are not base times gate",
        ("base", "statistics"),
    ),
    Fault(
        "manifest: a version of a library",
        manifest("environment", {"numpy": "0.1"}),
        rf"weak/{MANIFEST}: changed since `apply` wrote it",
    ),
    Fault(
        "manifest: its own digest",
        manifest("sha256", "0" * 64),
        rf"weak/{MANIFEST}: changed since `apply` wrote it",
    ),
    Fault(
        "manifest of another kind",
        adapter_says("kind", "gates"),
        rf"weak/{MANIFEST}: damaged: no gates",
    ),
    Fault(
        "manifest: number of forget records",
        manifest("num_forget_records", 4),
        rf"weak: {MANIFEST} says num_forget_records 4, not 5",
        ("base", "statistics"),
    ),
    Fault(
        "manifest: digest of the statistics",
        lambda w: edit_json(w / MANIFEST, lambda m: m["statistics"].update(digest="0" * 64)),
        r"statistics\.zarr: is not what the weights were made from",
        ("base", "statistics"),
    ),
    Fault(
        "another gamma, and a manifest that agrees",
        lambda w: forge_tensor(w, FIRST, 0.5),
        rf"weak: 1 weakened tensors are not base times gate: {FIRST}",
        ("base", "statistics"),
    ),
]

COMMON_TO_GATES = [
    ("gamma", 0.31, r": gates of 2 sites do not follow from .*layers\.0.*layers\.1"),
    ("layers", "0:2", r": gates of 1 sites do not follow from .*layers\.2"),
    *((field, value, r": gates of 2 sites do not follow from ") for field, value in SHAPE),
    ("until", 4, rf": {MANIFEST} says num_forget_records 5, not 4"),
    ("num_forget_records", 4, rf": {MANIFEST} says num_forget_records 4, not 5"),
    ("schedule", "progressive", rf": {MANIFEST} says schedule 'progressive', not 'frozen'"),
    (
        "statistics",
        {"name": "s", "digest": "0" * 64},
        r"statistics\.zarr: is not what the weights were made from",
    ),
]
"""Lies of a manifest that agrees with itself; found with base and statistics."""

ADAPTER = [
    *(
        Fault(
            f"flipped bit in {name}", lambda a, name=name: flip(a / name), rf"file {name}: changed"
        )
        for name in (WEIGHTS, CONFIG)
    ),
    Fault("truncated tensors", lambda a: truncate(a / WEIGHTS, 0.9), r"not a whole safetensors"),
    Fault("missing tensors", lambda a: (a / WEIGHTS).unlink(), rf"file {WEIGHTS}: missing"),
    Fault("missing configuration", lambda a: (a / CONFIG).unlink(), rf"file {CONFIG}: missing"),
    Fault("extra file", lambda a: (a / "more.safetensors").write_text(""), r"more.*: extra"),
    Fault("no manifest", lambda a: (a / MANIFEST).unlink(), rf"adapter: no store.* no {MANIFEST}"),
    Fault("garbage manifest", lambda a: (a / MANIFEST).write_text("{"), rf"{MANIFEST}: damaged"),
    Fault(
        "manifest of bytes",
        lambda a: (a / MANIFEST).write_bytes(b"\xff\xfe"),
        rf"{MANIFEST}: damaged",
    ),
    Fault(
        "missing gates of a site",
        lambda a: edit_vectors(a, lambda t: t.pop(f"base_model.model.{SITE}.ia3_l")),
        rf"adapter: gates of {SITE}: missing",
    ),
    Fault(
        "gates of another site",
        lambda a: edit_vectors(a, lambda t: t.update({"lm_head": np.ones((1, 48), np.float32)})),
        r"adapter: gates of lm_head: extra",
    ),
    Fault(
        "other gates",
        lambda a: edit_vectors(a, lambda t: [values.fill(0.5) for values in t.values()]),
        rf"adapter: gates of {SITE}: changed",
    ),
    Fault(
        "gates in another dtype",
        lambda a: edit_vectors(a, lambda t: t.update({k: v.astype("f8") for k, v in t.items()})),
        rf"adapter: gates of {SITE}: changed",
    ),
    Fault(
        "more modules",
        lambda a: edit_config(a, lambda c: c["target_modules"].append("lm_head")),
        rf"adapter/{CONFIG}: does not fit {MANIFEST}: target_modules",
    ),
    Fault(
        "gates on the outputs",
        lambda a: edit_config(a, lambda c: c.update(feedforward_modules=[])),
        rf"adapter/{CONFIG}: does not fit {MANIFEST}: feedforward_modules",
    ),
    Fault(
        "another method",
        lambda a: edit_config(a, lambda c: c.update(peft_type="LORA", r=8)),
        rf"adapter/{CONFIG}: does not fit {MANIFEST}: peft_type, r$",
    ),
    Fault(
        "garbage configuration",
        lambda a: (a / CONFIG).write_text("[]"),
        rf"adapter/{CONFIG}: missing or damaged",
    ),
    Fault(
        "numbers that no gates are",
        lambda a: forge_vectors(a, lambda values: values + 1),
        r"adapter: holds numbers that no gates are",
    ),
    Fault(
        "forged gates",
        forge_vectors,
        rf"adapter: gates of 1 sites do not follow from .*: {SITE}",
        ("base", "statistics"),
    ),
    Fault(
        "forged gates, without the base",
        forge_vectors,
        rf"adapter: gates of 1 sites do not follow from .*: {SITE}",
        ("statistics",),
    ),
    Fault(
        "manifest: a version of a library",
        manifest("environment", {"numpy": "0.1"}),
        rf"adapter/{MANIFEST}: changed since `apply` wrote it",
    ),
    Fault(
        "manifest: digest of the base",
        adapter_says("base", {"name": "base", "digest": "0" * 64}),
        r"base: is not the base: its weights are \w{12}…, the manifest says 000000000000…",
        ("base",),
    ),
    Fault(
        "manifest: digest of the base, which is not given",
        adapter_says("base", {"name": "base", "digest": "0" * 64}),
        r"adapter: its manifest names another base than .*statistics\.zarr was measured on",
        ("statistics",),
    ),
    *(
        Fault(
            f"manifest: {field}",
            adapter_says(field, value),
            finding if "statistics" in finding else rf"adapter{finding}",
            ("base", "statistics"),
        )
        for field, value, finding in COMMON_TO_GATES
    ),
]

GATES = [
    Fault("flipped bit", lambda g: flip(g, at=1), r"gates: gates of .*: changed"),
    Fault("flipped bit of the header", lambda g: flip(g, at=0), r"gates: not a whole safetensors"),
    Fault("truncated", lambda g: truncate(g, 0.9), r"gates: not a whole safetensors file"),
    Fault("longer", lambda g: g.write_bytes(g.read_bytes() + b"x"), r"gates: not a whole safetens"),
    Fault("empty", lambda g: g.write_bytes(b""), r"gates: not a whole safetensors file"),
    Fault(
        "no manifest",
        lambda g: g.write_bytes(numbers.save(numbers.load_file(g))),
        r"gates: holds no gates that `kvwstream apply --as gates` wrote",
    ),
    Fault(
        "missing gates of a site",
        lambda g: edit_gates(g, lambda t, m: t.pop(SITE)),
        rf"gates: gates of {SITE}: missing",
    ),
    Fault(
        "gates of another site",
        lambda g: edit_gates(g, lambda t, m: t.update(lm_head=np.zeros(48))),
        r"gates: gates of lm_head: extra",
    ),
    Fault(
        "sites exchanged",
        lambda g: edit_gates(g, lambda t, m: t.update(zip(t, [*t.values()][::-1], strict=True))),
        rf"gates: gates of {SITE}: changed",
    ),
    Fault(
        "gates in another dtype",
        lambda g: edit_gates(g, lambda t, m: t.update({SITE: t[SITE].astype("f4")})),
        rf"gates: gates of {SITE}: changed",
    ),
    *(
        Fault(
            f"log-gates {value}",
            lambda g, value=value: edit_gates(
                g, lambda t, m: forge_gate(t, m, lambda values: np.full_like(values, value))
            ),
            r"gates: holds numbers that no log-gates are",
        )
        for value in (0.5, np.nan, -np.inf)
    ),
    Fault(
        "forged gates",
        lambda g: edit_gates(g, forge_gate),
        rf"gates: gates of 1 sites do not follow from .*: {SITE}",
        ("base", "statistics"),
    ),
    Fault(
        "forged gates, without the base",
        lambda g: edit_gates(g, forge_gate),
        rf"gates: gates of 1 sites do not follow from .*: {SITE}",
        ("statistics",),
    ),
    Fault(
        "manifest: a version of a library",
        lambda g: edit_gates(g, lambda t, m: m["environment"].update(numpy="0.1")),
        r"gates: changed since `apply` wrote it",
    ),
    Fault(
        "manifest: another version",
        gates_say("manifest_version", 9),
        r"gates: manifest version 9, expected 3",
    ),
    Fault(
        "manifest of another kind",
        gates_say("kind", "checkpoint"),
        r"gates: damaged: no digest, headers",
    ),
    Fault(
        "manifest: layers without the sites", gates_say("layers", "2:2"), r"gates: damaged: layer"
    ),
    Fault(
        "manifest: digest of the base",
        gates_say("base", {"name": "base", "digest": "0" * 64}),
        r"base: is not the base: its weights are \w{12}…, the manifest says 000000000000…",
        ("base",),
    ),
    *(
        Fault(
            f"manifest: {field}",
            gates_say(field, value),
            finding if "statistics" in finding else rf"gates{finding}",
            ("base", "statistics"),
        )
        for field, value, finding in COMMON_TO_GATES
    ),
]
