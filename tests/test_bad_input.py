"""Bad input: one clear line on standard error, exit code 1 (2 for usage), and nothing is lost.

Every case is a real process with real file descriptors, signals and limits. They are forked from a
server that has imported what is slow to import, so that each costs a fraction of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  for the fork server
from safetensors.torch import load_file, save_file

import kvwstream.pipelines.apply
import kvwstream.pipelines.audit
import kvwstream.pipelines.collect
import kvwstream.pipelines.evaluate
import kvwstream.pipelines.reduce  # noqa: F401
from kvwstream import cli
from tests.conftest import COLOURS, THINGS, llama_config, question, save_model, write_rows
from tests.faults import FIRST, add, attributes_of, edit_array, edit_json, edit_plan, flip, truncate

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([__name__])

COLLECT = "collect model data.jsonl out.zarr --threads 1"
REDUCE = "reduce --retain retain.zarr --forget forget.zarr out.zarr"
APPLY = "apply model statistics.zarr out --gamma 0.3 --layers 0:1"
EVALUATE = "evaluate model data.jsonl --max-new-tokens 1"
PLAN = r" *(model|sites|examples|tokens|passes|records|parts|disk|memory)  .*"
PROGRESS = r"(collect|reduce|evaluate): \d+/\d+ (records|parts|examples), .*"


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: list[str]
    err: list[str]


class Running:
    """A command in a process of its own."""

    def __init__(self, folder: Path, command: str, *, file_limit: int | None = None) -> None:
        self.ends = []
        writers = []
        for _ in range(2):
            reader, writer = FORK.Pipe(duplex=False)
            self.ends.append(reader)
            writers.append(writer)
        self.ready = FORK.Event()
        arguments = (folder, shlex.split(command), *writers, file_limit, self.ready)
        self.process = FORK.Process(target=_child, args=arguments)
        self.process.start()
        for writer in writers:
            writer.close()

    def signal(self, number: int) -> None:
        assert self.process.pid
        with suppress(ProcessLookupError):  # it was faster
            os.kill(self.process.pid, number)

    def wait(self) -> Done:
        err, out = (_read(end.fileno()).decode().splitlines() for end in reversed(self.ends))
        self.process.join(30)
        code = self.process.exitcode
        assert code is not None
        return Done(code, out, err)


def run(folder: Path, command: str, *, file_limit: int | None = None) -> Done:
    return Running(folder, command, file_limit=file_limit).wait()


def _child(
    folder: Path, argv: list[str], out: Any, err: Any, file_limit: int | None, ready: Any
) -> None:
    os.chdir(folder)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    os.environ["HF_DATASETS_CACHE"] = str(folder.parent / "cache")
    sys.argv = ["kvwstream", *argv]
    ready.set()
    cli.main()


def _read(file: int) -> bytes:
    content = b""
    while block := os.read(file, 1 << 16):
        content += block
    return content


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def error_of(done: Done, code: int) -> str:
    """The error's one line; everything else on standard error is plan or progress."""
    lines = [line for line in done.err if not re.fullmatch(f"{PLAN}|{PROGRESS}", line)]
    assert done.code == code, done
    assert len(lines) == 1, done
    assert lines[0] == done.err[-1]
    assert lines[0].startswith("kvwstream: ")
    return lines[0].removeprefix("kvwstream: ")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, llama, data) -> Path:
    """A model, data, two stores, statistics and a weakened checkpoint, all whole."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(llama, folder / "model")
    shutil.copy(data["retain"], folder / "retain.jsonl")
    for name in ("forget.jsonl", "data.jsonl"):
        shutil.copy(data["forget"], folder / name)
    for command in (
        "collect model retain.jsonl retain.zarr --threads 1 --part-size 3",
        "collect model forget.jsonl forget.zarr --threads 1 --part-size 3",
        REDUCE.replace("out", "statistics"),
        APPLY.replace(" out ", " weak "),
    ):
        done = run(folder, command)
        assert done.code == 0, done
    return folder


@pytest.fixture
def bench(workshop, tmp_path) -> Path:
    return shutil.copytree(workshop, tmp_path / "bench")


class Case(NamedTuple):
    """What is bad, the command that meets it, and the line that it must print."""

    name: str
    spoil: Callable[[Path], object] | None
    command: str
    line: str
    code: int = 1


def lines(*rows: str | bytes) -> Callable[[Path], object]:
    """Make `data.jsonl` of raw lines."""
    content = b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows)
    return lambda f: (f / "data.jsonl").write_bytes(content + b"\n")


def rows(*objects: object) -> Callable[[Path], object]:
    return lines(*map(json.dumps, objects))


def unlink(name: str) -> Callable[[Path], object]:
    return lambda f: (f / name).unlink()


def write(name: str, text: str = "x") -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return spoil


def config(**values: object) -> Callable[[Path], object]:
    return lambda f: edit_json(f / "model/config.json", lambda c: c.update(values))


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "model/model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file, {"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    file = folder / "model/model.safetensors"
    torch.save(load_file(file), folder / "model/pytorch_model.bin")
    file.unlink()


def split(**changed: str) -> Callable[[Path], object]:
    """An index over the one shard, with some names changed."""

    def spoil(folder: Path) -> None:
        file = folder / "model/model.safetensors"
        shard = file.rename(folder / "model/model-00001-of-00001.safetensors")
        index = dict.fromkeys(load_file(shard), shard.name)
        for old, new in changed.items():
            index[new] = index.pop(old.replace("__", "."))
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model/model.safetensors.index.json").write_text(text)

    return spoil


def several(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


def other_weights(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    save_model(folder / "model", llama_config(), seed=1)


def wider(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    save_model(folder / "model", llama_config(intermediate_size=64))


def deeper(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    save_model(folder / "model", llama_config(layers=1))


def with_store(command: str) -> Callable[[Path], object]:
    """Collect another store first."""

    def spoil(folder: Path) -> None:
        done = run(folder, command)
        assert done.code == 0, done

    return spoil


GOOD = question("sky", "red")
SEAL = "parts/000001/zarr.json"

CASES = [
    # data
    Case("missing data", unlink("data.jsonl"), COLLECT, r"data\.jsonl: no such file or folder"),
    Case("empty data", write("data.jsonl", ""), COLLECT, r"data\.jsonl: holds no examples"),
    Case("blank data", write("data.jsonl", "\n \n"), COLLECT, r"data\.jsonl: holds no examples"),
    Case(
        "a line that is not JSON",
        lines(json.dumps(GOOD), "{nonsense"),
        COLLECT,
        r"data\.jsonl:2: not JSON: Expecting property name",
    ),
    Case(
        "a line that is not UTF-8",
        lines(b'{"question": "\xe9"}'),
        COLLECT,
        r"data\.jsonl:1: not JS",
    ),
    Case(
        "half a character",
        lines('{"question": "q", "answer": "\\ud800"}'),
        COLLECT,
        r"data\.jsonl:1: .*(surrogate|Unicode)",
    ),
    Case(
        "a line nested without end",
        lines("[" * 100_000),
        COLLECT,
        r"data\.jsonl:1: not JSON",
    ),
    Case(
        "a line that is no object",
        rows(GOOD, [1]),
        COLLECT,
        r"data\.jsonl:2: expected a JSON object, got list",
    ),
    Case(
        "a line without answer",
        rows(GOOD, {"question": "q"}),
        COLLECT,
        r"data\.jsonl:2: field `answer` is missing; a row needs `question` and `answer`, or `mess",
    ),
    Case(
        "an empty answer",
        rows(GOOD, {"question": "q", "answer": " \n"}),
        COLLECT,
        r"data\.jsonl:2: field `answer` is empty",
    ),
    Case(
        "an answer beyond the model's maximum length",
        rows(GOOD, {"id": "long", "question": "q", "answer": "sky " * 200}),
        COLLECT,
        r"long: \d+ tokens, more than the model's maximum length of 128: the answer would be cut",
    ),
    Case(
        "an answer with an end of turn",
        rows({"id": "turn", "question": "q", "answer": "red<|im_end|>"}),
        COLLECT,
        r"turn: the answer holds the special tokens \['<\|im_end\|>'\]",
    ),
    Case(
        "a duplicate example",
        rows(GOOD, {**GOOD, "id": "twin"}),
        COLLECT,
        r"data\.jsonl: examples 'sky-red' and 'twin' have the same content; .* remove one",
    ),
    Case(
        "a duplicate id",
        rows(GOOD, {**GOOD, "answer": "No."}),
        COLLECT,
        r"data\.jsonl: examples 'sky-red' and 'sky-red' have the same id",
    ),
    Case(
        "a folder that is no data set",
        write("folder/notes.md"),
        "collect model folder out.zarr",
        r"folder: not a data set that can be loaded: ",
    ),
    Case(
        "a data set that the hub cannot deliver",
        None,
        "collect model nobody/nothing out.zarr",
        r"nobody/nothing: not a data set that can be loaded: ",
    ),
    # models
    Case(
        "no model",
        None,
        COLLECT.replace("model", "no/such/place"),
        r"no/such/place: no such folder, and not a hub id like owner/name",
    ),
    Case(
        "a file for a model",
        None,
        COLLECT.replace("model", "data.jsonl"),
        r"data\.jsonl: .*folder",
    ),
    Case(
        "a model that the hub cannot deliver",
        None,
        COLLECT.replace("model", "nobody/nothing"),
        r"nobody/nothing: no such folder, and the hub could not deliver it: ",
    ),
    Case(
        "an empty folder",
        lambda f: (shutil.rmtree(f / "model"), (f / "model").mkdir()),
        COLLECT,
        r"model: no model\.safetensors and no model\.safetensors\.index\.json there",
    ),
    Case("no config", unlink("model/config.json"), COLLECT, r"model: .*config\.json"),
    Case(
        "a garbage config",
        write("model/config.json", "{"),
        COLLECT,
        r"model: .*config.* is not a valid JSON file",
    ),
    Case(
        "a config of an unknown kind",
        config(model_type="evil"),
        COLLECT,
        r"model: .*`evil`.*",
    ),
    Case(
        "a config with a senseless value",
        config(hidden_size="wide"),
        COLLECT,
        r"model: .*hidden_size",
    ),
    Case(
        "a model that is no language model",
        config(model_type="resnet", architectures=["ResNetModel"]),
        COLLECT,
        r"model: .*ResNetConfig",
    ),
    Case(
        "an encoder and a decoder",
        config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        COLLECT,
        r"model: .*T5Config",
    ),
    Case(
        "a model without value projections",
        config(model_type="mamba", architectures=["MambaForCausalLM"]),
        COLLECT,
        r"MambaForCausalLM: expected one list of \d+ decoder layers with recognisable value proj",
    ),
    Case(
        "no tokenizer", unlink("model/tokenizer.json"), COLLECT, r"model: its tokenizer cannot be"
    ),
    Case(
        "pickled weights only",
        pickled,
        COLLECT,
        r"model: holds pickled weights only \(pytorch_model\.bin\); unpickling runs code from the",
    ),
    Case(
        "pickled weights only, applied to",
        pickled,
        APPLY,
        r"model: holds pickled weights only \(pytorch_model\.bin\); unpickling runs code from the",
    ),
    Case(
        "a missing shard",
        several(split(), unlink("model/model-00001-of-00001.safetensors")),
        COLLECT,
        r"model: shards named by model\.safetensors\.index\.json are missing: model-00001-of-00001",
    ),
    Case(
        "shards that do not match their index",
        split(model__norm__weight="other"),
        COLLECT,
        r"model: the shards do not match model\.safetensors\.index\.json: 2 tensors, the first is "
        r"model\.norm\.weight \(index: absent, shards: model-00001-of-00001\.safetensors\)",
    ),
    Case(
        "a garbage index",
        several(split(), write("model/model.safetensors.index.json", "[]")),
        COLLECT,
        r"model/model\.safetensors\.index\.json: not an index of safetensors shards",
    ),
    Case(
        "a truncated checkpoint",
        lambda f: truncate(f / "model/model.safetensors", 0.9),
        COLLECT,
        r"model/model\.safetensors: truncated, .* ends beyond the file",
    ),
    Case(
        "garbage for a checkpoint",
        write("model/model.safetensors", "garbage that is long enough"),
        COLLECT,
        r"model/model\.safetensors: not a safetensors file",
    ),
    Case(
        "a checkpoint without a site's weight",
        weights(lambda t: t.pop(FIRST)),
        COLLECT,
        r"model: cannot tell which tensor is the weight of model\.layers\.0\.mlp\.down_proj",
    ),
    Case(
        "a weight of another shape",
        weights(lambda t: t.update({FIRST: t[FIRST][:, :47].contiguous()})),
        COLLECT,
        rf"model: {FIRST} has shape \(32, 47\), expected 48 on axis 1",
    ),
    Case(
        "a quantised weight",
        weights(lambda t: t.update({FIRST: t[FIRST].to(torch.int8)})),
        COLLECT,
        rf"model: {FIRST} has dtype I8; only floating point weights .* use the unquantised",
    ),
    # options of collect
    Case("an unknown moment", None, f"{COLLECT} --moments cube", r"moments must be among abs, ", 2),
    Case("no moment", None, f"{COLLECT} --moments ''", r"moments must be among abs, signed, sq", 2),
    Case("a moment twice", None, f"{COLLECT} --moments abs,abs", r"moments: each once", 2),
    Case(
        "an unknown dtype", None, f"{COLLECT} --dtype int8", r"dtype int8: choose auto, float32", 2
    ),
    Case(
        "an unknown device", None, f"{COLLECT} --device abacus", r"device abacus: not available", 2
    ),
    # stores of collect
    Case(
        "other files in the store's place",
        write("out.zarr/thesis.txt"),
        COLLECT,
        r"out\.zarr: holds other files; choose another place",
    ),
    Case(
        "a file in the store's place",
        write("out.zarr"),
        COLLECT,
        r"out\.zarr: is a file, expected a folder",
    ),
    Case(
        "a file above the store's place",
        write("file"),
        COLLECT.replace("out", "file/out"),
        r"file/\.?out\.zarr.*: .*(Not a directory|not a folder|a file)",
    ),
    Case(
        "statistics in the store's place",
        None,
        COLLECT.replace("out", "statistics"),
        r"statistics\.zarr: not a store that `kvwstream collect` wrote",
    ),
    Case(
        "garbage in the store's place",
        write("out.zarr/zarr.json", "garbage"),
        COLLECT,
        r"out\.zarr: no Zarr group with attributes is there",
    ),
    Case(
        "a store of another format version",
        lambda f: edit_plan("format_version", 1)(f / "forget.zarr"),
        "collect model forget.jsonl forget.zarr --threads 1 --part-size 3",
        r"forget\.zarr: store format version 1: this kvwstream reads and writes version 3; use the",
    ),
    # reduce
    Case(
        "no store",
        None,
        REDUCE.replace("retain.z", "none.z"),
        r"none\.zarr: nothing is there",
    ),
    Case(
        "a file for a store",
        None,
        REDUCE.replace("retain.zarr", "data.jsonl"),
        r"data\.jsonl: is a file, expec",
    ),
    Case(
        "a checkpoint for a store",
        None,
        REDUCE.replace("retain.zarr", "model"),
        r"model: no Zarr group with attributes is there",
    ),
    Case(
        "statistics for a store",
        None,
        REDUCE.replace("retain.zarr", "statistics.zarr"),
        r"statistics\.zarr: not a store that `kvwstream collect` wrote",
    ),
    Case(
        "a store of another format version to reduce",
        lambda f: edit_plan("format_version", 1)(f / "retain.zarr"),
        REDUCE,
        r"retain\.zarr: store format version 1: this kvwstream reads and writes version 3",
    ),
    Case(
        "deleted seals",
        several(unlink(f"retain.zarr/{SEAL}"), unlink("retain.zarr/parts/000003/zarr.json")),
        REDUCE,
        r"retain\.zarr: 2 of 4 parts have no seal \(1, 3\); run the same `kvwstream collect` again",
    ),
    Case(
        "a truncated chunk",
        lambda f: truncate(f / "retain.zarr/parts/000001/abs_sum/c/0/0", 0.5),
        REDUCE,
        r"retain\.zarr/parts/000001/abs_sum: cannot be decoded",
    ),
    Case(
        "a deleted chunk",
        unlink("retain.zarr/parts/000001/abs_sum/c/0/0"),
        REDUCE,
        r"retain\.zarr/parts/000001/abs_sum: is missing; restore the part, or",
    ),
    Case(
        "a flipped bit",
        lambda f: flip(f / "forget.zarr/parts/000001/abs_sum/c/0/0"),
        REDUCE,
        r"forget\.zarr/parts/000001/abs_sum: cannot be decoded",
    ),
    Case(
        "an extra part",
        lambda f: shutil.copytree(f / "retain.zarr/parts/000001", f / "retain.zarr/parts/000004"),
        REDUCE,
        r"retain\.zarr: holds parts beyond its plan \(4\)",
    ),
    Case(
        "the same store to retain and to forget",
        None,
        "reduce --retain retain.zarr --forget retain.zarr out.zarr",
        r"retain\.zarr",
    ),
    Case(
        "an example to retain and to forget",
        several(
            rows(GOOD, question("sea", "brown")),
            with_store("collect model data.jsonl both.zarr --threads 1"),
        ),
        "reduce --retain retain.zarr --forget both.zarr out.zarr",
        r"both\.zarr: 1 examples stand in an earlier store too \(sky-red = sky-red\); an example c",
    ),
    Case(
        "statistics where statistics are to be",
        None,
        REDUCE.replace("out", "statistics"),
        r"statistics\.zarr: exists already; choose another name or remove it",
    ),
    Case("a store in OUT", None, REDUCE.replace("out", "retain"), r"retain\.zarr: exists already"),
    Case("a file in OUT", write("out.zarr"), REDUCE, r"out\.zarr: exists already; choose anot"),
    Case(
        "a folder in OUT", write("out.zarr/a/b"), REDUCE, r"out\.zarr: exists already; choose anot"
    ),
    Case(
        "a file above OUT",
        write("file"),
        REDUCE.replace("out", "file/out"),
        r"file/\.?out\.zarr.*: .*(Not a directory|not a folder|a file)",
    ),
    Case(
        "no abs moment",
        several(
            with_store("collect model data.jsonl square.zarr --threads 1 --moments square"),
        ),
        "reduce --retain square.zarr out.zarr",
        r"square\.zarr: has no abs moment, which the accessor needs",
        2,
    ),
    # apply
    Case(
        "no statistics", None, APPLY.replace("statistics", "none"), r"none\.zarr: nothing is there"
    ),
    Case(
        "a store for statistics",
        None,
        APPLY.replace("statistics", "forget"),
        r"forget\.zarr: not statistics that `kvwstream reduce` wrote",
    ),
    Case(
        "statistics of the retain data alone",
        with_store("reduce --retain retain.zarr alone.zarr"),
        APPLY.replace("statistics", "alone"),
        r"alone\.zarr: holds retain statistics alone; reduce it with --forget",
        2,
    ),
    Case(
        "statistics of another format version",
        lambda f: attributes_of(f / "statistics.zarr", lambda a: a.update(format_version=1)),
        APPLY,
        r"statistics\.zarr: statistics of format version 1; this kvwstream reads version 3",
    ),
    Case(
        "a flipped bit in the statistics",
        lambda f: flip(f / "statistics.zarr/exponent/c/0"),
        APPLY,
        r"statistics\.zarr/exponent: cannot be decoded",
    ),
    Case(
        "an edit in the statistics",
        lambda f: edit_array(f / "statistics.zarr/exponent", add(0, 1)),
        APPLY,
        r"statistics\.zarr/exponent: is not what the group's digest says; run `kvwstream reduce`",
    ),
    Case(
        "statistics of other weights",
        other_weights,
        APPLY,
        r"statistics\.zarr: measured on weights \w{12}…, but model has \w{12}…; statistics fit the",
    ),
    Case(
        "statistics of a wider model", wider, APPLY, r"model: .* has shape \(32, 64\), expected 48"
    ),
    Case(
        "statistics of a deeper model",
        deeper,
        APPLY,
        r"model: has no tensor model\.layers\.1\.mlp\.down_proj\.weight; statistics\.zarr was",
    ),
    *(
        Case(f"layers {layers}", None, APPLY.replace("0:1", layers), line, 2)
        for layers, line in (
            ("0:2", r"layers 0:2: the model has layers 0 to 1; choose within them"),
            ("5", r"layers 5:5: the model has layers 0 to 1; choose within them"),
            ("1:0", r"layers 1:0: must not be negative, and the first not beyond the last"),
            ("-1:1", r"layers -1:1: must not be negative"),
            ("-1", r"layers -1: must not be negative"),
            ("all", r"layers must be like 1:25 \(first:last\), got 'all'"),
            ("0:", r"layers must be like 1:25"),
            ("0-1", r"layers must be like 1:25"),
            ("0:1:2", r"layers must be like 1:25"),
            ("''", r"layers must be like 1:25"),
        )
    ),
    *(
        Case(
            f"gamma {gamma}",
            None,
            APPLY.replace("0.3", gamma),
            rf"gamma must be a finite number of at least 0, got {gamma}",
            2,
        )
        for gamma in ("-0.1", "nan", "inf", "-inf")
    ),
    *(
        Case(f"apply {options}", None, f"{APPLY} {options}", line, 2)
        for options, line in (
            ("--power 0.3", r"power must be a multiple of 0\.5, from 0\.5 to 8, got 0\.3"),
            ("--power nan", r"power must be a multiple of 0\.5, from 0\.5 to 8, got nan"),
            ("--threshold -1", r"threshold must be a finite number of at least 0, got -1"),
            ("--until 99", r"until 99: the statistics hold \d forget records; choose within them"),
            ("--until -1", r"until must be a whole number of at least 0, got -1"),
            (
                "--as adapter --arithmetic in-place",
                r"arithmetic in-place: what it does depends on each weight, so that no gates tell",
            ),
        )
    ),
    *(
        Case(
            f"an edit in the {name} that is needed with {options}",
            lambda f, name=name: edit_array(f / "statistics.zarr" / name, add((0, 0), 1)),
            f"{APPLY} {options}",
            rf"statistics\.zarr/{name}: is not what the group's digest says; run `kvw",
        )
        for name, options in (
            ("accessor", "--power 2"),
            ("accessor", "--until 1 --as gates"),
            ("accessor", "--arithmetic in-place"),
            ("forget_running_mean", "--accessor mean --as adapter"),
        )
    ),
    Case(
        "a gates file in OUT of apply",
        write("out"),
        f"{APPLY} --as gates",
        r"out: exists already; choose another name or remove it",
    ),
    Case(
        "a folder in OUT of apply",
        None,
        APPLY.replace("out", "weak"),
        r"weak: exists already; choose",
    ),
    Case(
        "a file in OUT of apply", write("out"), APPLY, r"out: exists already; choose another name o"
    ),
    Case(
        "a link to nothing in OUT",
        lambda f: (f / "out").symlink_to("nowhere"),
        APPLY,
        r"out: exists already",
    ),
    Case(
        "a file above OUT of apply",
        write("file"),
        APPLY.replace(" out ", " file/out "),
        r"file/out: cannot be written: .*(Not a directory|File exists)",
    ),
    # audit
    Case(
        "an unknown base", None, "audit weak --base ./none", r"\./none: no such folder, and not a"
    ),
    # evaluate
    Case(
        "evaluate without data", unlink("data.jsonl"), EVALUATE, r"data\.jsonl: no such file or fol"
    ),
    Case(
        "evaluate without model",
        None,
        EVALUATE.replace("model", "no/such/place"),
        r"no/such/place: no such folder, and not a hub id like owner/name",
    ),
    Case(
        "half of the gates",
        None,
        f"{EVALUATE} --gamma 1",
        r"--statistics, --gamma and --layers belong together: give all or none",
        2,
    ),
    Case(
        "gates of other weights",
        other_weights,
        f"{EVALUATE} --statistics statistics.zarr --gamma 1 --layers 0:1",
        r"statistics\.zarr: measured on weights \w{12}…, but model has \w{12}…",
    ),
    Case(
        "gates beyond the model",
        None,
        f"{EVALUATE} --statistics statistics.zarr --gamma 1 --layers 0:2",
        r"layers 0:2: the model has layers 0 to 1; choose within them",
        2,
    ),
    Case(
        "a negative gate",
        None,
        f"{EVALUATE} --statistics statistics.zarr --gamma -1 --layers 0:1",
        r"gamma must be a finite number of at least 0, got -1\.0",
        2,
    ),
    Case(
        "a question that leaves no room",
        rows({"id": "long", "question": "sky " * 200, "answer": "a"}),
        EVALUATE,
        r"long: .*maximum length",
    ),
    Case(
        "answers that cannot be written",
        write("file"),
        f"{EVALUATE} --out file/answers.jsonl",
        r"file/answers\.jsonl: cannot be written: .*exists",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_nothing_is_lost(case, bench):
    if case.spoil:
        case.spoil(bench)
    before = snapshot(bench)
    line = error_of(run(bench, case.command), case.code)
    assert re.match(case.line, line), line
    assert snapshot(bench) == before


def test_a_plan_that_differs_is_refused_with_a_line_per_difference(bench):
    before = snapshot(bench)
    done = run(
        bench,
        "collect model retain.jsonl forget.zarr --threads 1 --part-size 2 --seed 3 --tokens all",
    )
    assert done.code == 1
    first, *differences = (line for line in done.err if not re.fullmatch(PLAN, line))
    assert first == (
        "kvwstream: forget.zarr: holds a store with another plan; use its options or another place:"
    )
    digest = r"\w{12}…"
    for line, pattern in zip(
        differences,
        (
            rf"  data_digest: {digest} there, {digest} here",
            rf"  arrangement_digest: {digest} there, {digest} here",
            "  num_examples: 5 there, 11 here",
            "  seed: 0 there, 3 here",
            "  part_size: 3 there, 2 here",
            "  tokens: answer there, all here",
        ),
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line
    assert snapshot(bench) == before


def test_stores_that_do_not_belong_together_are_refused_with_a_line_per_difference(bench):
    other = "collect model data.jsonl other.zarr --threads 1 --tokens all --dtype bfloat16"
    assert run(bench, other).code == 0
    before = snapshot(bench)
    done = run(bench, REDUCE.replace("forget.zarr", "other.zarr"))
    assert (done.code, done.err) == (
        1,
        [
            "kvwstream: retain.zarr and other.zarr do not belong together:",
            "  tokens: answer there, all here",
            "  dtype: float32 there, bfloat16 here",
        ],
    )
    assert snapshot(bench) == before


def test_a_coefficient_that_is_not_finite_names_site_record_and_example(bench):
    weights(lambda t: t[FIRST.replace("0", "1").replace("down", "up")].fill_(float("nan")))(bench)
    line = error_of(run(bench, COLLECT), 1)
    assert re.fullmatch(
        r"out\.zarr: 1 of 1 parts failed; when that is mended, run the same command again: "
        r"part 0: record 0, example '\w+-pink': a coefficient of model\.layers\.1\.mlp\.down_proj "
        r"is not finite; look at the example, or use a wider dtype \(--dtype float32\)",
        line,
    )
    assert list((bench / "out.zarr/parts").iterdir()) == [bench / "out.zarr/parts/zarr.json"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("collect", "missing argument 'model"),
        ("collect model data.jsonl", "missing argument 'store"),
        (f"{COLLECT} --batch-size 0", "Invalid value for '--batch-size'"),
        (f"{COLLECT} --part-size -1", "Invalid value for '--part-size'"),
        (f"{COLLECT} --limit 0", "Invalid value for '--limit'"),
        (f"{COLLECT} --tokens some", "Invalid value for '--tokens'"),
        (f"{COLLECT} --seed x", "Invalid value for '--seed'"),
        (f"{COLLECT} --colour", "No such option"),
        (f"{COLLECT} more", "unexpected extra argument"),
        ("reduce out.zarr", "give one of the two"),
        (APPLY.replace("0.3", "strong"), "Invalid value for '--gamma'"),
        (APPLY.replace("--gamma 0.3", ""), "Missing option '--gamma'"),
        (APPLY.replace("--layers 0:1", ""), "Missing option '--layers'"),
        ("audit", "missing argument 'path"),
        ("forget everything", "No such command 'forget'"),
    ],
)
def test_usage_is_exit_code_2(command, words, workshop):
    before = snapshot(workshop)
    done = run(workshop, command)
    assert (done.code, done.out) == (2, [])
    assert words.lower() in " ".join(done.err).lower().replace("{", "").replace("}", "")
    assert "Traceback" not in " ".join(done.err)
    assert snapshot(workshop) == before


@pytest.mark.parametrize("command", ["collect", "evaluate", "tokenizer"])
def test_code_from_a_repository_is_never_executed(command, bench):
    code = 'open("/".join([r"{}", "executed"]), "w")\nclass Evil: pass\n'
    (bench / "model/evil.py").write_text(code.format(bench))
    if command == "tokenizer":
        evil = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
        edit_json(bench / "model/tokenizer_config.json", lambda c: c.update(evil))
        (bench / "model/tokenizer.json").unlink()
    else:
        auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
        config(model_type="evil", auto_map=auto)(bench)
    before = snapshot(bench)
    line = error_of(run(bench, EVALUATE if command == "evaluate" else COLLECT), 1)
    assert re.match(r"model: .*(custom code|Evil|tokenizer cannot be loaded)", line), line
    assert snapshot(bench) == before


def test_code_beside_a_known_model_is_not_executed_either(bench):
    """The library's own class is used; the repository's offer of another is ignored."""
    (bench / "model/evil.py").write_text(f'open(r"{bench}/executed", "w")\nclass Evil: pass\n')
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    config(auto_map=auto)(bench)
    assert run(bench, COLLECT).code == 0
    assert not (bench / "executed").exists()


FULL = [
    *(
        ("collect", f"{COLLECT} --part-size 3".replace("data", "retain"), limit)
        for limit in (0, 800, 4000)
    ),
    *(("reduce", REDUCE, limit) for limit in (0, 800, 10_000)),
    *(("apply", APPLY, limit) for limit in (0, 1000, 100_000)),
    *(
        ("apply", f"{APPLY} --as {kind}", limit)
        for kind in ("adapter", "gates")
        for limit in (0, 900)
    ),
]


@pytest.mark.parametrize(("verb", "command", "limit"), FULL, ids=lambda v: str(v)[:7])
def test_a_full_disk_leaves_nothing_that_looks_finished(verb, command, limit, bench):
    before = snapshot(bench)
    line = error_of(run(bench, command, file_limit=limit), 1)
    assert re.match(r"\.?out(\.zarr)?\b.*: .*File too large", line), line
    left = {name: content for name, content in snapshot(bench).items() if name not in before}
    if verb == "collect":
        parts = {name.split("/")[2] for name in left if re.match(r"out\.zarr/parts/\d", name)}
        sealed = [part for part in parts if f"out.zarr/parts/{part}/zarr.json" in left]
        assert sealed == []
    else:
        assert left == {}
    done = run(bench, command)
    assert done.code == 0, done
    out = "out" if verb == "apply" else "out.zarr"
    assert error_free(run(bench, f"audit {out}"))
    if verb == "collect":
        assert snapshot(bench / "out.zarr") == snapshot(bench / "retain.zarr")


def error_free(done: Done) -> bool:
    return (done.code, done.err) == (0, [])


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, llama) -> Path:
    """Enough examples that a collection can be stopped on the way; and what it would have made."""
    folder = tmp_path_factory.mktemp("long")
    shutil.copytree(llama, folder / "model")
    write_rows(folder / "data.jsonl", [question(t, c) for t in THINGS[:4] for c in COLOURS])
    done = run(folder, LONG.replace("out", "whole"))
    assert done.code == 0, done
    return folder


LONG = f"{COLLECT} --part-size 1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_stop_during_collect_keeps_what_is_sealed_and_says_how_to_go_on(number, long_run):
    store = long_run / "out.zarr"
    shutil.rmtree(store, ignore_errors=True)
    running = Running(long_run, LONG)
    deadline = time.monotonic() + 60
    while not (store / "parts/000003/zarr.json").exists():
        assert time.monotonic() < deadline
        assert running.process.is_alive()
        time.sleep(0.001)
    running.signal(number)
    line = error_of(running.wait(), 1)
    found = re.fullmatch(
        r"out\.zarr: stopped; (\d+) of 40 parts are sealed and stay, run the same command again to "
        r"go on",
        line,
    )
    assert found, line
    sealed = {path.parent.name for path in store.glob("parts/*/zarr.json")}
    assert len(sealed) == int(found[1])
    assert 4 <= len(sealed) < 40
    kept = {name: (store / "parts" / name / "zarr.json").stat() for name in sealed}
    done = run(long_run, LONG)
    assert done.code == 0, done
    assert f"out.zarr: {len(sealed)} parts are sealed, going on" in done.err
    for name, stat in kept.items():
        assert (store / "parts" / name / "zarr.json").stat() == stat
    assert snapshot(store) == snapshot(long_run / "whole.zarr")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("command", [COLLECT, REDUCE, APPLY, EVALUATE], ids=lambda c: c.split()[0])
def test_a_stop_at_any_moment_is_one_line(command, number, bench):
    for delay in (0.01, 0.15, 0.3):
        running = Running(bench, command)
        assert running.ready.wait(60)
        time.sleep(delay)
        running.signal(number)
        done = running.wait()
        if done.code == 0:
            break  # it was faster
        assert re.search("stopped", error_of(done, 1)), done


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        (REDUCE.replace("retain.z", "none.z"), 1, "kvwstream: none.zarr: nothing is there"),
        (APPLY.replace("0:1", "1:0"), 2, "kvwstream: layers 1:0: must not be negative"),
    ],
)
def test_the_installed_command_does_the_same(command, code, line, bench):
    """Once without the fork server, as a shell runs it."""
    program = str(Path(sys.executable).with_name("kvwstream"))
    done = subprocess.run(
        [program, *shlex.split(command)], cwd=bench, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(line)
