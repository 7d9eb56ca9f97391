"""What jobs cost at scale, computed from shapes: `python -m benchmarks.scale`.

Every resource is given as the time that it would take if it were the only one; the longest is what
saturates first. `--write` puts the tables into docs/scale.md, `--measure` measures the constants
below "Measured" anew.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
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

from benchmarks.testbed.model import IMAGE_TOKEN, make_config, make_processor
from kvwstream.answers import AnswerEncoder
from kvwstream.examples import question_answer
from kvwstream.pipelines.reduce import reduce
from kvwstream.plan import CollectPlan, Site
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores import collected
from kvwstream.stores.collected import CollectStore, ExampleTable, PartData
from kvwstream.stores.location import Location

DOC = Path(__file__).parent.parent / "docs" / "scale.md"
EXAMPLES = (10**4, 10**6, 10**9)

# Assumed
TOKENS = 640  # per example: 576 of a picture, 64 of text, as in LLaVA-1.5
FLOPS = 989e12 * 0.3  # per second: an H100 in dense bfloat16 as published, times its utilisation
PUT_RATE = 3500  # per second that Amazon S3 promises for a prefix, as long as it has not split it
LATENCY = 0.03  # seconds of a small request to object storage
TASK = 0.001  # seconds of the Dask scheduler per task, as its documentation says

# Measured: seconds on two cores
LOCATE = 0.02  # per example, to find its answer when the plan is made
ENCODE = 0.011  # per example, to make the model's input
WRITE = 20e-9  # per coefficient sum: digest, compress, put on disk
FOLD = 24e-9  # per coefficient sum of retain data: read, check, add
SCAN = 350e-9  # per coefficient sum of forget data: read, check, logarithm, write three arrays

# Given by the format and by libraries
PAGE = 1000  # objects per request of a listing
BLOCK = 5 << 20  # bytes beyond which obstore puts an object in blocks of so many
MAX_BLOCKS = 10_000  # of which Amazon S3 makes one object
TABLES = 3 + 2 * len(Site._fields) + 1 + 2 * len(collected.COLUMNS)  # objects beside the parts
SEAL_GETS, ARRAY_GETS = 2, 2  # of `reduce`, per part and per array in it; it reads two arrays


class Model(NamedTuple):
    """Shape of a decoder with one site per layer and expert."""

    name: str
    layers: int
    experts: int
    width: int
    flops: float
    """Of one example: twice the parameters that a token runs through, vision tower included."""

    @property
    def sites(self) -> int:
        return self.layers * self.experts

    @property
    def vectors(self) -> int:
        return self.sites * self.width


MODELS = (
    Model("Qwen2-VL-2B", 28, 1, 8960, 2 * (1.31e9 * TOKENS + 0.63e9 * 2304)),
    Model("LLaVA-1.5-7B", 32, 1, 11008, 2 * (6.48e9 * TOKENS + 0.30e9 * 577)),
    Model("Qwen2.5-VL-72B", 80, 1, 29568, 2 * (70.2e9 * TOKENS + 0.63e9 * 2304)),
    Model("Qwen3-VL-235B-A22B", 94, 128, 1536, 2 * (20.9e9 * TOKENS + 0.41e9 * 2304)),
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

    records: int
    parts: int
    objects: int
    pages: int
    """Requests of one listing."""
    puts: int
    gets: int
    reduce_gets: int
    record_bytes: int
    part_bytes: int
    store_bytes: int
    statistics_bytes: int
    """Rows of the statistics, if the records are to forget."""
    plan: float
    collect: dict[str, float]
    """Per resource; the first three are of the worker that has the most records."""
    retain: float
    """Of `reduce`, if the records are to retain; else `forget`."""
    forget: float

    @property
    def first(self) -> str:
        """What saturates first in `collect`."""
        return max(self.collect, key=self.collect.__getitem__)

    @property
    def seconds(self) -> float:
        """Of `collect`: a worker does one thing after the other, the rest goes on meanwhile."""
        *worker, requests, scheduler = self.collect.values()
        return max(sum(worker), requests, scheduler)


def cost(job: Job) -> Cost:
    model, _, gpus, batch_size, part_size, moments = job
    records = ceil(job.examples, batch_size)
    parts, in_part = ceil(records, part_size), min(part_size, records)
    objects = TABLES + parts * (2 * (moments + 1) + 1)  # metadata, data of each array, and the seal
    sums, counts = 4 * model.vectors, 8 * model.sites
    record_bytes = moments * sums + counts
    puts = moments * (1 + put_requests(in_part * sums)) + 1 + put_requests(in_part * counts) + 1
    mine = min(ceil(parts, gpus) * part_size, records)
    # for their digest seals are read one by one, and so are the pages of a listing
    one_by_one = (parts + ceil(objects, PAGE)) * LATENCY
    return Cost(
        records=records,
        parts=parts,
        objects=objects,
        pages=ceil(objects, PAGE),
        puts=parts * puts,
        gets=parts * (1 + moments + 1),  # is there a seal? and the metadata that it takes up
        reduce_gets=parts * (SEAL_GETS + 2 * ARRAY_GETS),
        record_bytes=record_bytes,
        part_bytes=in_part * record_bytes,
        store_bytes=records * record_bytes,
        statistics_bytes=records * (3 * 8 * model.vectors + counts),
        plan=job.examples * LOCATE,
        collect={
            "inputs": mine * batch_size * ENCODE,
            "GPUs" if gpus <= parts else "parts": mine * batch_size * model.flops / FLOPS,
            "writing": mine * model.vectors * moments * WRITE,
            "requests": parts * puts / PUT_RATE,
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
    found = cost(job._replace(gpus=gpus))
    return f"{duration(found.seconds)}, {found.first}"


CELLS: dict[str, Callable[[Job, Cost], str]] = {
    "model": lambda job, _: job.model.name,
    "sites": lambda job, _: f"{job.model.sites:,}",
    "vectors": lambda job, _: f"{job.model.vectors:,}",
    "record": lambda _, cost: decimal(cost.record_bytes),
    "part": lambda _, cost: decimal(cost.part_bytes),
    "largest part, records": lambda job, _: f"{MAX_BLOCKS * BLOCK // (4 * job.model.vectors):,}",
    "GPU, per example": lambda job, _: duration(job.model.flops / FLOPS),
    "writing, per record": lambda job, _: duration(job.model.vectors * WRITE),
    "option": lambda job, _: OPTIONS[job],
    "examples": lambda job, _: f"{job.examples:,}",
    "batch size": lambda job, _: f"{job.batch_size}",
    "parts": lambda _, cost: f"{cost.parts:,}",
    "objects": lambda _, cost: f"{cost.objects:,}",
    "puts": lambda _, cost: f"{cost.puts:,}",
    "gets": lambda _, cost: f"{cost.gets:,}",
    "gets of reduce": lambda _, cost: f"{cost.reduce_gets:,}",
    "requests of a listing": lambda _, cost: f"{cost.pages:,}",
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
        "model; sites; vectors; record; part; largest part, records; GPU, per example; "
        "writing, per record",
    ),
    "objects": (
        [Job(LLAVA, examples, batch_size=size) for examples in EXAMPLES for size in (1, 64)],
        "examples; batch size; parts; objects; puts; gets; gets of reduce; requests of a listing",
    ),
    "retain": (JOBS, f"model; examples; store; {COLLECT}"),
    "retain, batch size 64": (
        [job._replace(batch_size=64) for job in JOBS],
        f"model; examples; store; {COLLECT}",
    ),
    "forget": (JOBS, "model; examples; store; statistics; reduce to forget"),
    "options": (list(OPTIONS), f"option; store; part; objects; puts; {COLLECT}"),
}


def markdown(name: str) -> str:
    jobs, columns = SHEETS[name][0], SHEETS[name][1].split("; ")
    rows = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    rows += [[CELLS[column](job, cost(job)) for column in columns] for job in jobs]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def filled(text: str) -> str:
    """The document with the tables between its markers made anew."""
    for name in SHEETS:
        before, begin, after = text.partition(f"<!-- {name} -->\n")
        _, end, rest = after.partition("\n<!-- end -->")
        assert end, f"{DOC.name} has no place for the table {name}"
        text = before + begin + markdown(name) + end + rest
    return text


def make_store(folder: Path, model: Model, records: int, first: int = 0) -> float:
    """A complete store of made-up sums, its examples numbered from `first`; seconds of writing."""
    places = [(layer, expert) for layer in range(model.layers) for expert in range(model.experts)]
    sites = [
        Site(
            f"{layer}.{expert}", f"{layer}.{expert}", 1, layer, expert, model.width, n * model.width
        )
        for n, (layer, expert) in enumerate(places)
    ]
    names = [f"{first + number:064x}" for number in range(records)]
    table = ExampleTable(names, names, np.full(records, TOKENS), np.full(records, 20))
    plan = CollectPlan(
        *("0" * 64,) * 3, collected.sites_digest(sites), table.digest,
        records, model.sites, model.vectors, seed=0, batch_size=1, part_size=64, tokens="answer",
        moments=("abs",), dtype="bfloat16", attention="sdpa", threads=1,
    )  # fmt: skip
    store, spent = CollectStore.create(Location(str(folder)), plan, sites, table), 0.0
    for part in plan.parts:
        shape = (part.num_records, model.vectors)
        sums = np.abs(np.random.default_rng(part.number).standard_normal(shape, np.float32))
        data = PartData(part, {"abs": sums}, np.full((part.num_records, model.sites), 20))
        spent += seconds(partial(store.write_part, data, {}))
    return spent


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_stores(folder: Path) -> dict[str, float]:
    """At the width of LLaVA; what every `reduce` costs besides is subtracted."""
    long, short, forget = (str(folder / name) for name in ("long", "short", "forget"))
    writing = make_store(Path(long), LLAVA, 384)
    make_store(Path(short), LLAVA, 128, first=1000)
    make_store(Path(forget), LLAVA, 128, first=2000)
    base = seconds(partial(reduce, [short], str(folder / "a")))
    folded = seconds(partial(reduce, [long], str(folder / "b"))) - base
    scanned = seconds(partial(reduce, [short], str(folder / "c"), [forget])) - base
    spent = {"WRITE": writing / 384, "FOLD": folded / (384 - 128), "SCAN": scanned / 128}
    return {name: value / LLAVA.vectors for name, value in spent.items()}


def measure_inputs(repeats: int = 50) -> dict[str, float]:
    """With the image processor of LLaVA-1.5, a picture of 640 x 480 and 64 tokens of text."""
    base, side = smollm2_checkpoint(), {"height": 336, "width": 336}
    processor = make_processor(base)
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)
    processor.patch_size = 14
    config = make_config(base, processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(picture := io.BytesIO(), "JPEG")
    example = question_answer("", "word " * 40, "It is a word.", [picture.getvalue()])
    encoder = AnswerEncoder(processor, config)
    batch = partial(encoder.batch, [example], [encoder.locate(example)], "answer")
    work = {"LOCATE": partial(encoder.locate, example), "ENCODE": batch}
    return {name: sum(map(seconds, [w] * repeats)) / repeats for name, w in work.items()}


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            for name in SHEETS:
                Console(width=140).print(name, Markdown(markdown(name)))
        case ["--write"]:
            DOC.write_text(filled(DOC.read_text()))
        case ["--measure"]:
            with tempfile.TemporaryDirectory() as folder:
                measured = {**measure_inputs(), **measure_stores(Path(folder))}
            print("\n".join(f"{name} = {value:.2g}" for name, value in measured.items()))
        case unknown:
            sys.exit(f"{' '.join(unknown)}: give nothing, --write or --measure")
