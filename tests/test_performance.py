"""The page on performance says what was measured."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.bench import PAGE, tables
from benchmarks.flame import boxes
from benchmarks.measuring import fill


def test_the_page_says_what_the_results_say():
    assert fill(PAGE.read_text(), tables()) == PAGE.read_text()


def test_a_box_is_as_wide_as_the_samples_of_its_frame():
    found = Counter({("a", "b"): 6, ("a", "c"): 2, ("a",): 1, ("d",): 1})
    drawn = {name: (depth, left, width) for depth, left, width, name in boxes(found, 10)}
    assert drawn == {
        "a": (0, 0, pytest.approx(0.9)),
        "b": (1, 0, pytest.approx(0.6)),
        "c": (1, pytest.approx(0.6), pytest.approx(0.2)),
        "d": (0, pytest.approx(0.9), pytest.approx(0.1)),
    }
