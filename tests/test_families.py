"""Every supported family, from a conversation to a weakened checkpoint that transformers loads.

The table of models in the README is made here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kvwstream import models
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.answers import AnswerEncoder
from kvwstream.collector import record_sums, site_inputs
from kvwstream.errors import DataError, ModelError
from kvwstream.gates import gated
from kvwstream.models import inference, load_config, load_model, load_processor
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.evaluate import judge
from kvwstream.pipelines.measure import Measurer
from kvwstream.pipelines.prepare import Preparation, prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.prefix_cache import PrefixCache
from kvwstream.probabilities import answer_logits
from kvwstream.readers import read_examples
from kvwstream.rounding import scale
from kvwstream.sites import find_sites
from kvwstream.strength import Strength
from tests import families
from tests.conftest import COLOURS, THINGS, question, write_rows
from tests.families import FAMILIES, Family, build_family

# PaliGemma's processor converts torch tensors with an old NumPy protocol
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
README = Path(__file__).parent.parent / "README.md"
MULTIMODAL = [family for family in FAMILIES if family.multimodal]


class OfflineProcessors:
    """`AutoProcessor` where torchvision is missing: the same processors, for images only."""

    @staticmethod
    def from_pretrained(folder: Path, **_: Any) -> Any:
        return families.load_processor(folder)


@pytest.fixture(autouse=True)
def processors(monkeypatch):
    monkeypatch.setattr(models, "AutoProcessor", OfflineProcessors)


class Case:
    """A family's model with data that suit it."""

    def __init__(self, family: Family, folder: Path, dtype: torch.dtype) -> None:
        self.family, self.folder = family, folder
        self.model = build_family(family.name, folder / "model", dtype)
        rng = np.random.default_rng(0)
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        self.retain = self.write("retain", zip(THINGS[:4], COLOURS[:4], strict=True))
        self.forget = self.write("forget", [(THINGS[5], "pink"), (THINGS[6], "gold")])

    def write(self, name: str, facts: Any) -> str:
        """A row with one image, one with two, one without (where allowed), and so on."""
        rows = []
        for number, (thing, colour) in enumerate(facts):
            row = question(thing, colour)
            images = [f"{n % 4}.png" for n in range(number, number + 1 + number % 2)]
            if self.family.multimodal and (number != 2 or not self.family.text_rows):
                row["images"] = images
            rows.append(row)
        return str(write_rows(self.folder / f"{name}.jsonl", rows))

    def prepare(self, data: str, **options: Any) -> Preparation:
        batch = 2 if self.family.independent else 1
        return prepare(str(self.model), read_examples(data), batch_size=batch, **options)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param.name)
    return Case(request.param, folder, torch.float32)


def test_every_site_fires_once_and_its_sums_are_those_of_its_input(case: Case):
    prepared = case.prepare(case.retain, moments=("abs", "signed", "square"))
    loaded = load_model(case.model)
    for record in range(prepared.plan.num_records):
        batch = prepared.record_batch(record)
        seen: list[torch.Tensor] = []

        def keep(number: int, inputs: torch.Tensor, seen: list[torch.Tensor] = seen) -> None:
            assert len(seen) == number  # once each, in order
            seen.append(inputs.reshape(-1, inputs.shape[-1]).clone())

        with inference(loaded.model):
            with site_inputs(loaded.model, prepared.sites, keep):
                loaded.model(**batch.inputs, use_cache=False)
            sums = record_sums(loaded.model, prepared.sites, batch, prepared.plan.moments)[:, 0]
        assert len(seen) == len(prepared.sites)
        assert all(len(inputs) == batch.num_positions for inputs in seen)
        rows = torch.cat(seen, dim=1)[batch.rows].double()
        expected = torch.stack([rows.abs().sum(0), rows.sum(0), rows.square().sum(0)])
        torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


BEGINNING = "Long ago there was a town by the sea where every thing had a colour of its own. "


