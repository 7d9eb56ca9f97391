"""What jobs cost at scale, computed from shapes: `python -m benchmarks.scale`.

Every resource is given as the time that it would take if it were the only one; the longest is what
saturates first. `--write` puts the tables into docs/scale.md, `--measure` measures the constants
below "Measured" anew.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.filesize import decimal
from rich.markdown import Markdown
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.made_up import TOKENS, make_store
from benchmarks.measuring import fill, reset_peak, resident_peak, seconds, table
from benchmarks.testbed.model import IMAGE_TOKEN, make_config, make_processor
from kvwstream.answers import AnswerEncoder
from kvwstream.checkpoint import Checkpoint, match_tensors
from kvwstream.examples import question_answer
from kvwstream.models import load_model, model_skeleton
from kvwstream.pipelines.derive import fold_retain
from kvwstream.pipelines.reduce import open_stores, reduce
from kvwstream.pipelines.worker import check_weights
from kvwstream.plan import MOMENTS, Site
from kvwstream.sites import find_sites
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores.tables import COLUMNS

DOC = Path(__file__).parent.parent / "docs" / "scale.md"
EXAMPLES = (10**4, 10**6, 10**9)

# Assumed
FLOPS = 989e12 * 0.3  # per second: an H100 in dense bfloat16 as published, times its utilisation
GPU_BYTES = 80 << 30  # an H100 has
PUT_RATE = 3500  # per second that Amazon S3 promises for a prefix, as long as it has not split it
LATENCY = 0.03  # seconds of a small request to object storage
TASK = 0.001  # seconds of the Dask scheduler per task, as its documentation says

# Measured: seconds on two cores
LOCATE = 0.017  # per example, to find its answer
ENCODE = 0.0093  # per example, to make the model's input
DIGEST = 0.4e-9  # per byte of the checkpoint, to read and digest it
LOAD = 0.5e-9  # per byte of the checkpoint, to load the model and compare it
MEMORY = 4.3  # times a part, to write it
WRITE = 15e-9  # per coefficient sum: digest, compress, put on disk
FOLD = 13e-9  # per coefficient sum of retain data: read, check, add
SCAN = 290e-9  # per coefficient sum of forget data: read, check, logarithm, write three arrays

# Given by the format and by libraries
PAGE = 1000  # objects per request of a listing
BLOCK = 5 << 20  # bytes beyond which obstore puts an object in blocks of so many
MAX_BLOCKS = 10_000  # of which Amazon S3 makes one object
GROUPS = 5  # the store itself, its two tables, the environment, the parts
TABLES = 2 * len(Site._fields) + 2 * len(COLUMNS)  # metadata and data of the tables' columns
LISTINGS = (2, 3)  # by `collect`, of the store when it is new and when it is complete
PART_GETS = 3  # of `reduce`: the document that seals a part, and its two arrays


class Model(NamedTuple):
    """Shape of a decoder with one site per layer and expert."""

    name: str
    layers: int
    experts: int
    width: int
    weights: float
    """Bytes in bfloat16."""
    flops: float
    """Of one example: twice the parameters that a token runs through, vision tower included."""

    @property
    def sites(self) -> int:
        return self.layers * self.experts

    @property
    def vectors(self) -> int:
        return self.sites * self.width

    @property
    def gpus(self) -> int:
        """That one worker needs for the weights."""
        return ceil(int(self.weights), GPU_BYTES)


MODELS = (
    Model("Qwen2-VL-2B", 28, 1, 8960, 4.4e9, 2 * (1.31e9 * TOKENS + 0.63e9 * 2304)),
    Model("LLaVA-1.5-7B", 32, 1, 11008, 14.1e9, 2 * (6.48e9 * TOKENS + 0.30e9 * 577)),
    Model("Qwen2.5-VL-72B", 80, 1, 29568, 147e9, 2 * (70.2e9 * TOKENS + 0.63e9 * 2304)),
    Model("Qwen3-VL-235B-A22B", 94, 128, 1536, 471e9, 2 * (20.9e9 * TOKENS + 0.41e9 * 2304)),
)
LLAVA = MODELS[1]


class Job(NamedTuple):
    """A `collect` with its options and the `reduce` after it."""

    model: Model
    examples: int
    gpus: int = 1
    batch_size: int = 1
    part_size: int = 64
    moments: int = 1


class Cost(NamedTuple):
    """What a job takes; bytes are before compression, times in seconds."""

    workers: int
    parts: int
    objects: int
    lists: int
    puts: int
    gets: int
    """Of the parts, as `puts`; tables and groups add a few dozen of both."""
    reduce_lists: int
    reduce_gets: int
    record_bytes: int
    part_bytes: int
    store_bytes: int
    statistics_bytes: int
    """Rows of the statistics, if the records are to forget."""
    plan: float
    collect: dict[str, float]
    """Per resource; the first four are of the worker that has the most records."""
    retain: float
    """Of `reduce`, if the records are to retain; else `forget`."""
    forget: float

    @property
    def first(self) -> str:
        """What saturates first in `collect`: a resource, or the parts if they are too few."""
        longest = max(self.collect, key=self.collect.__getitem__)
        idle = self.workers > self.parts and longest in ("inputs", "GPUs", "writing")
        return "parts" if idle else longest

    @property
    def seconds(self) -> float:
        """Of `collect`: a worker does one thing after the other, the rest goes on meanwhile."""
        *worker, requests, scheduler = self.collect.values()
        return max(sum(worker), requests, scheduler)


def cost(job: Job) -> Cost:
    model, _, gpus, batch_size, part_size, moments = job
    has_all = moments == len(MOMENTS)  # one sum and one row more are read
    workers = max(1, gpus // model.gpus)
    records = ceil(job.examples, batch_size)
    parts, in_part = ceil(records, part_size), min(part_size, records)
    objects = GROUPS + TABLES + parts * (2 * (moments + 1) + 1)  # of arrays, and the seal
    sums, counts = 4 * model.vectors, 8 * model.sites
    record_bytes = moments * sums + counts
    puts = moments * (1 + put_requests(in_part * sums)) + 1 + put_requests(in_part * counts)
    puts = parts * (puts + 2)  # the seal, and the worker's note
    mine = min(ceil(parts, workers) * part_size, records)
    # several workers find the answers of their examples anew, and digest their checkpoint
    per_example, per_byte = (ENCODE + LOCATE, DIGEST + LOAD) if workers > 1 else (ENCODE, LOAD)
    # for their digest seals are read one by one, and so are the pages of a listing
    pages = ceil(objects, PAGE)
    one_by_one = pages * LATENCY
    return Cost(
        workers=workers,
        parts=parts,
        objects=objects,
        lists=LISTINGS[0] + LISTINGS[1] * pages,
        puts=puts,
        # is there a seal, before and after the passes? and the metadata that it takes up
        gets=parts * (2 + moments + 1),
        reduce_lists=pages,
        reduce_gets=parts * (PART_GETS + has_all),
        record_bytes=record_bytes,
        part_bytes=in_part * record_bytes,
        store_bytes=records * record_bytes,
        statistics_bytes=records * ((3 + has_all) * 8 * model.vectors + counts),
        plan=job.examples * LOCATE + model.weights * DIGEST,
        collect={
            "start": model.weights * per_byte,
            "inputs": mine * batch_size * per_example,
            "GPUs": mine * batch_size * model.flops / FLOPS,
            "writing": mine * model.vectors * moments * WRITE,
            "requests": puts / PUT_RATE,
            "scheduler": parts * TASK,
        },
        retain=records * model.vectors * FOLD + one_by_one,
        forget=records * model.vectors * SCAN + one_by_one,
    )


def ceil(number: int, by: int) -> int:
    return -(-number // by)


def put_requests(size: int) -> int:
    """Of an object: one, or a start, its blocks and an end."""
    return 1 if size <= BLOCK else ceil(size, BLOCK) + 2


def duration(seconds: float) -> str:
    units = {"years": 365 * 86400, "d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 0.001}
    unit = next((unit for unit, size in units.items() if seconds >= size), "ms")
    return f"{seconds / units[unit]:,.{0 if seconds >= 10 * units[unit] else 1}f} {unit}"


def collecting(job: Job, gpus: int) -> str:
    if gpus < job.model.gpus:
        return f"needs {job.model.gpus} GPUs"
    found = cost(job._replace(gpus=gpus))
    return f"{duration(found.seconds)}, {found.first}"


CELLS: dict[str, Callable[[Job, Cost], str]] = {
    "model": lambda job, _: job.model.name,
    "sites": lambda job, _: f"{job.model.sites:,}",
    "vectors": lambda job, _: f"{job.model.vectors:,}",
    "record": lambda _, cost: decimal(cost.record_bytes),
    "part": lambda _, cost: decimal(cost.part_bytes),
    "memory to write it": lambda _, cost: decimal(round(MEMORY * cost.part_bytes)),
    "largest part, records": lambda job, _: f"{MAX_BLOCKS * BLOCK // (4 * job.model.vectors):,}",
    "GPU, per example": lambda job, _: duration(job.model.flops / FLOPS),
    "writing, per record": lambda job, _: duration(job.model.vectors * WRITE),
    "option": lambda job, _: OPTIONS[job],
    "examples": lambda job, _: f"{job.examples:,}",
    "batch size": lambda job, _: f"{job.batch_size}",
    "parts": lambda _, cost: f"{cost.parts:,}",
    "objects": lambda _, cost: f"{cost.objects:,}",
    "collect: puts": lambda _, cost: f"{cost.puts:,}",
    "gets": lambda _, cost: f"{cost.gets:,}",
    "lists": lambda _, cost: f"{cost.lists:,}",
    "reduce: gets": lambda _, cost: f"{cost.reduce_gets:,}",
    "reduce: lists": lambda _, cost: f"{cost.reduce_lists:,}",
    "store": lambda _, cost: decimal(cost.store_bytes),
    "statistics": lambda _, cost: decimal(cost.statistics_bytes),
    "plan": lambda _, cost: duration(cost.plan),
    "collect, 1 GPU": lambda job, _: collecting(job, 1),
    "64 GPUs": lambda job, _: collecting(job, 64),
    "4,096 GPUs": lambda job, _: collecting(job, 4096),
    "reduce": lambda _, cost: duration(cost.retain),
    "reduce to forget": lambda _, cost: duration(cost.forget),
}
JOBS = [Job(model, examples) for model in MODELS for examples in EXAMPLES]
OPTIONS = {
    Job(LLAVA, 10**6): "defaults",
    Job(LLAVA, 10**6, batch_size=64): "`--batch-size 64`",
    Job(LLAVA, 10**6, batch_size=64, part_size=2): "`--batch-size 64 --part-size 2`",
    Job(LLAVA, 10**6, part_size=512): "`--part-size 512`",
    Job(LLAVA, 10**6, moments=3): "`--moments abs,signed,square`",
    Job(LLAVA, 10**4): "`--limit 10000`",
}
COLLECT = "plan; collect, 1 GPU; 64 GPUs; 4,096 GPUs; reduce"
SHEETS = {
    "models": (
        [Job(model, 64) for model in MODELS],
        "model; sites; vectors; record; part; memory to write it; largest part, records; "
        "GPU, per example; writing, per record",
    ),
    "objects": (
        [Job(LLAVA, examples, batch_size=size) for examples in EXAMPLES for size in (1, 64)],
        "examples; batch size; parts; objects; collect: puts; gets; lists; reduce: gets; "
        "reduce: lists",
    ),
    "retain": (JOBS, f"model; examples; store; {COLLECT}"),
    "retain, batch size 64": (
        [job._replace(batch_size=64) for job in JOBS],
        f"model; examples; store; {COLLECT}",
    ),
    "forget": (JOBS, "model; examples; store; statistics; reduce to forget"),
    "options": (list(OPTIONS), f"option; store; part; objects; collect: puts; {COLLECT}"),
}


def markdown(name: str) -> str:
    jobs, columns = SHEETS[name][0], SHEETS[name][1].split("; ")
    return table(columns, [[CELLS[column](job, cost(job)) for column in columns] for job in jobs])


def filled(text: str) -> str:
    """The document with its tables made anew."""
    return fill(text, {name: markdown(name) for name in SHEETS})


def sites_of(model: Model) -> list[Site]:
    places = [(layer, expert) for layer in range(model.layers) for expert in range(model.experts)]
    return [
        Site(f"{place}", f"{place}.weight", 1, *place, model.width, number * model.width)
        for number, place in enumerate(places)
    ]


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Of several: what other processes of the machine take away is no part of it."""
    return min(seconds(work) for _ in range(repeats))


