"""Algorithm 1 against a plain loop over a model in memory, which shares no code with kvwstream."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from typer.testing import CliRunner

from kvwstream import models
from kvwstream.accessor import LayerRange
from kvwstream.cli import app
from kvwstream.errors import (
    DamageError,
    DataError,
    OptionError,
    PlanMismatchError,
    StorageError,
)
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.progressive import Beginning
from kvwstream.pipelines.reduce import reduce
from kvwstream.pipelines.weakened import Weakening
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from tests import families
from tests.conftest import (
    COLOURS,
    THINGS,
    gpt2_config,
    llama_config,
    question,
    save_model,
    tree_bytes,
    write_rows,
)
from tests.families import build_family
from tests.test_families import OfflineProcessors

GAMMA, LAYERS = 0.3, "0:1"
ALONE = {"sharing": False, "pass_tokens": 1}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ARITHMETICS = ("exact", "in-place")
FORGET = [(thing, "pink") for thing in THINGS if thing != "sea"]
FORGET += [(thing, "white") for thing in ("sky", "sun", "ash")]
LATER = [(thing, "gold") for thing in THINGS[:3]]


class Case:
    """A model in a dtype, its data, and C_r."""

    def __init__(self, kind: str, dtype: str, folder: Path) -> None:
        self.kind, self.dtype, self.folder = kind, DTYPES[dtype], folder
        if kind == "llava":
            self.model = build_family("llava", folder / "model", self.dtype)
            pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
        else:
            config = llama_config() if kind == "llama" else gpt2_config()
            self.model = save_model(
                folder / "model", config, dtype=self.dtype, chat=kind == "llama"
            )
        retain = list(zip(THINGS, COLOURS, strict=True))
        rows = {"retain": retain, "forget": FORGET, "later": LATER}
        self.data = {name: self.write(name, facts) for name, facts in rows.items()}
        self.retain = str(folder / "retain.zarr")
        retain = read_examples(self.data["retain"])
        collect(prepare(str(self.model), retain, **ALONE), self.retain)
        self.c_r = str(folder / "c_r.zarr")
        reduce([self.retain], self.c_r)

    def write(self, name: str, facts: list[tuple[str, str]]) -> str:
        rows = [question(*fact) for fact in facts]
        if self.kind == "llava":
            rows = [{**row, "image": "0.png"} for row in rows]
        return str(write_rows(self.folder / f"{name}.jsonl", rows))

    def collect(self, store: str, arithmetic: str, data: str = "forget", **options: Any) -> str:
        beginning = Beginning.chosen(
            None if options.get("after") else self.c_r, options.pop("after", None)
        )
        epochs = options.pop("epochs", 1)
        how = beginning.plan(GAMMA, LAYERS, arithmetic, epochs)
        examples = read_examples(self.data[data])
        prepared = prepare(str(self.model), examples, progressive=how, part_size=3, **options)
        collect(prepared, str(self.folder / store), beginning=beginning)
        return str(self.folder / store)

    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        return {n: t for p in folder.glob("*.safetensors") for n, t in load_file(p).items()}


class Reference:
    """The procedure of the paper, as one would write it in an afternoon."""

    def __init__(self, case: Case) -> None:
        self.case = case
        auto = AutoModelForImageTextToText if case.kind == "llava" else AutoModelForCausalLM
        self.net = auto.from_pretrained(case.model, dtype=case.dtype).eval()
        names = ("down_proj", "mlp.c_proj")
        self.values = {
            name: module
            for name, module in self.net.named_modules()
            if name.endswith(names) and "vision" not in name
        }
        self.gates: dict[str, torch.Tensor] = {}
        self.seen: dict[str, np.ndarray] = {}
        if case.kind == "llava":
            self.processor = families.load_processor(case.model)
            self.tokenizer = self.processor.tokenizer
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(case.model)

    def inputs(self, row: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
        """What the model reads, and the length of the prompt in it."""
        if self.case.kind == "gpt2":
            prompt = f"Question: {row['question']}\nAnswer:"
            text = f"{prompt} {row['answer']}"
        else:
            content: Any = row["question"]
            if self.case.kind == "llava":
                content = [{"type": "image"}, {"type": "text", "text": content}]
            owner = self.processor if self.case.kind == "llava" else self.tokenizer
            asked, answer = {"role": "user", "content": content}, row["answer"]
            said: Any = [{"type": "text", "text": answer}] if "image" in row else answer
            prompt = owner.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
            text = owner.apply_chat_template(
                [asked, {"role": "assistant", "content": said}], tokenize=False
            )
            text = text[: text.rindex(answer) + len(answer)]
        if self.case.kind == "llava":
            image = Image.open(self.case.folder / "0.png").convert("RGB")
            made, short = (
                self.processor(text=[t], images=[image], return_tensors="pt")
                for t in (text, prompt)
            )
            made["pixel_values"] = made["pixel_values"].to(self.case.dtype)
            return self.cut(made), short["input_ids"].shape[1]
        ids, short = (self.tokenizer(t, add_special_tokens=False).input_ids for t in (text, prompt))
        return self.cut({"input_ids": torch.tensor([ids])}), len(short)

    @staticmethod
    def cut(inputs: Any) -> dict[str, torch.Tensor]:
        """Without the last token, which predicts nothing."""
        tokens = ("input_ids", "attention_mask", "token_type_ids")
        return {n: v[:, :-1] if n in tokens else v for n, v in inputs.items()}

    def measure(self, row: dict[str, Any]) -> int:
        """Sums of |coefficient| over the positions that predict the answer; their number."""
        inputs, prompt = self.inputs(row)
        length = inputs["input_ids"].shape[1] + 1
        *_, last = self.values

        def answers_alone(module: Any, arguments: Any) -> Any:
            return (arguments[0][:, prompt - 1 :].contiguous(),)

        def hook(name: str) -> Any:
            def see(module: Any, arguments: Any) -> Any:
                (coefficients,) = arguments
                answer = coefficients[0, 0 if name == last else prompt - 1 :].to(torch.float32)
                self.seen[name] = sum(answer.abs()).numpy()
                if name == last:
                    raise StopIteration
                return (coefficients * self.gates[name],) if name in self.gates else None

            return see

        handles = [m.register_forward_pre_hook(hook(n)) for n, m in self.values.items()]
        mlp = self.net.get_submodule(last.rpartition(".")[0])
        for name in ("gate_proj", "up_proj", "c_fc"):  # the last MLP has no other use
            if hasattr(mlp, name):
                handles.append(getattr(mlp, name).register_forward_pre_hook(answers_alone))
        with torch.inference_mode(), suppress(StopIteration):
            self.net(**inputs)
        for handle in handles:
            handle.remove()
        return length - prompt

    def run(self, requests: list[list[dict[str, Any]]], arithmetic: str, until: int = 10**9):
        """Weakened weights by tensor name, after `until` records of all requests."""
        total, tokens = dict.fromkeys(self.values, 0.0), 0
        for row in map(json.loads, Path(self.case.data["retain"]).read_text().splitlines()):
            tokens += self.measure(row)
            total = {n: t + self.seen[n].astype(np.float64) for n, t in total.items()}
        c_r = {n: t / tokens for n, t in total.items()}
        base = {n: m.weight.detach().clone() for n, m in self.values.items()}
        exponent = {n: np.zeros(len(t)) for n, t in total.items()}
        for row in [row for request in requests for row in request][:until]:
            count = self.measure(row)
            for name, module in self.values.items():
                c_f = self.seen[name].astype(np.float64) / count
                a = np.maximum(np.log(c_f + 1e-12) - np.log(c_r[name] + 1e-12), 0)
                exponent[name] += a
                step = torch.from_numpy(np.exp(-GAMMA * a))
                gate = torch.from_numpy(np.exp(-GAMMA * exponent[name]))
                if arithmetic == "exact":
                    self.gates[name] = gate.to(self.case.dtype)
                else:
                    step = round_once(step, self.case.dtype)
                    with torch.no_grad():
                        module.weight.mul_(step[:, None] if self.is_row(name) else step)
        made = {}
        for name, module in self.values.items():
            if arithmetic == "exact":
                gate = torch.from_numpy(np.exp(-GAMMA * exponent[name]))
                gate = gate[:, None] if self.is_row(name) else gate
                made[name] = round_once(base[name].double() * gate, self.case.dtype)
            else:
                made[name] = module.weight.detach()
        return made

    def is_row(self, name: str) -> bool:
        return name.endswith("c_proj")


def round_once(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To nearest even; torch's own conversion of float64 rounds to float32 on its way."""
    if dtype == torch.bfloat16:  # eight significant bits
        mantissa, exponent = np.frexp(values.numpy())
        return torch.from_numpy(np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)).to(dtype)
    return torch.from_numpy(values.numpy().astype(str(dtype).removeprefix("torch.")))


