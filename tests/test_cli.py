"""The command line end to end, as a user types it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import kvwstream
from kvwstream.answers import AnswerEncoder
from kvwstream.cli import main
from kvwstream.generation import generate_answers
from kvwstream.models import load_model
from kvwstream.readers import read_examples
from tests.conftest import COLOURS, THINGS, Artefacts, question, tree_bytes, write_rows

README = Path(__file__).parent.parent / "README.md"


def run(*words: object, expect: int = 0, capsys: pytest.CaptureFixture[str] | None = None) -> str:
    """Run the command in this process; returns what it printed on standard output."""
    before = sys.argv
    sys.argv = ["kvwstream", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = before
    assert (end.value.code or 0) == expect
    return capsys.readouterr().out if capsys else ""


def test_the_main_job(llama, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("retain", "forget"):
        run("collect", llama, data[kind], f"{kind}.zarr", "--part-size", 2, "--batch-size", 2)
    run("reduce", "--retain", "retain.zarr", "--forget", "forget.zarr", "statistics.zarr")
    run("apply", llama, "statistics.zarr", "weak", "--gamma", 1.5, "--layers", "0:1")
    out = run(
        "audit", "weak", "retain.zarr", "forget.zarr", "statistics.zarr",
        "--base", llama, "--statistics", "statistics.zarr", capsys=capsys,
    )  # fmt: skip
    for line in (
        "retain.zarr: 3 parts as sealed, 6 records of 11 examples",
        "forget.zarr: 2 parts as sealed, 3 records of 5 examples",
        "statistics.zarr: derived anew from 2 stores, bit for bit",
        "weak: 2 weakened tensors made anew, bit for bit",
    ):
        assert line in out
    options = ("--max-new-tokens", 4)
    run("evaluate", "weak", data["forget"], "--out", "a.jsonl", *options)
    strength = ("--statistics", "statistics.zarr", "--gamma", 1.5, "--layers", "0:1")
    run("evaluate", llama, data["forget"], "--out", "b.jsonl", *options, *strength)
    check_alike("a.jsonl", "b.jsonl")


def check_alike(one: str, other: str) -> None:
    """The same answers and, but for the place where gates are rounded, the same scores."""
    files = [map(json.loads, Path(name).read_text().splitlines()) for name in (one, other)]
    for first, second in zip(*files, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            expected = second[name]
            assert value == (pytest.approx(expected, 1e-4) if type(value) is float else expected)


def test_the_three_shapes_and_the_way_back(artefacts: Artefacts, tmp_path, capsys, monkeypatch):
    """Each is written, tried beforehand with the same options, audited, and taken back."""
    monkeypatch.chdir(tmp_path)
    statistics, model = artefacts.statistics, artefacts.model
    strength = ("--gamma", 40, "--layers", "0:1", "--power", 2, "--threshold", 0.1)
    strength += ("--accessor", "running", "--until", 4)
    for kind, said in (
        ("checkpoint", "checkpoint: 2 tensors weakened by 4 forget records, 19 kept"),
        ("adapter", "adapter: gates of 2 sites by 4 forget records"),
        ("gates", "gates: gates of 2 sites by 4 forget records"),
    ):
        out = run("apply", model, statistics, kind, *strength, "--as", kind, capsys=capsys)
        assert out == f"{said}\n"
    run("apply", model, statistics, "in-place", *strength, "--arithmetic", "in-place")
    run("apply", model, statistics, "back", "--gamma", 1.5, "--layers", "0:1", "--until", 0)
    made = ("checkpoint", "adapter", "gates", "in-place", "back")
    out = run("audit", *made, "--base", model, "--statistics", statistics, capsys=capsys)
    for name, line in (
        ("checkpoint", "2 weakened tensors made anew, bit for bit"),
        ("adapter", "gates of 2 sites made anew, bit for bit"),
        ("gates", "gates of 2 sites made anew, bit for bit"),
        ("in-place", "2 weakened tensors made anew, bit for bit"),
        ("back", "2 weakened tensors made anew, bit for bit"),
    ):
        assert f"holds  {name}: {line}\n" in out
    back = tree_bytes("back")
    assert json.loads(back.pop("kvwstream.json"))["until"] == 0
    assert back == tree_bytes(model)
    options = ("--max-new-tokens", 4)
    rows = [question(t, "pink") for t in THINGS[:3]]
    data = write_rows(tmp_path / "forget.jsonl", rows)
    run("evaluate", "checkpoint", data, "--out", "a.jsonl", *options)
    run(
        "evaluate", model, data, "--statistics", statistics, *strength, "--out", "b.jsonl", *options
    )
    run("evaluate", model, data, "--gates", "gates", "--out", "c.jsonl", *options)
    run("evaluate", model, data, "--gates", "adapter", "--out", "d.jsonl", *options)
    for name in "bcd":
        check_alike("a.jsonl", f"{name}.jsonl")
    run("evaluate", model, data, "--out", "plain.jsonl", *options)
    with pytest.raises(AssertionError):
        check_alike("a.jsonl", "plain.jsonl")


@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "gates"])
def test_apply_needs_neither_torch_nor_transformers(artefacts: Artefacts, tmp_path, kind):
    code = (
        "import sys\n"
        "from kvwstream.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft'} & sys.modules.keys()))"
    )
    argv = ["apply", artefacts.model, artefacts.statistics, tmp_path / "w", "--as", kind]
    argv += ["--gamma", "0.1", "--layers", "0:1", "--power", "2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_plan_comes_before_the_first_forward(llama, data, tmp_path, capsys):
    run("collect", llama, data["retain"], tmp_path / "s.zarr", "--part-size", 4)
    told = capsys.readouterr().err
    for line in (
        r"sites +2 value projections, 96 vectors",
        r"examples +11, in the order of seed 0",
        r"records +11, 1 example each",
        r"parts +3, 4 records each at most",
        r"disk +at most 4\.4 KB \(400 B per record\)",
        r"memory +weights",
        r"collect: 11/11 records, .* records/s, .* tokens/s",
    ):
        assert re.search(line, told), line


def test_a_dry_run_shows_marked_examples_and_writes_nothing(llama, data, tmp_path, capsys):
    out = run("collect", llama, data["forget"], tmp_path / "s.zarr", "--explain", capsys=capsys)
    assert len(re.findall(r"⟦The \w+ is pink\.⟧", out)) == 3
    assert "parts" in out
    assert not list(tmp_path.iterdir())
    everything = run(
        "collect", llama, data["forget"], tmp_path / "s.zarr", "--dry-run", "--tokens", "all",
        capsys=capsys,
    )  # fmt: skip
    assert "⟦user\nWhat colour" in everything


def test_log_json_is_for_machines(llama, data, tmp_path, capsys):
    run("collect", llama, data["forget"], tmp_path / "s.zarr", "--log-json")
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert rows[-1]["done"] == rows[-1]["total"] == 5
    assert {"units_per_second", "tokens_per_second", "seconds_left"} <= rows[-1].keys()


def test_a_terminal_gets_a_bar(llama, data, tmp_path):
    """On a pseudo-terminal: a bar with rates while running, its last line afterwards."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "kvwstream", "collect", llama, data["retain"]]
    process = subprocess.Popen(
        [*command, tmp_path / "s.zarr"], stderr=child, stdout=subprocess.DEVNULL
    )
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(parent)
    assert process.wait() == 0
    assert "━".encode() in shown
    assert re.search(rb"11/11 records, [\d.]+ records/s, \d+ tokens/s", shown)