def test_sums_behind_shared_beginnings_are_those_alone(case: Case):
    """Questions about a picture, then as many without one, through one worker, group by group."""
    rows = {"images": [], "text": []}
    for kind, own in rows.items():
        for thing in THINGS:
            row = question(f"{thing} of {kind}", "green")
            row["question"] = BEGINNING + row["question"]
            shown = kind == "images" or not case.family.text_rows
            own.append({**row, "images": ["0.png"]} if case.family.multimodal and shown else row)
    examples = [
        example
        for kind, own in rows.items()
        for example in read_examples(str(write_rows(case.folder / f"shared-{kind}.jsonl", own)))
    ]
    loaded = load_model(case.model)
    for first in ("images", "text"):
        prepared = in_turn(case, examples, first)
        assert bool(prepared.table.prefix.any()) == (prepared.why_not_shared is None)
        measurer = Measurer(loaded, prepared)
        with inference(loaded.model):
            for part in prepared.plan.parts:
                found = measurer.part(part).sums["abs"]
                for row, record in zip(found, range(part.start, part.stop), strict=True):
                    batch = prepared.record_batch(record)
                    sums = record_sums(loaded.model, prepared.sites, batch, ("abs",))[0, 0].numpy()
                    assert np.abs(row - sums).max() <= 1e-5 * sums.max(), prepared.names(record)


SIZES = ((56, 84), (84, 84), (84, 56), (70, 98))
"""Of pictures: some families make as many tokens of each, others not."""


def test_small_groups_run_together(case: Case, monkeypatch):
    """Questions about each of four beginnings, with one or two pictures where the model takes any.

    Rotary positions with three axes differ from group to group.
    """
    rng = np.random.default_rng(1)
    for number, size in enumerate(SIZES):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(case.folder / f"wide-{number}.png")
    rows = []
    for number in range(4):
        shown = [f"wide-{number}.png", "wide-0.png"][: 1 + number % 2]
        for thing in THINGS[: 2 + number % 2]:
            row = question(f"{thing} of {COLOURS[number]}", "green")
            row["question"] = f"{COLOURS[number]}: {BEGINNING}{row['question']}"
            rows.append({**row, "images": shown} if case.family.multimodal else row)
    examples = read_examples(str(write_rows(case.folder / "groups.jsonl", rows)))
    prepared = prepare(str(case.model), examples, pass_tokens=100_000)
    part, deltas = prepared.plan.part(0), []
    behind = PrefixCache.positions_behind

    def noted(cache: PrefixCache, *arguments: Any) -> Any:
        if cache._rope_deltas is not None:
            deltas.append(len(set(cache._rope_deltas.tolist())))
        return behind(cache, *arguments)

    monkeypatch.setattr(PrefixCache, "positions_behind", noted)
    if prepared.why_not_shared is None:
        together = [run for run in prepared.passes(part) if len(set(run.groups)) > 1]
        assert together
        assert all(run.prefix for run in together)
    loaded = load_model(case.model)
    with inference(loaded.model):
        found = Measurer(loaded, prepared).part(part).sums["abs"]
        for record, row in enumerate(found):
            batch = prepared.record_batch(record)
            sums = record_sums(loaded.model, prepared.sites, batch, ("abs",))[0, 0].numpy()
            assert np.abs(row - sums).max() <= 1e-5 * sums.max(), prepared.names(record)
    assert not deltas or max(deltas) > 1


def in_turn(case: Case, examples: list[Any], first: str) -> Preparation:
    """Examples in parts of one kind, `first` before the other where the model tells them apart."""
    for seed in range(32):
        prepared = prepare(str(case.model), examples, part_size=len(THINGS), seed=seed)
        shown = [bool(example.images) for example in prepared.examples]
        apart = shown == sorted(shown, reverse=first == "images")
        if apart or prepared.why_not_shared:
            return prepared
    raise AssertionError("no seed puts them in this order")