def rows_of(store: str, case: Case, data: str = "forget") -> list[dict[str, Any]]:
    """The rows in the order in which they were measured."""
    rows = [json.loads(line) for line in Path(case.data[data]).read_text().splitlines()]
    by_id = {row["id"]: row for row in rows}
    return [by_id[name] for name in CollectStore.open(Location(store)).record_names()]


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every weakened tensor, bit for bit, whatever a checkpoint calls it."""
    for name, tensor in expected.items():
        tail = name.split("layers.")[-1].split("h.")[-1]
        (match,) = [n for n in found if f".{tail}.weight" in f".{n}" and "vision" not in n]
        assert torch.equal(found[match], tensor), f"{name}: {found[match]} {tensor}"


@pytest.fixture(autouse=True)
def processors(monkeypatch):
    monkeypatch.setattr(models, "AutoProcessor", OfflineProcessors)


CASES = [(k, d) for k in ("llama", "gpt2") for d in DTYPES] + [("llava", "float32")]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: "-".join(p))
def case(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "AutoProcessor", OfflineProcessors)
        return Case(*request.param, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def llama_case(tmp_path_factory):
    return Case("llama", "float32", tmp_path_factory.mktemp("llama"))


def strength(until: int | None = None) -> Strength:
    return Strength(GAMMA, LayerRange.parse(LAYERS), until=until)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_collect_and_apply_do_what_a_plain_loop_does(case, arithmetic):
    store = case.collect(f"{arithmetic}.zarr", arithmetic)
    statistics = case.folder / f"s-{arithmetic}.zarr"
    reduce([case.retain], str(statistics), [store])
    out = case.folder / f"weak-{arithmetic}"
    apply(case.model, str(statistics), out, strength())
    expected = Reference(case).run([rows_of(store, case)], arithmetic)
    compare(case.weights(out), expected)
    paths = [case.retain, store, str(statistics), str(out)]
    found = audit(paths, base=case.model, statistics=str(statistics))
    assert found.passed, found.findings


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_every_earlier_moment_can_be_had(llama_case, arithmetic):
    case = llama_case
    store = case.collect(f"moments-{arithmetic}.zarr", arithmetic)
    statistics = case.folder / f"moments-s-{arithmetic}.zarr"
    reduce([case.retain], str(statistics), [store])
    for until in range(len(FORGET) + 1):
        out = case.folder / f"until-{arithmetic}-{until}"
        apply(case.model, str(statistics), out, strength(until))
        expected = Reference(case).run([rows_of(store, case)], arithmetic, until)
        compare(case.weights(out), expected)


def test_an_earlier_state_is_gone_on_from_where_that_is_exact(llama_case):
    case = llama_case
    urls = {}
    for arithmetic in ARITHMETICS:
        store = case.collect(f"from-{arithmetic}.zarr", arithmetic)
        urls[arithmetic] = str(case.folder / f"from-s-{arithmetic}.zarr")
        reduce([case.retain], urls[arithmetic], [store])
    url = urls["in-place"]
    folders = {k: case.folder / f"from-{k}" for k in (0, 3, len(FORGET))}
    for until, folder in folders.items():
        apply(case.model, url, folder, strength(until))
    for until, folder in folders.items():
        later = case.folder / f"later-{until}"
        made = apply(case.model, url, later, strength(), start=folder)
        assert tree_bytes(later) == {
            **tree_bytes(folders[len(FORGET)]),
            "kvwstream.json": (later / "kvwstream.json").read_bytes(),
        }
        whole = json.loads((folders[len(FORGET)] / "kvwstream.json").read_text())
        assert made["weakened"] == whole["weakened"]
        found = audit([str(later)], base=case.model, statistics=url)
        assert found.passed, found.findings
    refused = [
        (urls["exact"], strength(), folders[3], OptionError, "leave --from out"),
        (url, strength(2), folders[3], OptionError, "3 records are applied there already, 2 are"),
        (url, strength(), case.model, DamageError, "no kvwstream.json"),
    ]
    for statistics, wanted, folder, kind, message in refused:
        with pytest.raises(kind, match=message):
            apply(case.model, statistics, case.folder / "no", wanted, start=folder)
    other = str(case.folder / "from-frozen.zarr")
    frozen = case.folder / "from-frozen-forget.zarr"
    collect(prepare(str(case.model), read_examples(case.data["forget"])), str(frozen))
    reduce([case.retain], other, [str(frozen)])
    with pytest.raises(PlanMismatchError, match="schedule: progressive there, frozen here"):
        options = {"arithmetic": "in-place", "start": folders[3]}
        apply(case.model, other, case.folder / "no", strength(), **options)
    for file in folders[3].glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.unlink()
        file.write_bytes(content)
    with pytest.raises(DamageError, match="changed since it was written"):
        apply(case.model, url, case.folder / "no", strength(), start=folders[3])
    assert not (case.folder / "no").exists()


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_the_schedules_differ_but_in_the_first_record(llama_case, arithmetic):
    """Later records are measured on a weakened model: their coefficients are others."""
    case = llama_case
    store = CollectStore.open(Location(case.collect(f"other-{arithmetic}.zarr", arithmetic)))
    frozen = case.folder / f"frozen-{arithmetic}.zarr"
    collect(prepare(str(case.model), read_examples(case.data["forget"]), **ALONE), str(frozen))
    measured = CollectStore.open(Location(str(frozen)))
    rows = [measured.record_names().index(name) for name in store.record_names()[:3]]
    base = measured.read_part(0).sums["abs"][rows]
    found = store.read_part(0).sums["abs"]
    np.testing.assert_array_equal(found[0], base[0])
    # The first layer sees the same input in every schedule, the second does not.
    np.testing.assert_array_equal(found[:, :48], base[:, :48])
    assert np.all(np.any(found[1:, 48:] != base[1:, 48:], axis=1))


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_resume_replays_and_ends_with_the_same_bytes(llama_case, arithmetic):
    case = llama_case
    whole = tree_bytes(case.collect(f"whole-{arithmetic}.zarr", arithmetic))
    for lost in ([2], [1, 2], [0], [0, 1, 2], [1]):
        store = case.folder / f"whole-{arithmetic}.zarr"
        for number in lost:
            (store / "parts" / f"{number:06d}" / "zarr.json").unlink()
        case.collect(store.name, arithmetic)
        assert tree_bytes(store) == whole, lost


def test_a_killed_run_goes_on_to_the_same_bytes(llama_case):
    case, moments = llama_case, random.Random(0)
    command = [sys.executable, "-m", "kvwstream", "collect", str(case.model), case.data["forget"]]
    options = ["--progressive", "--retain-statistics", case.c_r, "--gamma", str(GAMMA)]
    options += ["--layers", LAYERS, "--part-size", "1", "--threads", "1", "--epochs", "6"]
    options += ["--arithmetic", "in-place"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first, killed = case.folder / "undisturbed.zarr", case.folder / "killed.zarr"
    subprocess.run([*command, str(first), *options], env=environment, check=True)
    for _ in range(2):
        process = subprocess.Popen([*command, str(killed), *options], env=environment)
        while process.poll() is None and not (killed / "environment").exists():
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(killed), *options], env=environment, check=True)
    assert tree_bytes(killed) == tree_bytes(first)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_requests_follow_each_other(llama_case, arithmetic):
    """Next month's request starts where the last one ended; its statistics hold both."""
    case = llama_case
    first = case.collect(f"first-{arithmetic}.zarr", arithmetic)
    one, two, both = (str(case.folder / f"{n}-{arithmetic}.zarr") for n in ("one", "two", "both"))
    reduce([case.retain], one, [first])
    second = case.collect(f"second-{arithmetic}.zarr", arithmetic, "later", after=one)
    reduce([], two, [second], after=one)
    reduce([case.retain], both, [first, second])
    assert tree_bytes(two) == tree_bytes(both)
    out = case.folder / f"granted-{arithmetic}"
    apply(case.model, two, out, strength())
    requests = [rows_of(first, case), rows_of(second, case, "later")]
    compare(case.weights(out), Reference(case).run(requests, arithmetic))
    found = audit([case.retain, first, second, two])
    assert found.passed, found.findings
    for forget in ([second, first], [second]):
        with pytest.raises(PlanMismatchError, match="in the order in which they were collected"):
            reduce([case.retain], str(case.folder / "wrong.zarr"), forget)


