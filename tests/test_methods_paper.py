"""The paper's tables and figures: trials are logged once, reports are whole, recipes can be run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from datasets import Dataset, load_from_disk

from benchmarks.methods import kvw, oracle
from benchmarks.methods.search import Point
from benchmarks.methods.training import answer_loss, label
from benchmarks.paper import quick, recipe, tables, trials
from benchmarks.paper.cases import Case, spread
from benchmarks.paper.command import main
from benchmarks.paper.cost import count_flops
from benchmarks.paper.folds import write_folds
from benchmarks.paper.published import clear, mllmu
from benchmarks.paper.report import write_report
from benchmarks.paper.results import Log, Results
from benchmarks.paper.runs import ENDS, RANKED, RANKS
from benchmarks.paper.settings import ABLATION, KVW, METHODS, TRAINING, Values, settings_at, shifts
from benchmarks.paper.trials import Bench
from kvwstream.accessor import LayerRange
from kvwstream.answers import AnswerEncoder
from kvwstream.cli import app
from kvwstream.metrics import text_scores
from kvwstream.models import load_model
from kvwstream.pipelines.trials import SCORES
from kvwstream.readers import read_examples
from kvwstream.strength import Strength
from tests.conftest import llama_config, save_model
from tests.families import build_family
from tests.test_benchmark_readers import (
    CLEAR,
    PERTURBED,
    PROFILE,
    REAL_FACES,
    REAL_WORLD,
    with_images,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture
def bench(data: dict[str, Path], tmp_path: Path) -> Bench:
    """Four layers that forget five colours; folds of two questions."""
    model = save_model(tmp_path / "model", llama_config(layers=4))
    forget, retain = (read_examples(str(data[kind])) for kind in ("forget", "retain"))
    questions = {
        "forget_1": forget[:2],
        "forget_2": forget[2:4],
        "retain_1": retain[:2],
        "retain_2": retain[2:4],
    }
    case = Case("tiny", "four layers", model, None, forget, retain, questions, {}, 3)
    return Bench(case, Log(tmp_path / "log.jsonl"), tmp_path, most_steps=1)


@pytest.mark.parametrize("method", [*METHODS, *ABLATION])
def test_every_method_makes_a_trial_and_only_once(method: str, bench: Bench) -> None:
    settings = settings_at(method, Point(9), 4)
    before = {name: value.clone() for name, value in bench.case.loaded.model.state_dict().items()}
    trial = bench.trial(method, settings)
    assert trial["scores"].keys() == bench.case.questions.keys()
    written = bench.log.path.read_bytes()
    assert bench.trial(method, settings) == trial
    assert bench.log.path.read_bytes() == written
    after = bench.case.loaded.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("method", [*KVW, *ABLATION])
def test_gamma_of_a_trial_takes_the_share_from_all_layers(method: str, bench: Bench) -> None:
    trial = bench.trial(method, {"taken": 0.05, "layers": "1:2"})
    total = bench.ablated(method) if method in ABLATION else bench.exponent(method)
    assert np.mean(1 - np.exp(-trial["gamma"] * total)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("KVW", {}),
        ("KVW A²", {"power": 2.0}),
        ("KVW energy", {"shape": "energy"}),
        ("KVW coherent", {"shape": "coherent"}),
        ("answers, retain", {}),
    ],
)
def test_gates_of_a_trial_are_those_of_apply_at_its_gamma(
    method: str, options: Values, bench: Bench, monkeypatch
) -> None:
    settings = {"taken": 0.2, "layers": "1:2"}
    given_gates = []
    monkeypatch.setattr(
        trials, "gated", lambda model, sites, gates: given_gates.append(gates) or nullcontext()
    )
    with bench.weakened(method, settings) as derived:
        (given,) = given_gates
    strength = Strength(derived["gamma"], LayerRange(1, 2), **options)
    folder = bench.statistics("answer")
    np.testing.assert_array_equal(given, kvw.gates(folder / "statistics.zarr", strength))


@pytest.mark.parametrize(
    ("method", "points", "expected"),
    [
        (
            "KVW",
            [Point(1), Point(3, 1), Point(1, 2)],
            [(0.003, "1:27"), (0.006, "3:26"), (0.003, "0:29")],
        ),
        (
            "MANU",
            [Point(1), Point(1, 1), Point(1, 2)],
            [(1e-4, "0:29"), (1e-4, "3:26"), (1e-4, "1:27")],
        ),
    ],
)
def test_further_settings_are_other_layers(method: str, points, expected) -> None:
    strength = "share" if method == "MANU" else "taken"
    found = [settings_at(method, point, 30) for point in points]
    assert [(values[strength], values["layers"]) for values in found] == expected
    assert len(shifts(method)) == len(points) - 1


def test_retain_loss_alone_is_not_bisected() -> None:
    spread_out = {method for method in (*METHODS, *ABLATION) if shifts(method) is None}
    assert spread_out == {"GD", "KL", "NPO", "MMU", "MMU*"}
    assert shifts("GA") == shifts("all, retain") == ()


def test_model_that_diverged_answers_nothing(bench: Bench) -> None:
    longer = Bench(bench.case, bench.log, bench.work)
    trial = longer.trial("GA", {"learning_rate": 1e30, "weight": 1.0})
    assert set(trial["scores"].values()) == {0.0}


def test_log_passes_over_a_line_that_was_cut_off(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.add({"case": "a", "method": "GA"})
    whole = log.path.read_text()
    log.path.write_text(whole + '{"case": "a", "meth')
    assert log.read() == [{"case": "a", "method": "GA"}]
    log.add({"case": "a", "method": "GD"})
    assert [trial["method"] for trial in log.read()] == ["GA", "GD"]
    assert log.path.read_text().startswith(whole)


def made_up(case: str, extras: tuple[str, ...]) -> Iterator[Values]:
    """Trials of everything: forgetting grows along the ladder, retaining ends at rung 10."""
    sets = [*(f"{kind}_{fold}" for kind in ("forget", "retain") for fold in (1, 2)), *extras]

    def trial(method: str, settings: Values, forget: float, retain: float) -> Values:
        scores = {name: forget if name.startswith("forget") else retain for name in sets}
        answers = {name: [f"{method} says | so", "no", "no"] for name in sets}
        return {
            "case": case,
            "method": method,
            "settings": settings,
            **({"gamma": 3 * settings["taken"]} if "taken" in settings else {}),
            "scores": scores,
            "answers": answers,
        }

    asked = {name: [["Who?", "Ann"], ["Where?", "Rome"]] for name in sets}
    yield {**trial("vanilla", {}, 1.0, 1.0), "asked": asked, "num_layers": 30}
    for method in (*METHODS, *ABLATION):
        for second in range(len(TRAINING) if shifts(method) is None else 1 + len(shifts(method))):
            for rung in (quarters / 4 for quarters in range(1, 61)):
                values = settings_at(method, Point(rung, second), 30)
                yield trial(method, values, max(0, 1 - rung / 12), 1.0 if rung < 10 else 0.5)
                if method in RANKED:
                    for rank in RANKS:
                        yield trial(method, {**values, "rank": rank}, 0.5, 0.9)
                if method == "KVW":
                    for first, behind in ENDS:
                        layers = {"layers": f"{first}:{30 - behind}"}
                        yield trial(method, {**values, **layers}, 0.5, 0.9)


def write_log(results: Path) -> None:
    results.mkdir()
    extras = {
        "text": ("collected", "reversed", "neighbours", "general"),
        "vision-05": ("faces", "world"),
    }
    for case, names in extras.items():
        lines = [json.dumps(trial) + "\n" for trial in made_up(case, names)]
        (results / f"paper-{case[:6].rstrip('-')}.jsonl").write_text("".join(lines))
    row = {"method": "KVW", "gflops_per_batch": 1.0, "seconds": 2.0, "peak_megabytes": 3.0}
    (results / "paper-cost.json").write_text(json.dumps({"rows": [{**row, "what": "all"}]}))


def test_report_holds_every_table_and_figure(tmp_path: Path) -> None:
    write_log(tmp_path / "results")
    docs = tmp_path / "docs"
    write_report(tmp_path / "results", docs / "results.md", docs / "figures", budget=8)
    quick.check(docs)
    text = (docs / "results.md").read_text()
    for title in ("Tables 1 and 2", "Table 3", *(f"Figure {n}" for n in (1, 3, 4, 5, 6))):
        assert f"## {title}" in text
    assert "| KVW | 0.23 | 1.00 | 0.23 | 1.00 |" in text  # rung 9.25, the strongest that is allowed
    assert "says \\| so" in text
    assert sum(file.stat().st_size for file in (docs / "figures").iterdir()) < 300_000


def test_report_is_the_same_bytes_again(tmp_path: Path) -> None:
    write_log(tmp_path / "results")
    for name in ("one", "two"):
        docs = tmp_path / name
        write_report(tmp_path / "results", docs / "results.md", docs / "figures", budget=8)
    names = [file.name for file in (tmp_path / "one" / "figures").iterdir()]
    for name in ("results.md", *(f"figures/{name}" for name in names)):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_report_of_nothing_says_so(tmp_path: Path) -> None:
    write_report(tmp_path, tmp_path / "docs" / "results.md", tmp_path / "figures", budget=8)
    assert (tmp_path / "docs" / "results.md").read_text().count(tables.NOT_RUN) > 8
    with pytest.raises(SystemExit, match="missing in the report"):
        quick.check(tmp_path / "docs")


def test_choice_is_made_on_the_other_fold_and_low_retain_is_marked() -> None:
    def trial(settings: Values, one: tuple[float, float], two: tuple[float, float]) -> Values:
        scores = dict(zip(("forget_1", "retain_1"), one, strict=True))
        scores |= dict(zip(("forget_2", "retain_2"), two, strict=True))
        return {"method": "GD" if settings else "vanilla", "settings": settings, "scores": scores}

    one, two = (settings_at("GD", Point(rung), 30) for rung in (8, 12))
    vanilla = trial({}, (1, 1), (1, 1)) | {"num_layers": 30}
    good = [trial(one, (0.1, 1), (0.7, 1)), trial(two, (0.8, 1), (0.2, 1))]
    results = Results([vanilla, *good])
    found = tables.choices(results, "GD", budget=2)
    assert [found[test].forget for test in (1, 2)] == ["0.80", "0.70"]
    assert results.finished("GD", budget=2)
    assert not results.finished("GD", budget=3)
    poor = [trial(one, (0.1, 0.9), (0.7, 0.8)), trial(two, (0.8, 0.4), (0.2, 0.6))]
    found = tables.choices(Results([vanilla, *poor]), "GD", budget=2)
    assert [found[test].retain for test in (1, 2)] == ["0.85 ✗", "0.85 ✗"]


@pytest.mark.parametrize("chosen", recipe.RECIPES, ids=lambda r: r.name)
def test_recipe_is_made_of_commands_that_kvwstream_takes(chosen: recipe.Recipe) -> None:
    group = typer.main.get_command(app)
    lines = recipe.commands(chosen)
    parsed = {}
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        if words[0] == "kvwstream":
            command = group.commands[words[1]]
            parsed.setdefault(words[1], []).append(command.make_context(words[1], words[2:]).params)
    assert list(parsed) == ["collect", "reduce", "sweep", "evaluate", "audit"]
    stores = [values["store"] for values in parsed["collect"]]
    (reduced,), (swept,) = parsed["reduce"], parsed["sweep"]
    assert [*reduced["retain"], *reduced["forget"]] == stores
    assert swept["statistics"] in reduced.values()
    assert swept["score"] in SCORES


def with_folds(sets: dict[str, list[Values]], folder: Path) -> Path:
    for name, rows in sets.items():
        with_images(rows).save_to_disk(folder / name)
    return folder


def test_clear_is_asked_for_names_and_among_options(llama: Path, tmp_path: Path) -> None:
    sets = {"forget05": CLEAR[:1], "retain95": CLEAR[1:]}
    sets |= {f"forget05_perturbed_{fold}": [PERTURBED[0]] for fold in (1, 2)}
    sets |= {f"retain_perturbed_{fold}": [PERTURBED[1]] for fold in (1, 2)}
    sets |= {"real_faces": REAL_FACES, "real_world": REAL_WORLD}
    case = clear(with_folds(sets, tmp_path), llama, None, 5)
    assert [e.answer for e in case.forget] == [CLEAR[0]["caption"]]
    assert [e.answer for e in case.retain] == [CLEAR[1]["caption"]]
    answers = {name: [e.answer for e in examples] for name, examples in case.questions.items()}
    for fold in (1, 2):
        assert answers[f"forget_{fold}"] == [CLEAR[0]["name"]]
        assert answers[f"retain_{fold}"] == [CLEAR[1]["name"]]
    assert all(case.questions[name][0].option for name in case.extras)
    open_case = clear(tmp_path, llama, None, 5, faces="open")
    assert not any(open_case.questions[name][0].option for name in case.extras)


def test_mllmu_is_judged_by_rouge(llama: Path, tmp_path: Path) -> None:
    names = ("forget_5", "retain_95", "forget_5_1", "forget_5_2", "retain_95_1", "retain_95_2")
    sets = {name: [{**PROFILE, "ID": str(n)}] for n, name in enumerate((*names, "Retain_Set"))}
    case = mllmu(with_folds(sets, tmp_path), llama, None, 5)
    assert case.judged_by in SCORES
    assert [e.answer for e in case.questions["forget_1"]] == ["It is Ann.", "She flies."]
    plain = [e for e in case.questions["forget_1"] if not e.images]
    (answered,) = replace(case, questions={"forget_1": plain}).ask().values()
    expected = [text_scores(answered.responses[0], plain[0].answer)["rougeL_f"]]
    assert answered.scores == expected
    assert answered.score == expected[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text", "--quick"], "give --results, --work of its own"),
        (["text", "--quick", "--work", "elsewhere"], "give --results, --work of its own"),
        (["clear"], "clear needs --data and --vanilla"),
        (["text", "--methods", "NOP"], "invalid choice: 'NOP'"),
    ],
)
def test_what_would_spoil_the_results_is_refused(words, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["paper", *words])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


def test_trials_of_another_model_are_not_taken_up(bench: Bench, llama: Path) -> None:
    bench.vanilla()
    bench.vanilla()
    other = replace(bench, case=replace(bench.case, folder=llama))
    with pytest.raises(LookupError, match="of another model or other data"):
        other.vanilla()


def test_fine_tuning_adapts_the_language_model_alone(tmp_path: Path) -> None:
    model = load_model(build_family("llava", tmp_path / "model")).model
    names = oracle.language_layers(model)
    assert names
    assert all("language_model" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_folds_hold_every_row_once_and_a_person_in_one_of_them(tmp_path: Path) -> None:
    names = ["Ann", "Bob", "Ann", "Cid", "Dan", "Bob"]
    folder = tmp_path / "test"
    folder.mkdir()
    rows = Dataset.from_dict({"name": names, "number": list(range(6))})
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    write_folds(str(folder), "name")
    one, two = (load_from_disk(f"{folder}_{fold}") for fold in (1, 2))
    assert sorted([*one["number"], *two["number"]]) == list(range(6))
    assert set(one["name"]) == {"Ann", "Cid"}
    assert set(two["name"]) == {"Bob", "Dan"}


def test_fine_tuning_learns_and_writes_a_checkpoint(
    llama: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    examples = read_examples(str(data["plain"]))
    oracle.fine_tune(llama, examples, tmp_path / "out", rate=1e-2, epochs=8)
    losses = []
    for folder in (llama, tmp_path / "out"):
        loaded = load_model(folder)
        encoder = AnswerEncoder(loaded.processor, loaded.model.config)
        with torch.no_grad():
            losses.append(answer_loss(loaded.model, label(encoder, examples)).item())
    assert losses[1] < losses[0] - 0.2


def test_flops_of_attention_are_counted(llama: Path) -> None:
    """Of a plain forward: 2 per weight and position in the linear layers, 4 T d per position."""
    model = load_model(llama).model
    model.set_attn_implementation("eager")
    ids = torch.arange(20)[None]
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    attention = 2 * 4 * 20 * 20 * 32
    assert count_flops(lambda: model(ids, use_cache=False)) == pytest.approx(
        2 * 20 * linear + attention, rel=0.01
    )


def test_spread_is_even() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