def measure_stores(folder: Path) -> dict[str, float]:
    """With two parts at the width of LLaVA, per coefficient sum."""
    sites, retain, forget = sites_of(LLAVA), folder / "retain", folder / "forget"
    reset_peak()
    before = resident_peak()
    written = make_store(retain, sites, 128) + make_store(forget, sites, 128, first=128)
    memory = (resident_peak() - before) * 1e6 / cost(Job(LLAVA, 64)).part_bytes
    folded = fastest(partial(fold_retain, open_stores([str(retain)])), 3)
    outs = (str(folder / f"{turn}") for turn in range(2))
    scanned = fastest(lambda: reduce([str(retain)], next(outs), [str(forget)]), 2) - folded
    found = {"WRITE": 2 * min(written), "FOLD": folded, "SCAN": scanned}
    return {"MEMORY": memory} | {n: value / 128 / LLAVA.vectors for n, value in found.items()}


def measure_workers() -> dict[str, float]:
    """Inputs as LLaVA-1.5 makes them of a picture of 640 x 480; the start with SmolLM2-135M."""
    base, side = smollm2_checkpoint(), {"height": 336, "width": 336}
    processor = make_processor(base)
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)
    processor.patch_size = 14
    config = make_config(base, processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(picture := io.BytesIO(), "JPEG")
    example = question_answer("", "word " * 40, "It is a word.", [picture.getvalue()])
    encoder = AnswerEncoder(processor, config)
    spans, checkpoint = [encoder.locate(example)], Checkpoint.open(base)
    sites = match_tensors(find_sites(model_skeleton(base)), checkpoint)
    size = sum(tensor.stop - tensor.start for tensor in checkpoint.tensors.values())
    return {
        "LOCATE": fastest(partial(encoder.locate, example), 50),
        "ENCODE": fastest(partial(encoder.batch, [example], spans, "answer"), 50),
        "DIGEST": fastest(lambda: Checkpoint.open(base).digest, 3) / size,
        "LOAD": fastest(lambda: check_weights(load_model(base), sites), 3) / size,
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            for name in SHEETS:
                Console(width=140).print(name, Markdown(markdown(name)))
        case ["--write"]:
            DOC.write_text(filled(DOC.read_text()))
        case ["--measure"]:
            with tempfile.TemporaryDirectory() as folder:
                measured = {**measure_workers(), **measure_stores(Path(folder))}
            print("\n".join(f"{name} = {value:.2g}" for name, value in measured.items()))
        case unknown:
            sys.exit(f"{' '.join(unknown)}: give nothing, --write or --measure")
