"""The plan: round trip, digests, order, differences."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwstream import errors
from kvwstream.errors import DamageError, OptionError
from kvwstream.plan import CollectPlan, Progressive, order_by_seed

PLAN = CollectPlan(
    model_digest="a" * 64,
    config_digest="b" * 64,
    processor_digest="c" * 64,
    sites_digest="d" * 64,
    data_digest="e" * 64,
    arrangement_digest="f" * 64,
    num_examples=10,
    num_sites=2,
    num_vectors=96,
    seed=0,
    batch_size=3,
    part_size=3,
    tokens="answer",
    moments=("abs", "square"),
    dtype="float32",
    attention="sdpa",
    threads=1,
    pass_tokens=2048,
    sharing=True,
)


def test_json_round_trip_keeps_every_field_and_the_digest():
    again = CollectPlan.from_dict(json.loads(json.dumps(PLAN.to_dict())))
    assert again == PLAN
    assert again.digest == PLAN.digest


FROZEN_FIELDS = [
    field.name
    for field in dataclasses.fields(CollectPlan)
    if field.name not in ("schedule", "progressive")
]
PROGRESSIVE = dataclasses.replace(
    PLAN, schedule="progressive", progressive=Progressive(0.02, "1:25", "exact", "0" * 64)
)


@pytest.mark.parametrize("field", FROZEN_FIELDS)
def test_every_field_is_in_the_digest_and_in_the_differences(field):
    changes = {"moments": ("abs",), "tokens": "all", "sharing": False, "until_stable": 0.5}
    value = getattr(PLAN, field)
    changed = changes.get(field, value + 1 if isinstance(value, int) else "other")
    other = dataclasses.replace(PLAN, **{field: changed})
    assert other.digest != PLAN.digest
    (line,) = PLAN.differences(other)
    assert line.startswith(f"{field}: ")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Progressive)])
def test_so_is_every_field_of_the_progressive_schedule(field):
    changes = {"gamma": 0.5, "arithmetic": "in-place", "epochs": 2}
    how = dataclasses.replace(PROGRESSIVE.progressive, **{field: changes.get(field, "other")})
    other = dataclasses.replace(PROGRESSIVE, progressive=how)
    assert other.digest != PROGRESSIVE.digest
    (line,) = PROGRESSIVE.differences(other)
    assert line.startswith(f"{field}: ")
    assert CollectPlan.from_dict(json.loads(json.dumps(other.to_dict()))) == other


def test_the_schedule_is_one_difference():
    assert PLAN.differences(PROGRESSIVE) == ["schedule: frozen there, progressive here"]
    for wrong in ({"schedule": "progressive"}, {"progressive": PROGRESSIVE.progressive}):
        with pytest.raises(OptionError, match="does not fit"):
            dataclasses.replace(PLAN, **wrong)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 7))
def test_parts_and_records_cover_every_example_once(num_examples, batch_size, part_size):
    plan = dataclasses.replace(
        PLAN, num_examples=num_examples, batch_size=batch_size, part_size=part_size
    )
    records = [r for part in plan.parts for r in range(part.start, part.stop)]
    assert records == list(range(plan.num_records))
    assert [e for r in records for e in plan.examples_of(r)] == list(range(num_examples))
    with pytest.raises(IndexError):
        plan.part(plan.num_parts)


@given(st.sets(st.text(min_size=1), max_size=30), st.integers(0, 5))
def test_order_depends_on_content_and_seed_alone(contents, seed):
    forward, backward = sorted(contents), sorted(contents, reverse=True)
    one = [forward[i] for i in order_by_seed(forward, seed)]
    two = [backward[i] for i in order_by_seed(backward, seed)]
    assert one == two
    assert sorted(one) == forward


def test_another_seed_is_another_order():
    contents = [str(n) for n in range(20)]
    assert order_by_seed(contents, 0) != order_by_seed(contents, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 1},
            "store format version 1: this kvwstream reads",
        ),
        ({"seed": None}, None),
        ({"extra": 1}, r"missing \[\], unknown \['extra'\]"),
        ({"tokens": "most"}, "the plan is damaged: tokens must be one of"),
    ],
)
def test_a_damaged_plan_is_refused(change, message):
    values = {**PLAN.to_dict(), **change}
    if change == {"seed": None}:
        del values["seed"]
        message = r"missing \['seed'\], unknown \[\]"
    with pytest.raises(DamageError, match=message):
        CollectPlan.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"part_size": 0}, {"num_examples": 0}, {"moments": ()}]
    + [{"moments": m} for m in (("square", "abs"), ("abs", "abs"), ("cubic",))],
)
def test_options_without_meaning_are_refused(change):
    with pytest.raises(OptionError, match=r"must be|moments: each once"):
        dataclasses.replace(PLAN, **change)


def test_the_plan_needs_the_standard_library_only():
    code = (
        "import sys, kvwstream.plan, kvwstream.examples\n"
        "assert not {'numpy', 'torch', 'zarr', 'typer'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "kind",
    [e for e in vars(errors).values() if isinstance(e, type) and e.__module__ == errors.__name__],
)
def test_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what, which, expected, got")))
    assert type(error) is kind
    assert str(error) == "what, which, expected, got"