def test_frozen_requests_can_be_taken_out_again_in_any_order(llama_case):
    """S is a sum: without a request it is that of the others, in either order but for rounding."""
    case, stores = llama_case, []
    for name in ("forget", "later"):
        stores.append(str(case.folder / f"request-{name}.zarr"))
        collect(prepare(str(case.model), read_examples(case.data[name])), stores[-1])
    urls = {n: str(case.folder / f"order-{n}.zarr") for n in ("a", "b", "ab", "ba", "a+b")}
    a, b = stores
    made = {n: reduce([case.retain], urls[n], [f]) for n, f in (("a", a), ("b", b))}
    made |= {n: reduce([case.retain], urls[n], f) for n, f in (("ab", [a, b]), ("ba", [b, a]))}
    made["a+b"] = reduce([], urls["a+b"], [b], after=urls["a"])
    assert tree_bytes(urls["a+b"]) == tree_bytes(urls["ab"])
    exponents = {name: stored.exponent() for name, stored in made.items()}
    np.testing.assert_allclose(exponents["ab"], exponents["ba"], rtol=1e-13)
    np.testing.assert_allclose(exponents["ab"], exponents["a"] + exponents["b"], rtol=1e-13)


def test_epochs_measure_the_examples_again(llama_case):
    store = CollectStore.open(Location(llama_case.collect("epochs.zarr", "exact", epochs=2)))
    names = store.record_names()
    assert names == names[: len(FORGET)] * 2
    assert store.plan.num_records == 2 * len(FORGET)
    sums = np.concatenate([store.read_part(i).sums["abs"] for i in range(store.plan.num_parts)])
    assert np.any(sums[0] != sums[len(FORGET)])
    found = audit([str(store.location.url)])
    assert found.passed, found.findings