def test_the_marked_tokens_are_the_answer(case: Case):
    prepared = case.prepare(case.retain)
    for example in prepared.examples:
        span, ids = prepared.encoder.read(example)
        positions = {
            rule: prepared.encoder.positions(ids, span, rule)
            for rule in ("answer", "question", "image", "all")
        }
        answer = [ids[position + 1] for position in positions["answer"]]
        assert prepared.encoder.tokenizer.decode(answer).strip() == example.answer
        assert [len(positions[rule]) for rule in positions] == [
            span.num_positions(rule) for rule in positions
        ]
        parts = positions["question"] + positions["image"] + positions["answer"]
        assert sorted(parts) == positions["all"]
        assert bool(positions["image"]) == bool(example.images)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def weakened(request, case: Case, tmp_path_factory):
    """The base, its statistics and a weakened checkpoint, in a dtype."""
    patch = pytest.MonkeyPatch()
    patch.setattr(models, "AutoProcessor", OfflineProcessors)
    folder = tmp_path_factory.mktemp("weakened")
    if request.param == "bfloat16":
        case = Case(case.family, folder, torch.bfloat16)
    urls = {kind: str(folder / f"{kind}.zarr") for kind in ("retain", "forget")}
    for kind, url in urls.items():
        collect(case.prepare(getattr(case, kind)), url)
    stored = reduce([urls["retain"]], str(folder / "statistics.zarr"), [urls["forget"]])
    layers = LayerRange(0, max(site.layer for site in stored.sites))
    out = folder / "weakened"
    apply(case.model, stored.location.url, out, Strength(0.5, layers))
    patch.undo()
    return case, stored, layers, out


def test_the_checkpoint_that_transformers_loads_is_base_times_gate(weakened):
    """The weights at the sites, to one rounding; every other parameter, vision too, to the bit."""
    case, stored, layers, out = weakened
    base, made = load_model(case.model).model, load_model(out).model
    values = vector_gates(stored.sites, stored.exponent(), 0.5, layers)
    assert (values < 1).any()
    changed = {f"{site.path}.weight": site for site in stored.sites}
    parameters = dict(made.named_parameters())
    for name, weight in base.named_parameters():
        if name not in changed:
            assert torch.equal(weight, parameters[name]), name
            continue
        site = changed.pop(name)
        raw = weight.detach().contiguous().view(torch.uint8).numpy().tobytes()
        code = {torch.float32: "F32", torch.bfloat16: "BF16"}[weight.dtype]
        rows, factors = weight.shape[1], values[site.vectors]
        expected = scale(raw, code, rows, site.axis, factors, first_row=0)
        got = parameters[name].detach().contiguous().view(torch.uint8).numpy().tobytes()
        assert got == expected, name
    assert not changed


def test_gates_on_coefficients_equal_the_scaled_weights(weakened):
    case, stored, layers, out = weakened
    base, made = load_model(case.model, "float32"), load_model(out, "float32")
    batch = case.prepare(case.forget).record_batch(0)
    values = vector_gates(stored.sites, stored.exponent(), 0.5, layers)
    with inference(base.model), inference(made.model):
        plain = base.model(**batch.inputs).logits
        with gated(base.model, stored.sites, values):
            gates = base.model(**batch.inputs).logits
        scaled = made.model(**batch.inputs).logits
    effect = (gates - plain).abs().max()
    exact = load_config(case.model).dtype == torch.float32
    assert effect > 0.05
    assert (gates - scaled).abs().max() < effect * (1e-4 if exact else 0.1)


def test_greedy_answers_of_mixed_rows(case: Case):
    loaded = load_model(case.model)
    examples = read_examples(case.retain)
    together = judge(loaded, examples, batch_size=4, max_new_tokens=3)
    alone = judge(loaded, examples, batch_size=1, max_new_tokens=3)
    assert [j.response for j in together.judgements] == [j.response for j in alone.judgements]


def test_answer_logits_are_those_of_a_whole_forward_pass(case: Case):
    loaded, prepared = load_model(case.model), case.prepare(case.retain)
    for record in range(prepared.plan.num_records):
        batch = prepared.record_batch(record)
        with inference(loaded.model):
            whole = loaded.model(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.rows]
            found = answer_logits(loaded.model, batch)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


class Broken:
    """A processor or tokenizer whose token ids are spoilt on their way out."""

    def __init__(self, whole: Any, spoil: Any) -> None:
        self._whole, self._spoil, self._calls = whole, spoil, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._calls += 1
        inputs = dict(self._whole(*args, **options))
        is_prompt = self._calls % 2 == 1  # `locate` asks for the prompt first
        inputs["input_ids"] = self._spoil(inputs["input_ids"].clone(), is_prompt)
        return inputs


def change(ids: torch.Tensor, at: int, token: int) -> torch.Tensor:
    ids[0, at] = token
    return ids


