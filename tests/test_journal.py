"""Lines that survive a kill, and refuse to be mixed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwstream.errors import DamageError, PlanMismatchError, StorageError
from kvwstream.journal import Journal, read_settings, settings_path

SETTINGS = {"model": "a" * 64, "gamma": 0.01, "states": ["as it is"]}
ROWS = [{"id": "one", "response": "São Tomé"}, {"id": "two", "response": "a\nb"}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "answers.jsonl"


def test_rows_are_there_again(path):
    with Journal(path, SETTINGS) as journal:
        assert journal.rows == []
        journal.add(ROWS[:1])
        journal.add(ROWS[1:])
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    with Journal(path, SETTINGS) as journal:
        assert journal.rows == ROWS
    assert read_settings(path) == SETTINGS


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60))
def test_wherever_a_kill_cuts_whole_lines_stay(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "answers.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.add(ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    with Journal(path, SETTINGS) as journal:
        assert journal.rows == ROWS[:left]
        journal.add(ROWS[left:])
    assert path.read_bytes() == whole


def test_other_settings_are_refused_with_a_line_for_each(path):
    Journal(path, SETTINGS).close()
    other = {"model": "b" * 64, "gamma": 0.02, "states": ["as it is"], "layers": "1:2"}
    with pytest.raises(PlanMismatchError) as caught:
        Journal(path, other)
    assert str(caught.value).splitlines()[1:] == [
        "  model: aaaaaaaaaaaa… there, bbbbbbbbbbbb… here",
        "  gamma: 0.01 there, 0.02 here",
        "  layers: None there, 1:2 here",
    ]
    with Journal(path, SETTINGS) as journal:
        assert journal.rows == []


def test_lines_that_nobody_knows_the_settings_of_are_refused(path):
    with Journal(path, SETTINGS) as journal:
        journal.add(ROWS)
    settings_path(path).unlink()
    with pytest.raises(PlanMismatchError, match=r"no answers\.settings\.json says what made it"):
        Journal(path, SETTINGS)


def test_two_processes_do_not_write_at_once(path):
    with Journal(path, SETTINGS), pytest.raises(StorageError, match="another process writes"):
        Journal(path, SETTINGS)
    Journal(path, SETTINGS).close()


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", r"answers\.jsonl:2: not JSON"), ("[]", r"answers\.jsonl:2: expected a JSON object")],
)
def test_a_line_that_is_none_is_named(path, line, message):
    with Journal(path, SETTINGS) as journal:
        journal.add(ROWS[:1])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DamageError, match=message):
        Journal(path, SETTINGS)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_settings_are_refused(path, content):
    Journal(path, SETTINGS).close()
    settings_path(path).write_text(content)
    with pytest.raises(DamageError, match="settings"):
        Journal(path, SETTINGS)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "file" / "answers.jsonl", SETTINGS)


def test_without_a_place_rows_are_kept_for_the_run():
    with Journal(None, SETTINGS) as journal:
        journal.add(ROWS)
        assert journal.rows == ROWS