def test_a_part_that_was_measured_after_others_is_found(llama_case):
    """Its seal says what S it began with."""
    case = llama_case
    store = Path(case.collect("forged.zarr", "exact"))
    document = json.loads((store / "parts/000001/zarr.json").read_text())
    document["attributes"]["seal"]["exponent"] = "0" * 64
    (store / "parts/000001/zarr.json").write_text(json.dumps(document))
    (store / "parts/000002/zarr.json").unlink()
    with pytest.raises(Exception, match="was measured after other records"):
        case.collect("forged.zarr", "exact")
    case2 = case.collect("sound.zarr", "exact")
    (Path(case2) / "parts/000001/zarr.json").write_text(json.dumps(document))
    with pytest.raises(DamageError, match="000001: was measured after other records"):
        reduce([case.retain], str(case.folder / "forged-s.zarr"), [case2])


def test_another_strength_than_the_collected_is_refused(llama_case):
    case = llama_case
    store = case.collect("bound.zarr", "exact")
    statistics = str(case.folder / "bound-s.zarr")
    reduce([case.retain], statistics, [store])
    layers = LayerRange.parse(LAYERS)
    for other in (
        Strength(2 * GAMMA, layers),
        Strength(GAMMA, LayerRange(0, 0)),
        Strength(GAMMA, layers, power=2.0),
        Strength(GAMMA, layers, accessor="mean"),
    ):
        with pytest.raises(OptionError, match=r"was collected progressively with gamma 0\.3"):
            apply(case.model, statistics, case.folder / "no", other)
    with pytest.raises(OptionError, match="exact arithmetic"):
        apply(case.model, statistics, case.folder / "no", strength(), arithmetic="in-place")
    out = case.folder / "as-frozen"
    made = apply(case.model, statistics, out, Strength(2 * GAMMA, layers), as_frozen=True)
    assert "at another strength than its own" in made["warning"]
    found = audit([str(out)], base=case.model, statistics=statistics)
    assert found.passed, found.findings
    made = apply(case.model, statistics, case.folder / "own", strength(), as_frozen=True)
    assert made["warning"] is None
    with pytest.raises(OptionError, match=r"was collected progressively with gamma 0\.3"):
        Weakening.of_statistics(statistics, Strength(2 * GAMMA, layers), case.model)
    in_place = str(case.folder / "bound-in-place-s.zarr")
    reduce([case.retain], in_place, [case.collect("bound-in-place.zarr", "in-place")])
    with pytest.raises(OptionError, match="no gates tell it"):
        Weakening.of_statistics(in_place, strength(), case.model)