def test_options_decide_what_is_stored(llama, data, tmp_path, capsys):
    options = ["--moments", "abs,signed,square", "--tokens", "all", "--limit", 3, "--seed", 4]
    run("collect", llama, data["retain"], tmp_path / "s.zarr", *options, "--dtype", "bfloat16")
    opened = kvwstream.open_store(str(tmp_path / "s.zarr")).load()
    assert set(opened.data_vars) == {"abs_sum", "signed_sum", "square_sum", "token_count"}
    assert opened.sizes == {"record": 3, "vector": 96, "site": 2}
    assert (opened.signed_sum < 0).any()
    assert (abs(opened.signed_sum) <= opened.abs_sum * (1 + 1e-5)).all()


def test_running_it_again_does_nothing(llama, data, tmp_path, capsys):
    run("collect", llama, data["forget"], tmp_path / "s.zarr")
    before = tree_bytes(tmp_path)
    capsys.readouterr()
    run("collect", llama, data["forget"], tmp_path / "s.zarr")
    assert "all 1 parts are sealed, nothing to do" in capsys.readouterr().err
    assert tree_bytes(tmp_path) == before


def test_evaluate_wants_all_of_a_strength_or_nothing(llama, data, capsys):
    for options in (("--gamma", 0.1), ("--statistics", "s", "--layers", "0:1"), ("--power", 2)):
        run("evaluate", llama, data["forget"], *options, expect=2)
        assert "belong together: give all or none" in capsys.readouterr().err


