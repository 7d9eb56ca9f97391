"""The four views beside the forget set: what is asked of which model, and going on."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kvwstream.accessor import LayerRange
from kvwstream.aggregates import kolmogorov_smirnov
from kvwstream.answers import AnswerEncoder
from kvwstream.cli import app
from kvwstream.errors import DamageError, DataError, ModelError, OptionError, PlanMismatchError
from kvwstream.examples import question_answer
from kvwstream.generation import generate_answers
from kvwstream.models import load_model
from kvwstream.pipelines import views
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.compare import compare, read_truth_ratios
from kvwstream.pipelines.deployment import STEPS, relearn, unrelated, weakened_folder
from kvwstream.pipelines.evaluate import Evaluation, Judgement
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.pipelines.report import AS_IS, Report
from kvwstream.pipelines.views import Task, evaluate_views
from kvwstream.pipelines.weakened import Weakening, choose_weakening
from kvwstream.readers import read_examples
from kvwstream.strength import Strength
from tests.conftest import (
    COLOURS,
    THINGS,
    Artefacts,
    llama_config,
    question,
    save_model,
    write_rows,
)
from tests.test_images import png

STRENGTH = Strength(2.0, LayerRange(0, 1))
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    wrong = {"perturbed_answers": ["The sky is red.", "The sky is gold."]}
    rows = {
        "forget": [question(t, "pink") | wrong for t in THINGS[:5]],
        "paraphrases": [
            question(t, "pink") | {"question": f"The {t}, what colour is it?"} for t in THINGS[:5]
        ],
        "neighbours": [question(t, "gold") for t in THINGS[5:7]],
        "general": [question(t, c) for t, c in zip(THINGS[7:], COLOURS, strict=False)],
        "retain": [
            question(t, c) | {"id": f"{t}-{c}", "question": f"Say {t} and {c}?"}
            for t, c in zip(THINGS, COLOURS, strict=True)
        ],
        "holdout": [question(t, "grey") for t in THINGS[:4]],
    }
    return {name: write_rows(folder / f"{name}.jsonl", found) for name, found in rows.items()}


@pytest.fixture(scope="module")
def examples(files):
    return {name: read_examples(str(path)) for name, path in files.items()}


@pytest.fixture(scope="module")
def weakening(artefacts: Artefacts):
    return Weakening.of_statistics(artefacts.statistics, STRENGTH, artefacts.model)


def task(artefacts, examples, **changes) -> Task:
    return replace(Task(artefacts.model, examples, batch_size=2, max_new_tokens=4), **changes)


def test_each_view_is_asked_and_its_lines_are_written_batch_by_batch(
    artefacts, examples, weakening, tmp_path
):
    out = tmp_path / "answers.jsonl"
    report = evaluate_views(task(artefacts, examples, weakening=weakening), out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == sum(map(len, examples.values()))
    assert {row["state"] for row in rows} == {AS_IS}
    for view in ("forget", "paraphrases", "neighbours", "general"):
        judgements = report.asked[AS_IS][view].judgements
        assert [j.id for j in judgements] == [e.id for e in examples[view]]
        assert {j.id: j.response for j in judgements} == {
            row["id"]: row["response"] for row in rows if row["view"] == view
        }
    loaded = load_model(artefacts.model)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    with weakening.on(loaded.model):
        expected = generate_answers(loaded, encoder, examples["forget"], max_new_tokens=4)
    found = [j.response for j in report.asked[AS_IS]["forget"].judgements]
    assert found == [response.strip() for response in expected]


def test_what_is_made_of_many_scores(artefacts, examples):
    report = evaluate_views(task(artefacts, examples))
    rows = report.scored[AS_IS]["retain"]
    tokens = sum(row["num_tokens"] for row in rows)
    mean = sum(row["loss"] * row["num_tokens"] for row in rows) / tokens
    assert report.perplexity(AS_IS) == pytest.approx(exp(mean))
    ratios = report.asked[AS_IS]["forget"].values("truth_ratio")
    assert report.truth(AS_IS, "forget") == pytest.approx(np.mean([min(r, 1 / r) for r in ratios]))
    assert report.truth(AS_IS, "general") is None
    staying = [report.asked[AS_IS][view] for view in ("neighbours", "general")]
    values = [e.mean(name) for e in staying for name in ("rougeL_recall", "probability")]
    expected = len(values) / sum(1 / v for v in values) if all(values) else 0
    assert report.utility(AS_IS) == pytest.approx(expected)
    members = report.asked[AS_IS]["forget"].values("loss")
    others = [row["loss"] for row in report.scored[AS_IS]["holdout"]]
    wins = np.mean([[m < o for o in others] for m in members])
    assert report.membership(AS_IS, "loss") == pytest.approx(wins)
    geometric = report.asked[AS_IS]["forget"].values("truth_ratio_geometric")
    assert report.forget_quality(AS_IS, geometric) == (0, 1)
    assert report.forget_quality(AS_IS, [1e9]) == kolmogorov_smirnov(geometric, [1e9])
    assert report.forget_quality(AS_IS, []) is None


def test_a_run_that_was_stopped_goes_on_to_the_same_lines(
    artefacts, examples, tmp_path, monkeypatch
):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    everything = evaluate_views(task(artefacts, examples), out=whole)
    batches: list[int] = []
    answer = views.answer_batch

    def counted(loaded, encoder, chosen, max_new_tokens):
        batches.append(len(chosen))
        if len(batches) == 5:
            raise KeyboardInterrupt
        return answer(loaded, encoder, chosen, max_new_tokens)

    monkeypatch.setattr(views, "answer_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_views(task(artefacts, examples), out=cut)
    before = cut.read_text().splitlines()
    assert 0 < len(before) < len(whole.read_text().splitlines())
    cut.write_text(cut.read_text()[:-5])  # and the last line was cut in half
    assert evaluate_views(task(artefacts, examples), out=cut) == everything
    lines = [sorted(path.read_text().splitlines()) for path in (cut, whole)]
    assert lines[0] == lines[1]
    monkeypatch.setattr(views, "load_model", lambda *_: pytest.fail("everything is answered"))
    assert evaluate_views(task(artefacts, examples), out=cut) == everything


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens: 4 there, 5 here"),
        ({"batch_size": 3}, "batch_size: 2 there, 3 here"),
        ({"weakening": "gates"}, "gamma: None there, 2.0 here"),
        ({"views": "fewer"}, "general: "),
        ({"model": "other"}, "model: "),
    ],
)
def test_another_model_or_other_options_are_refused(
    artefacts, examples, weakening, tmp_path, change, line
):
    out = tmp_path / "answers.jsonl"
    few = {"forget": examples["forget"][:1], "general": examples["general"][:1]}
    evaluate_views(task(artefacts, few), out=out)
    lines = out.read_text()
    stand_ins = {
        "gates": lambda: weakening,
        "fewer": lambda: {"forget": few["forget"]},
        "other": lambda: save_model(tmp_path / "other", llama_config(), seed=1),
    }
    ((name, value),) = change.items()
    changed = {name: stand_ins[value]() if value in stand_ins else value}
    with pytest.raises(PlanMismatchError, match=f"  {line}"):
        evaluate_views(task(artefacts, few, **changed), out=out)
    assert out.read_text() == lines


def test_deployment_asks_everything_of_what_the_model_becomes(
    artefacts, data, examples, tmp_path, monkeypatch
):
    """Real bitsandbytes layers; the weakened weights are rounded and trained, not the base."""
    config = llama_config(hidden_size=128, intermediate_size=256)  # blocks of 64 weights
    base = save_model(tmp_path / "base", config)
    stores = [str(tmp_path / f"{name}.zarr") for name in ("retain", "forget")]
    for name, store in zip(("retain", "forget"), stores, strict=True):
        collect(prepare(str(base), read_examples(str(data[name])), threads=1), store)
    statistics = str(tmp_path / "statistics.zarr")
    reduce(stores[:1], statistics, stores[1:])
    few = {name: examples[name][:2] for name in ("forget", "general")}
    what = task(
        artefacts,
        few | {"retain": examples["retain"]},
        model=base,
        weakening=Weakening.of_statistics(statistics, STRENGTH, base),
        deployment=True,
    )
    report = evaluate_views(what, out=tmp_path / "answers.jsonl")
    assert list(report.asked) == [AS_IS, "8-bit", "4-bit", "relearned"]
    losses = {
        state: np.array(found["forget"].values("loss")) for state, found in report.asked.items()
    }
    vanilla = evaluate_views(task(artefacts, few, model=base)).asked[AS_IS]["forget"]
    assert len({tuple(values) for values in losses.values()}) == 4
    for state in ("8-bit", "4-bit"):  # a little beside the weakened model, not the base again
        near = np.abs(losses[AS_IS] - losses[state]).max()
        assert near < np.abs(vanilla.values("loss") - losses[state]).max()
    assert len(report.taught) == 5
    rows = [r for r in report.scored[AS_IS]["retain"] if r["id"] not in report.taught]
    mean = np.average([r["loss"] for r in rows], weights=[r["num_tokens"] for r in rows])
    assert report.perplexity(AS_IS) == pytest.approx(exp(mean))


def test_widths_that_cannot_be_packed_to_4_bits_are_refused(artefacts):
    with pytest.raises(ModelError, match=r"q_proj takes 32 channels, and 4 bits on a CPU need"):
        load_model(artefacts.model, device="cpu", bits=4)


def test_the_folder_for_deployment_is_what_apply_writes(artefacts, weakening, tmp_path):
    apply(artefacts.model, artefacts.statistics, tmp_path / "weakened", STRENGTH)
    with weakened_folder(artefacts.model, weakening) as folder:
        made = (folder / "model.safetensors").read_bytes()
    assert made == (tmp_path / "weakened" / "model.safetensors").read_bytes()
    assert not folder.exists()
    with weakened_folder(artefacts.model, None) as folder:
        assert folder == artefacts.model


def test_relearning_lowers_the_loss_of_what_it_is_given(artefacts, examples):
    loaded = load_model(artefacts.model)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    first, last = relearn(loaded, encoder, examples["retain"][:5])
    assert last < first
    after = loaded.model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert STEPS <= 20


def test_relearning_is_from_unrelated_examples(examples):
    retain = [*examples["retain"], *examples["neighbours"]]
    chosen = unrelated(retain, [*examples["neighbours"], *examples["retain"][:2]])
    assert len(chosen) == 5
    assert {e.id for e in chosen} <= {e.id for e in examples["retain"][2:]}
    assert unrelated(retain[::-1], [*examples["neighbours"], *examples["retain"][:2]]) == chosen


def test_a_view_that_is_not_there_is_called_missing(artefacts, examples, monkeypatch):
    given = {name: examples[name] for name in ("forget", "neighbours")}
    lines = "\n".join(task(artefacts, given).missing())
    for option in ("paraphrases", "reversed", "general", "retain", "holdout", "deployment"):
        assert f"give --{option}" in lines
    assert "neighbours" not in lines
    assert "--forget" not in lines
    monkeypatch.setattr(views, "can_quantise", lambda: False)
    what = task(artefacts, given | {"retain": examples["retain"][:4]}, deployment=True)
    assert what.states == [AS_IS]
    lines = "\n".join(what.missing())
    assert "needs the package bitsandbytes" in lines
    assert "after relearning: give --retain with 5 examples" in lines


def test_general_questions_of_a_vision_language_model_are_also_text_only(
    artefacts, examples, monkeypatch
):
    pictures = [replace(e, images=(png((8, 8)),)) for e in examples["general"]]
    monkeypatch.setattr(Task, "multimodal", True)
    given = {"forget": examples["forget"], "general": pictures}
    assert "in text only: --general has none" in "\n".join(task(artefacts, given).missing())
    given["general"] = [*pictures, examples["neighbours"][0]]
    assert "in text only" not in "\n".join(task(artefacts, given).missing())
    del given["general"]
    assert "in text only" not in "\n".join(task(artefacts, given).missing())


def test_utility_takes_a_general_answer_among_its_options():
    values = {"rougeL_recall": 0.5, "probability": 0.1, "normalised_probability": 0.8}
    judgement = Judgement("1", "q", "a", "a", correct=True, scores=values)
    report = Report(
        {"neighbours": [], "general": []}, {AS_IS: {"general": Evaluation([judgement])}}
    )
    assert report.utility(AS_IS) == pytest.approx(2 / (1 / 0.5 + 1 / 0.8))
    report.asked[AS_IS] = {"neighbours": Evaluation([judgement])}
    assert report.utility(AS_IS) == pytest.approx(2 / (1 / 0.5 + 1 / 0.1))


@pytest.mark.parametrize("kind", ["gates", "adapter"])
def test_gates_and_adapters_answer_as_the_statistics_do(
    kind, artefacts, examples, weakening, tmp_path
):
    made = tmp_path / kind
    apply(artefacts.model, artefacts.statistics, made, STRENGTH, kind=kind)
    chosen = choose_weakening(artefacts.model, None, None, made)
    wanted = {s.path: weakening.values[s.vectors] for s in weakening.sites}
    for site in chosen.sites:
        np.testing.assert_allclose(chosen.values[site.vectors], wanted[site.path], rtol=1e-7)
    few = {"forget": examples["forget"]}
    answers = [
        [j.response for j in evaluate_views(what).asked[AS_IS]["forget"].judgements]
        for what in (
            task(artefacts, few, weakening=chosen),
            task(artefacts, few, weakening=weakening),
        )
    ]
    assert answers[0] == answers[1]
    other = save_model(tmp_path / "other", llama_config(), seed=1)
    with pytest.raises(PlanMismatchError, match="gates fit the very weights"):
        choose_weakening(other, None, None, made)


def test_a_weakening_that_makes_no_sense_is_refused(artefacts, tmp_path):
    with pytest.raises(OptionError, match="belong together"):
        choose_weakening(artefacts.model, artefacts.statistics, None, None)
    with pytest.raises(OptionError, match="not both"):
        choose_weakening(artefacts.model, artefacts.statistics, STRENGTH, tmp_path)
    with pytest.raises(DamageError, match="holds no adapter"):
        choose_weakening(artefacts.model, None, None, artefacts.model)
    with pytest.raises(OptionError, match="views are forget"):
        evaluate_views(Task(artefacts.model, {"other": []}))


def answers(path, *rows):
    return write_rows(path, [{"response": "x", "answer": "y"} | row for row in rows])


def test_flips_are_told_apart(tmp_path):
    a = answers(
        tmp_path / "a.jsonl",
        {"view": "forget", "state": AS_IS, "id": "1", "question": "q", "correct": True},
        {"view": "forget", "state": AS_IS, "id": "2", "question": "r", "correct": False},
        {"view": "general", "state": AS_IS, "id": "1", "question": "s", "correct": True},
        {"view": "general", "state": "8-bit", "id": "1", "question": "s", "correct": True},
        {"view": "retain", "state": AS_IS, "id": "1", "loss": 2.0},
    )
    rows = [json.loads(line) for line in a.read_text().splitlines()][:3]
    b = answers(
        tmp_path / "b.jsonl",
        rows[0] | {"correct": False, "response": "gone"},
        rows[1] | {"correct": True},
        rows[2],
        rows[2] | {"id": "3"},
    )
    found = compare(a, b)
    assert found.counts() == {(AS_IS, "forget"): (0, 1, 1, 0), (AS_IS, "general"): (1, 0, 0, 0)}
    assert [(flip.id, flip.lost, flip.second) for flip in found.flips] == [
        ("1", True, "gone"),
        ("2", False, "x"),
    ]
    assert found.alone == (1, 1)
    assert compare(a, a).flips == []
    with pytest.raises(DataError, match="asks '1' another question"):
        compare(a, answers(tmp_path / "c.jsonl", rows[0] | {"question": "other"}))
    with pytest.raises(DataError, match="share no question"):
        compare(a, answers(tmp_path / "d.jsonl", rows[0] | {"view": "other"}))
    with pytest.raises(DataError, match="cannot be read"):
        compare(a, tmp_path / "none.jsonl")


def test_an_oracle_was_asked_the_same(tmp_path):
    forget = [
        replace(question_answer("1", "Who?", "Ann"), perturbed_answers=("Bob",)),
        replace(question_answer("2", "Where?", "Rome"), perturbed_answers=("Oslo",)),
    ]
    rows = [
        {"state": AS_IS, "view": "forget", "id": f"other/{e.id}", "question": e.question}
        | {"answer": e.answer, "response": "", "correct": False, "truth_ratio_geometric": ratio}
        for e, ratio in zip(forget, (0.5, 2.0), strict=True)
    ]
    assert read_truth_ratios(answers(tmp_path / "a.jsonl", *rows), forget) == [0.5, 2.0]
    half = answers(tmp_path / "b.jsonl", rows[0], rows[1] | {"question": "When?"})
    with pytest.raises(DataError, match="2 answers to forget data, 1 of them to the 2 questions"):
        read_truth_ratios(half, forget)
    plain = [replace(example, perturbed_answers=()) for example in forget]
    with pytest.raises(DataError, match="have no wrong answers"):
        read_truth_ratios(half, plain)


def test_the_command_shows_all_of_it(artefacts, files, tmp_path):
    run = CliRunner()
    out = tmp_path / "first.jsonl"
    common = [str(artefacts.model), str(files["forget"]), "--max-new-tokens", "3"]
    options = [f"--{name}={files[name]}" for name in files if name != "forget"]
    done = run.invoke(app, ["evaluate", *common, *options, f"--out={out}"])
    assert done.exit_code == 0, done.output
    for part in (
        "perplexity, retain",
        "ROUGE-L recall",
        "truth ratio",
        "utility (harmonic mean",
        "membership inference, AUC: loss",
        "missing: the same facts asked backwards: give --reversed",
        "missing: quantised to 8 and 4 bits, and after relearning: give --deployment",
    ):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    second = tmp_path / "second.jsonl"
    weak = ["--statistics", artefacts.statistics, "--gamma", "2", "--layers", "0:1"]
    done = run.invoke(app, ["evaluate", *common, *weak, f"--out={second}", f"--oracle={out}"])
    assert done.exit_code == 0, done.output
    assert "forget quality (KS against the oracle): p = " in done.stdout
    done = run.invoke(app, ["evaluate", "--compare", str(out), str(second)])
    assert done.exit_code == 0, done.output
    assert "not compared:" in done.stdout
    for other in ([str(artefacts.model)], ["--batch-size", "16"], ["--out", str(out)]):
        done = run.invoke(app, ["evaluate", *other, "--compare", str(out), str(second)])
        assert isinstance(done.exception, OptionError)
        name = "model" if len(other) == 1 else other[0].removeprefix("--")
        assert str(done.exception).endswith(f"leave out {name}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give MODEL and DATA, or two files to --compare"),
        (["model"], "give MODEL and DATA"),
        (["model", "--compare", "a", "b"], "leave out model"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(options, message):
    done = CliRunner().invoke(app, ["evaluate", *options])
    assert isinstance(done.exception, OptionError)
    assert message in str(done.exception)