def test_c_r_is_never_that_of_a_weakened_model(llama_case):
    case = llama_case
    store = case.collect("not-retain.zarr", "exact")
    with pytest.raises(PlanMismatchError, match="C_r is that of the base model"):
        reduce([store], str(case.folder / "not-c-r.zarr"))
    assert not (case.folder / "not-c-r.zarr").exists()


def test_a_request_is_granted_once(llama_case):
    case = llama_case
    store, statistics = str(case.folder / "once.zarr"), str(case.folder / "once-s.zarr")
    collect(prepare(str(case.model), read_examples(case.data["forget"])), store)
    reduce([case.retain], statistics, [store])
    for again in (store, case.retain):
        with pytest.raises(DataError, match=r"holds these .* examples already"):
            reduce([], str(case.folder / "twice.zarr"), [again], after=statistics)
    with pytest.raises(DataError, match=r"already, as once\.zarr to forget"):
        case.collect("again.zarr", "exact", after=statistics)
    how = (beginning := Beginning.chosen(statistics, None)).plan(GAMMA, LAYERS, "exact", 1)
    for name, store in (("retain", "never.zarr"), ("forget", "for-c-r-alone.zarr")):
        prepared = prepare(str(case.model), read_examples(case.data[name]), progressive=how)
        if name == "retain":
            with pytest.raises(DataError, match="to retain"):
                collect(prepared, str(case.folder / store), beginning=beginning)
        else:
            collect(prepared, str(case.folder / store), beginning=beginning)