FAULTS = {
    "prompt is no prefix": (
        lambda ids, is_prompt, e: ids if is_prompt else change(ids, 0, int(ids[0, 0]) + 1),
        "are not a prefix",
    ),
    "answer is empty": (
        lambda ids, is_prompt, e: ids if is_prompt else e.prompt_ids,
        "the tokens behind the prompt read ''",
    ),
    "whole text is the answer": (
        lambda ids, is_prompt, e: ids[:, :0] if is_prompt else ids,
        "the tokens behind the prompt read",
    ),
    "answer is cut off": (
        lambda ids, is_prompt, e: ids if is_prompt else ids[:, : -2 - e.takes_suffix],
        "the tokens behind the prompt read",
    ),
    "padding in the answer": (
        lambda ids, is_prompt, e: ids if is_prompt else change(ids, -2, e.tokenizer.pad_token_id),
        "the tokens behind the prompt read|special tokens",
    ),
    "image token in the answer": (
        lambda ids, is_prompt, e: (
            ids if is_prompt else change(ids, -2, min(e.image_ids, default=0))
        ),
        "the tokens behind the prompt read|special tokens",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_processor_that_loses_the_answer_is_found_out(case: Case, fault):
    spoil, message = FAULTS[fault]
    config = load_config(case.model)
    example = read_examples(case.retain)[0]
    encoder = AnswerEncoder(load_processor(case.model, config), config)
    rendered, images = encoder.render(example), encoder._images(example)
    prompt = encoder._process([rendered.prompt], None, [images])["input_ids"]
    # with a suffix the last token is not the answer's
    encoder.prompt_ids = torch.cat([prompt, prompt[:, -1:]], 1) if encoder.takes_suffix else prompt
    whole = encoder.processor if encoder.multimodal else encoder.tokenizer
    broken = Broken(whole, lambda ids, is_prompt: spoil(ids, is_prompt, encoder))
    if encoder.multimodal:
        encoder.processor = broken
    else:
        encoder.tokenizer = broken
    with pytest.raises(DataError, match=rf"{example.id}: .*({message})"):
        encoder.locate(example)


@pytest.mark.skipif("__import__('transformers').utils.is_torchvision_available()")
@pytest.mark.parametrize("name", ["qwen2_vl", "pixtral"])
def test_without_torchvision_the_message_names_the_package(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = build_family(name, tmp_path / "model")
    with pytest.raises(ModelError, match=r"processor cannot be loaded: .*pip install torchvision"):
        load_processor(folder, load_config(folder))


def test_rows_that_interact_are_not_batched(tmp_path):
    case = Case(next(f for f in FAMILIES if f.name == "mllama"), tmp_path, torch.float32)
    with pytest.raises(ValueError, match="a row's numbers depend on the images of its neighbours"):
        prepare(str(case.model), read_examples(case.retain), batch_size=2)
    prepared = case.prepare(case.retain)
    assert [site.layer for site in prepared.sites] == [0, 2]  # layer 1 attends to images
    asked_for = case.prepare(case.retain, cross_attention=True)
    assert [site.layer for site in asked_for.sites] == [0, 1, 2]


def test_images_for_a_text_model_are_refused(llama, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = write_rows(tmp_path / "d.jsonl", [{**question("sky", "blue"), "image": "a.png"}])
    with pytest.raises(DataError, match="sky-blue: has an image, but the model takes text only"):
        prepare(str(llama), read_examples(str(source)))


def table_row(family: Family, folder: Path) -> str:
    config = load_config(folder)
    site = find_sites(models.model_skeleton(folder))[0]
    path = re.sub(r"\b0\b", "*", site.path, count=1)
    kind = "vision-language" if family.multimodal else "text"
    return f"| {config.model_type} | {kind} | `{path}` | {('rows', 'columns')[site.axis]} |"


def test_the_table_of_models_in_the_readme_is_made_from_these(tmp_path):
    rows = [
        table_row(family, build_family(family.name, tmp_path / family.name)) for family in FAMILIES
    ]
    text = README.read_text()
    missing = [row for row in dict.fromkeys(rows) if row not in text]
    assert not missing, "put into README.md:\n" + "\n".join(missing)


def test_models_prints_what_was_found(case: Case, capsys):
    from tests.test_cli import run

    out = run("models", case.model, capsys=capsys)
    sites = case.prepare(case.retain).sites
    assert all(site.path in out and site.tensor in out for site in sites)
    size = sum(4 * site.width + 8 for site in sites)
    assert re.search(rf"{size} B per record and moment", out)
