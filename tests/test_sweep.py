"""The strength search on a tiny model: what is tried, chosen, shown and taken up again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from kvwstream.accessor import LayerRange
from kvwstream.answers import AnswerEncoder
from kvwstream.cli import app
from kvwstream.commands.sweep import chosen_commands
from kvwstream.commands.sweep_result import draw, parse_gammas, parse_numbers, show
from kvwstream.errors import DataError, OptionError, PlanMismatchError
from kvwstream.generation import generate_answers
from kvwstream.metrics import text_scores
from kvwstream.models import load_model
from kvwstream.pipelines import sweep_progressive, trials
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.progressive import Beginning
from kvwstream.pipelines.reduce import reduce
from kvwstream.pipelines.sweep import Sweep, sweep
from kvwstream.pipelines.trials import strength_of
from kvwstream.pipelines.unseen import check_unasked
from kvwstream.pipelines.weakened import Weakening
from kvwstream.progress import Silent
from kvwstream.readers import read_examples
from kvwstream.search import Rule, Scores
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from tests.conftest import THINGS, Artefacts, llama_config, question, save_model, write_rows


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory, data) -> Artefacts:
    """Of a model whose MLPs say so much that gates are heard."""
    folder = tmp_path_factory.mktemp("sweep")
    model = save_model(folder / "model", llama_config(initializer_range=0.3))
    return Artefacts(folder, model, data)


@pytest.fixture(scope="module")
def asked(artefacts: Artefacts, tmp_path_factory):
    """Questions whose keyword is what the base model says, so that vanilla is right everywhere."""
    folder = tmp_path_factory.mktemp("asked")
    loaded = load_model(artefacts.model)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    found = {}
    for kind, words in (("forget", "Which colour has the"), ("retain", "How is the")):
        rows = [question(t, "pink") | {"question": f"{words} {t}?"} for t in THINGS[:6]]
        path = write_rows(folder / f"{kind}.jsonl", rows)
        said = generate_answers(loaded, encoder, read_examples(str(path)), max_new_tokens=8)
        rows = [row | {"keyword": text} for row, text in zip(rows, said, strict=True)]
        assert all(any(map(str.isalnum, text)) for text in said)
        found[kind] = write_rows(folder / f"{kind}.jsonl", rows)
    return found


@pytest.fixture
def task(artefacts: Artefacts, asked) -> Sweep:
    return Sweep(
        artefacts.model,
        artefacts.statistics,
        *(read_examples(str(asked[kind])) for kind in ("forget", "retain")),
        low=0.01,
        high=20.0,
        layers=LayerRange(0, 1),
        keep=0.3,
        trials=7,
        max_new_tokens=8,
    )


def test_each_fold_chooses_by_itself_and_is_reported_on_the_other(task, tmp_path):
    out = tmp_path / "sweep.jsonl"
    found = sweep(task, out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["setting"] == {"gamma": 0.0}
    assert found.vanilla == Scores(1, 1)
    settings = [json.dumps(row["setting"], sort_keys=True) for row in rows]
    assert len(set(settings)) == len(settings) == len(found.trials) + 1  # none tried twice
    lines = {row["setting"]["gamma"]: row for row in rows}

    def share(gamma: float, kind: str, fold: int) -> float:
        right = [r for r, f in zip(lines[gamma][kind], task.folds[kind], strict=True) if f == fold]
        return sum(right) / len(right)

    for fold, result in enumerate(found.folds):
        gamma = result.chosen.setting["gamma"]
        assert result.chosen.scores == tuple(share(gamma, k, fold) for k in ("forget", "retain"))
        assert result.reported == tuple(share(gamma, k, 1 - fold) for k in ("forget", "retain"))
        assert result.chosen.scores.retain >= 0.3 * share(0.0, "retain", fold)
        assert result.holds == (result.reported.retain >= 0.3 * share(0.0, "retain", 1 - fold))
    assert found.best == found.rule.best(found.trials)
    assert min(trial.scores.forget for trial in found.trials) < 1  # gates do something


def test_a_trial_is_what_the_gates_say(task, artefacts):
    found = sweep(task)
    trial = found.trials[-1]
    loaded = load_model(artefacts.model)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    weakening = Weakening.of_statistics(
        artefacts.statistics, strength_of(trial.setting), artefacts.model
    )
    with weakening.on(loaded.model):
        said = generate_answers(loaded, encoder, task.forget, max_new_tokens=8)
    right = [trials.judged(*pair).correct for pair in zip(task.forget, said, strict=True)]
    assert trial.scores.forget == sum(right) / len(right)


def test_a_stopped_sweep_goes_on_without_trying_again(task, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    everything = sweep(task, out=whole)
    asked, real = [], trials.generate_answers

    def counted(*args, **options):
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(trials, "generate_answers", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(task, out=cut)
    assert cut.read_text() == "".join(whole.read_text().splitlines(keepends=True)[:3])
    assert sweep(task, out=cut) == everything
    assert cut.read_text() == whole.read_text()
    monkeypatch.setattr(trials, "load_model", lambda *_: pytest.fail("all is known"))
    assert sweep(task, out=cut) == everything
    with pytest.raises(PlanMismatchError, match="max_new_tokens: 8 there, 4 here"):
        sweep(replace(task, max_new_tokens=4), out=cut)


def test_layers_power_and_an_oracle(task, artefacts, tmp_path):
    oracle = save_model(tmp_path / "oracle", llama_config(), seed=1)
    wide = replace(task, layers=None, choices={"power": [1.0, 2.0]}, oracle=oracle)
    found = sweep(wide)
    assert found.oracle == Scores(0, 0)
    assert {tuple(t.setting) for t in found.trials} == {("start", "stop", "power", "gamma")}
    assert {t.setting["power"] for t in found.trials} <= {1.0, 2.0}
    assert found.folds[0].rule.oracle_forget == 0
    # A range is meant for the paper's shape: of another one the mean of gamma * S is the same.
    stored = Statistics.open(Location(artefacts.statistics))
    means = [Strength(1.0, LayerRange(0, 1), power=p).exponent(stored).mean() for p in (1.0, 2.0)]
    squared = [t.setting["gamma"] for t in found.trials if t.setting["power"] == 2.0]
    assert all(0.0099 <= g * means[1] / means[0] <= 20.2 for g in squared)


@pytest.mark.parametrize(
    "choices", [{"power": [2.0]}, {"power": [2.0], "threshold": [0.1]}], ids=["power", "threshold"]
)
def test_range_of_another_shape_is_scaled_where_gamma_alone_is_searched(task, choices):
    found = sweep(replace(task, choices=choices))
    strengths = [Strength(1.0, LayerRange(0, 1)), strength_of(found.trials[0].setting)]
    paper, other = (strength.exponent(task.stored).mean() for strength in strengths)
    gammas = sorted(trial.setting["gamma"] for trial in found.trials)
    for gamma, end in zip((gammas[0], gammas[-1]), (task.low, task.high), strict=True):
        assert gamma * other == pytest.approx(end * paper, rel=0.01)


def test_a_threshold_above_everything_is_refused(task):
    with pytest.raises(OptionError, match="threshold 99: no A of shape paper is above it"):
        sweep(replace(task, choices={"threshold": [99.0]}))


@pytest.mark.parametrize(
    ("layers", "starts", "stops"),
    [(2, [0], [1]), (8, [0], [7]), (28, [0, 1, 2, 3], [24, 25, 26, 27]), (30, [0, 1, 2, 3], None)],
)
def test_layers_are_searched_in_the_first_and_the_last_eighth(task, layers, starts, stops):
    site = task.stored.sites[0]
    task.stored.__dict__["sites"] = [site._replace(layer=n) for n in range(layers)]
    choices = _with(task, layers=None).space(lambda setting: 1.0).choices
    assert choices["start"] == starts
    assert choices["stop"] == (stops or [26, 27, 28, 29])


def _with(task: Sweep, **changes) -> Sweep:
    other = replace(task, **changes)
    other.__dict__["stored"] = task.stored
    return other


def test_subjects_stay_in_one_fold(task):
    subjects = ["a", "a", "b", "b", "c", "d"]
    forget = [replace(e, subject=s) for e, s in zip(task.forget, subjects, strict=True)]
    folds = replace(task, forget=forget).folds["forget"]
    assert folds[0] == folds[1]
    assert folds[2] == folds[3]
    with pytest.raises(DataError, match="cannot be divided into two folds"):
        sweep(replace(task, forget=[replace(e, subject="a") for e in task.forget]))


def test_nothing_is_chosen_by_questions_that_the_model_cannot_answer(task, tmp_path):
    """A keep of 95 % of nothing would choose a model that is destroyed."""
    for kind in ("forget", "retain"):
        unknown = [replace(e, keywords=("no such word",)) for e in task.questions(kind)]
        with pytest.raises(DataError, match=f"scores 0 on one half of the {kind} questions"):
            sweep(replace(task, **{kind: unknown}))


@pytest.mark.parametrize(("score", "behind"), [("rougeL_f", " or else"), ("cloze", "")])
def test_a_score_of_the_text_can_judge(task, tmp_path, score, behind):
    said = [e.answered(e.keywords[0] + behind) for e in task.forget]
    found = sweep(replace(task, forget=said, retain=said, score=score), out=tmp_path / "log")
    line = json.loads((tmp_path / "log").read_text().splitlines()[0])
    expected = [text_scores(e.keywords[0], e.answer)[score] for e in said]
    assert line["forget"] == line["retain"] == pytest.approx(expected)
    assert found.vanilla.forget == pytest.approx(sum(expected) / len(expected))
    with pytest.raises(OptionError, match="score rouge: choose correct, containment"):
        sweep(replace(task, score="rouge"))


def test_questions_as_collected_are_warned_of(task, artefacts, data):
    collected = read_examples(str(data["forget"]))
    stored = task.stored
    order = Statistics.open(Location(artefacts.statistics)).attributes["sources"]
    assert any(source["role"] == "forget" for source in order)
    for place in (artefacts.forget, str(data["forget"])):
        assert check_unasked(task.forget, stored, place) == []
        mixed = [*task.forget, collected[0]]
        (line,) = check_unasked(mixed, stored, place)
        assert line.startswith(f"1 of 7 forget questions stand in {place} ({collected[0].id})")
    (line,) = check_unasked(task.forget, stored, None)
    assert "give --collected" in line


def test_the_command_finds_a_strength_that_apply_takes(artefacts, asked, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    options = ["--statistics", artefacts.statistics, "--gammas", "0.01:20", "--layers", "0:1"]
    options += [f"--forget={asked['forget']}", f"--retain={asked['retain']}", "--keep", "0.3"]
    options += ["--trials", "6", "--max-new-tokens", "8", "--plot", "deep/sweep.svg"]
    done = CliRunner().invoke(app, ["sweep", str(artefacts.model), *options])
    assert done.exit_code == 0, done.output
    assert "give --collected" in done.stderr
    assert (tmp_path / "deep" / "sweep.svg").read_text().lstrip().startswith("<?xml")
    *shown, command = done.stdout.splitlines()
    assert max(map(len, shown)) <= 80
    for part in ("vanilla", "fold 1", "fold 2", "all"):
        assert part in done.stdout
    program, *words = shlex.split(command)
    assert program == "kvwstream"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "weakened" / "model.safetensors").is_file()


def test_a_result_without_an_allowed_setting_is_shown(task, tmp_path, capsys):
    found = sweep(replace(task, low=15.0, high=20.0, keep=1.0, trials=2))
    fold = replace(found.folds[0], chosen=None, reported=None)
    nothing = replace(found, folds=(fold, fold), rule=Rule(2.0, 1.0))
    assert nothing.best is None
    show(nothing, task)
    assert "none keeps enough" in capsys.readouterr().out
    draw(nothing, tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


def test_a_progressive_search_has_a_pass_for_every_gamma(task, artefacts, data, asked, tmp_path):
    c_r = str(tmp_path / "retained.zarr")
    reduce([artefacts.retain], c_r)
    options = ["--forget", str(asked["forget"]), "--retain", str(asked["retain"])]
    options += ["--layers", "0:1", "--gammas", "0.05:5", "--keep", "0.3", "--max-new-tokens", "8"]
    command = ["sweep", str(artefacts.model), "--statistics", c_r, *options]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, OptionError)
    assert "each gamma and layer range needs its own pass" in str(done.exception)
    command += ["--collected", str(data["forget"]), "--run-progressive", "--trials", "2"]
    command += ["--out", str(tmp_path / "sweep.jsonl")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    stores = sorted((tmp_path / "sweep-progressive").iterdir())
    rows = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert len(stores) == len(rows) - 1 == 2
    # The gates are those of the statistics that the printed commands make.
    strength = Strength(0.05, LayerRange(0, 1))
    passes = sweep_progressive.Passes(
        str(artefacts.model),
        c_r,
        read_examples(str(data["forget"])),
        tmp_path / "sweep-progressive",
        "auto",
        "auto",
        Silent(),
    )
    made = str(tmp_path / "made.zarr")
    beginning = Beginning.chosen(c_r, None)
    how = beginning.plan(0.05, "0:1", "exact", 1)
    examples = read_examples(str(data["forget"]))
    store = str(tmp_path / "store.zarr")
    collect(prepare(str(artefacts.model), examples, progressive=how), store, beginning=beginning)
    reduce([], made, [store], after=c_r)
    expected = Weakening.of_statistics(made, strength, artefacts.model).values
    assert passes(strength).tolist() == expected.tolist()
    for option in (["--power", "1,2"], ["--shape", "energy"]):
        done = CliRunner().invoke(app, [*command, *option])
        assert isinstance(done.exception, OptionError)
        assert f"paper's accessor: leave {option[0]} out" in str(done.exception)
    words = chosen_commands("model", c_r, "data", sweep(task).trials[0])
    assert [shlex.split(line)[1] for line in words] == ["collect", "reduce", "apply"]
    refused = sweep_progressive.refuse("model", made, Statistics.open(Location(made)), None)
    assert "kvwstream reduce --retain retain.zarr retained.zarr\n" in str(refused)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_gammas("0.1"), "gammas must be like 0.001:0.05"),
        (lambda: parse_gammas("a:b"), "gammas must be like 0.001:0.05"),
        (lambda: parse_numbers("power", "1,x"), "power must be like 1 or 1,1.5,2"),
        (lambda: parse_numbers("threshold", ""), "threshold must be like 1 or 1,1.5,2, got ''"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run-progressive"], "is frozen and serves every gamma"),
        (["--plot", "sweep.doc"], r"a picture's name ends with \.svg, \.png"),
        (["--layers", "0:9"], "the model has layers 0 to 1"),
        (["--shape", "paper,energy"], "shape energy needs the signed and square moments"),
        (["--shape", "round"], "shape must be one of paper, energy"),
        (["--power", "0.3"], "power must be a multiple of 0.5"),
        (["--threshold", "0,-1"], "threshold must be a finite number of at least 0, got -1"),
        (["--keep", "1.5"], "keep must be a share from 0 to 1"),
        (["--gammas", "2:1"], "from:to, both above 0"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_before_a_model_is_loaded(
    options, message, artefacts, asked, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "load_model", lambda *_: pytest.fail("loaded"))
    common = [f"--{kind}={asked[kind]}" for kind in ("forget", "retain")]
    done = CliRunner().invoke(
        app,
        ["sweep", str(artefacts.model), "--statistics", artefacts.statistics, *common, *options],
    )
    assert isinstance(done.exception, OptionError), done.output
    with pytest.raises(OptionError, match=message):
        raise done.exception