@pytest.mark.parametrize(
    "change",
    [
        lambda how: how.pop("gamma"),
        lambda how: how.update(gamma="0.3"),
        lambda how: how.update(arithmetic="in-vain"),
        lambda how: how.update(mood="good"),
    ],
)
def test_damage_to_how_it_was_weakened_is_told(llama_case, change):
    """In the attributes of statistics, and in the plan of a store."""
    case = llama_case
    store = Path(case.collect("whole.zarr", "exact"))
    statistics = case.folder / "whole-s.zarr"
    if not statistics.exists():
        reduce([case.retain], str(statistics), [str(store)])
    opens: dict[Path, Callable[[Location], Any]]
    opens = {statistics: Statistics.open, store: CollectStore.open}
    for group, open_it in opens.items():
        text = (group / "zarr.json").read_text()
        document = json.loads(text)
        attributes = document["attributes"]
        change((attributes.get("plan") or attributes)["progressive"])
        (group / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(DamageError, match=r"damaged: .*progressive"):
            open_it(Location(str(group)))
        (group / "zarr.json").write_text(text)


def test_an_earlier_state_that_was_changed_is_not_gone_on_from(llama_case, tmp_path):
    case = llama_case
    statistics = str(tmp_path / "s.zarr")
    reduce([case.retain], statistics, [case.collect("changed.zarr", "in-place")])
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    apply(case.model, statistics, earlier, strength(2))
    for name, old, new in (
        ("config.json", "silu", "gelu"),
        ("kvwstream.json", '"num_forget_records": 2', '"num_forget_records": 4'),
    ):
        text = (earlier / name).read_text()
        (earlier / name).write_text(text.replace(old, new))
        assert (earlier / name).read_text() != text
        with pytest.raises(DamageError, match=name):
            apply(case.model, statistics, out, strength(), start=earlier)
        (earlier / name).write_text(text)
    with pytest.raises(PlanMismatchError, match="fit the very weights"):
        apply(earlier, statistics, out, strength(), start=earlier)
    with pytest.raises(StorageError, match=r"lies in .*earlier"):
        apply(case.model, statistics, earlier / "out", strength(), start=earlier)
    assert not out.exists()
    apply(case.model, statistics, out, strength(), start=earlier)


WITH = "--progressive --retain-statistics C_R"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--progressive --gamma 1 --layers 0:1", "give --retain-statistics, or"),
        (f"{WITH} --after C_R --gamma 1 --layers 0:1", "give --retain-statistics, or"),
        (f"{WITH} --layers 0:1", "needs --gamma and"),
        (f"{WITH} --gamma 1", "needs --gamma and"),
        ("--gamma 1", "belong to --progressive"),
        ("--epochs 2", "belong to --progressive"),
        ("--arithmetic in-place", "belong to --progressive"),
        (f"{WITH} --gamma nan --layers 0:1", "gamma must be"),
        (f"{WITH} --gamma 1 --layers 0:9", "layers 0:9"),
        ("--progressive --after C_R --gamma 1 --layers 0:1", "holds retain statistics alone"),
        (f"{WITH} --gamma 1 --layers 0:1 --workers 2", "goes record by record"),
        (f"{WITH} --gamma 1 --layers 0:1 --parts 1/2", "goes record by record"),
        (f"{WITH} --gamma 1 --layers 0:1 --dtype bfloat16", "dtype: float32 there, bfloat16 here"),
    ],
)
def test_options_that_make_no_sense(llama_case, options, message):
    case = llama_case
    chosen = [case.c_r if option == "C_R" else option for option in options.split()]
    store = str(case.folder / "no.zarr")
    command = ["collect", str(case.model), case.data["forget"], store, *chosen]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, OptionError | PlanMismatchError)
    assert message in str(done.exception)
    assert not Path(store).exists()