def test_a_process_that_has_done_its_work_does_not_fail_as_it_ends(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.abort)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{README.parent}"}
    codes = []
    for words in (["--version"], ["audit", str(tmp_path / "absent")], ["collect", "--no-such"]):
        command = [sys.executable, "-m", "kvwstream", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout or done.stderr
        codes.append(done.returncode)
    assert codes == [0, 1, 2]


def test_views_have_named_axes(artefacts: Artefacts):
    store = kvwstream.open_store(artefacts.retain).load()
    statistics = kvwstream.open_statistics(artefacts.statistics).load()
    total = store.abs_sum.astype(float).sum("record")
    tokens = store.token_count.sum("record").isel(site=0)
    np.testing.assert_allclose(total / tokens, statistics.retain_mean, rtol=1e-6)
    assert isinstance(statistics, xr.Dataset)
    assert set(store.layer.values) == {0, 1}


@pytest.mark.parametrize("name", kvwstream.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(kvwstream, name).__doc__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'colect'"):
        kvwstream.colect  # noqa: B018


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```(?:{language})\n(.*?)```", page.read_text(), re.DOTALL)


def run_page(page: Path, folder: Path) -> None:
    """Every `sh` block but those that begin with make or git, then the Python blocks as one."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    scripts = [b for b in blocks("sh", page) if not re.match(r"\s*(make|git|pip|python)", b)]
    for script in scripts:
        done = subprocess.run(
            ["bash", "-euc", script], cwd=folder, env={**os.environ, "PATH": path},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, script + done.stdout + done.stderr
    script = "\n".join(blocks("python", page))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, script + done.stderr


@pytest.fixture
def workplace(llama, data, tmp_path) -> Path:
    """What the pages expect to find."""
    (tmp_path / "model").symlink_to(llama)
    for kind in ("retain", "forget"):
        (tmp_path / f"{kind}.jsonl").write_bytes(data[kind].read_bytes())
    write_rows(tmp_path / "later.jsonl", [question(thing, "gold") for thing in THINGS[:3]])
    return tmp_path


def test_what_the_readme_shows_runs(workplace):
    assert len(blocks("sh")) >= 5
    run_page(README, workplace)


def test_what_the_guide_and_the_format_page_show_runs(workplace):
    docs = README.parent / "docs"
    run_page(docs / "guide.md", workplace)
    run_page(docs / "store-format.md", workplace)
    made = tree_bytes(workplace / "back")
    made.pop("kvwstream.json")
    assert made == tree_bytes(workplace / "model"), "--until 0 is the base, byte for byte"


def test_what_the_page_of_evaluation_shows_runs(workplace, artefacts: Artefacts):
    (workplace / "statistics.zarr").symlink_to(artefacts.statistics)
    loaded = load_model(artefacts.model)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    for kind in ("paraphrases", "reversed", "neighbours", "general"):
        rows = [question(t, "pink") | {"question": f"Of {kind}: {t}?"} for t in THINGS[:4]]
        path = write_rows(workplace / f"{kind}.jsonl", rows)
        said = generate_answers(loaded, encoder, read_examples(str(path)), max_new_tokens=20)
        assert all(any(map(str.isalnum, text)) for text in said)
        rows = [row | {"keyword": text} for row, text in zip(rows, said, strict=True)]
        write_rows(path, rows)
    run_page(README.parent / "docs" / "evaluation.md", workplace)
    assert (workplace / "sweep.svg").is_file()


def test_what_the_page_of_many_workers_shows_runs(workplace):
    run_page(README.parent / "docs" / "distributed.md", workplace)
    assert tree_bytes(workplace / "shares.zarr") == tree_bytes(workplace / "workers.zarr")


def test_the_targets_of_the_readme_exist():
    makefile = (README.parent / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh|console")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_bad_rows_are_left_out_told_and_recorded(llama, tmp_path, capsys):
    """By the reader (no answer) and by the tokenizer (too long); the audit knows of the table."""
    good = [question(thing, colour) for thing, colour in zip(THINGS, COLOURS, strict=True)]
    bad = [{"id": "empty", "question": "What?", "answer": " "}]
    bad.append({"id": "long", "question": "What?", "answer": "blue " * 150})
    source = write_rows(tmp_path / "data.jsonl", [*good[:3], *bad, *good[3:]])
    store = tmp_path / "s.zarr"
    run("collect", llama, source, store, expect=1)
    assert "data.jsonl:4: field `answer` is empty" in capsys.readouterr().err
    assert not store.exists()
    run("collect", llama, source, store, "--skip-bad-rows")
    told = capsys.readouterr().err
    assert "left out: data.jsonl:4: field `answer` is empty" in told
    assert re.search(r"left out: long: \d+ tokens, more than the model's maximum length", told)
    skipped = xr.open_zarr(store / "skipped").load()
    assert skipped.place.values.tolist() == ["data.jsonl:4", "long"]
    assert len(kvwstream.open_store(str(store)).record) == len(good)
    out = run("audit", store, capsys=capsys)
    assert "says which 2 rows were left out" in out
    (store / "skipped" / "reason" / "c" / "0").unlink()
    run("audit", store, expect=1)