def test_statistics_that_hide_their_schedule_are_damaged(llama_case, tmp_path):
    case = llama_case
    store = case.collect("hidden.zarr", "exact")
    statistics = tmp_path / "s.zarr"
    reduce([case.retain], str(statistics), [store])
    document = json.loads((statistics / "zarr.json").read_text())
    document["attributes"]["progressive"] = None
    (statistics / "zarr.json").write_text(json.dumps(document))
    other = Strength(2 * GAMMA, LayerRange.parse(LAYERS))
    with pytest.raises(DamageError, match="progressive is not what the plans of its sources say"):
        apply(case.model, str(statistics), tmp_path / "no", other)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_machine_with_other_threads_makes_the_same_result(llama_case, arithmetic, monkeypatch):
    """`reduce` and `apply` share out their work over all cores; the bytes do not show how many."""
    case = llama_case
    store = case.collect(f"cores-{arithmetic}.zarr", arithmetic)
    made = []
    for cores in (1, 3, 16):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        statistics = case.folder / f"cores-{arithmetic}-{cores}.zarr"
        reduce([case.retain], str(statistics), [store])
        out = case.folder / f"cores-{arithmetic}-{cores}"
        apply(case.model, str(statistics), out, strength())
        weights = {n: c for n, c in tree_bytes(out).items() if n != "kvwstream.json"}
        made.append((tree_bytes(statistics), weights))
    assert made[0] == made[1] == made[2]
