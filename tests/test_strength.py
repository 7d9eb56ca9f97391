"""How stored A becomes S: against a plain loop, by its laws, with the same bits everywhere."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvwstream.accessor import LayerRange, gates
from kvwstream.errors import DamageError, OptionError
from kvwstream.plan import STATISTIC_FIELDS, Site
from kvwstream.stores import statistics, statistics_writer
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.stores.statistics_writer import StatisticsWriter, coordinates
from kvwstream.strength import ACCESSORS, Strength
from tests.conftest import Artefacts
from tests.faults import edit_array, put

ALL = LayerRange(0, 1)
POWERS = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 8.0]


class Memory:
    """Statistics of two sites, two vectors each, that lie in memory."""

    def __init__(self, rows: np.ndarray) -> None:
        self.arrays = {"accessor": rows}
        self.num_forget_records = len(rows)
        self.sites = [Site(f"{n}", f"{n}.weight", 1, n, -1, 2, 2 * n) for n in range(2)]

    def read(self, name: str) -> Any:
        return self.arrays[name]

    def rows(self, name: str, count: int) -> Iterator[np.ndarray]:
        return iter(self.arrays[name][:count])

    def exponent(self) -> np.ndarray:
        total = np.zeros(4)
        for row in self.arrays["accessor"]:
            total = total + row
        return total


def plain_loop(rows: np.ndarray, power: float, threshold: float, until: int) -> list[float]:
    """S vector by vector, record by record, in Python's own numbers."""
    result = []
    for vector in range(rows.shape[1]):
        total = 0.0
        for record in range(until):
            excess = max(0.0, float(rows[record, vector]) - threshold)
            factors = [excess] * int(power) + ([math.sqrt(excess)] if power % 1 else [])
            total += math.prod(factors[1:], start=factors[0])
        result.append(total)
    return result


matrices = arrays(np.float64, st.tuples(st.integers(1, 7), st.just(4)), elements=st.floats(0, 110))
shapes = st.tuples(st.sampled_from(POWERS), st.floats(0, 5))


@given(matrices, shapes, st.data())
def test_the_exponent_is_that_of_a_plain_loop_to_the_bit(rows, shape, data):
    until = data.draw(st.integers(0, len(rows)))
    strength = Strength(0.1, ALL, *shape, until=until)
    expected = plain_loop(rows, *shape, until)
    np.testing.assert_array_equal(strength.exponent(Memory(rows)), expected)


@given(matrices)
def test_power_one_and_threshold_zero_are_the_paper(rows):
    stored = Memory(rows)
    folded = Strength(0.1, ALL, until=len(rows)).exponent(stored)
    assert folded.tobytes() == stored.exponent().tobytes()
    assert Strength(0.1, ALL).exponent(stored).tobytes() == stored.exponent().tobytes()


@given(matrices, shapes)
def test_the_exponent_grows_with_every_record_from_zero_on(rows, shape):
    sums = [
        Strength(0.1, ALL, *shape, until=k).exponent(Memory(rows)) for k in range(len(rows) + 1)
    ]
    assert not sums[0].any()
    assert all((after >= before).all() for before, after in itertools.pairwise(sums))
    strength = [gates(total, 0.3) for total in sums]
    assert (strength[0] == 1).all()
    assert all((b <= a).all() for a, b in itertools.pairwise(strength))


@given(matrices, st.sampled_from(POWERS), st.floats(0, 5), st.floats(0, 5))
def test_a_higher_threshold_weakens_less_and_the_highest_not_at_all(rows, power, low, more):
    sums = [
        Strength(0.1, ALL, power, threshold).exponent(Memory(rows))
        for threshold in (low, low + more, float(rows.max()))
    ]
    assert (sums[0] >= sums[1]).all()
    assert not sums[2].any()


@given(arrays(np.float64, (5, 4), elements=st.floats(0, 1)), st.sampled_from(POWERS[:-1]))
def test_a_higher_power_spares_what_is_below_one_and_hits_what_is_above(rows, power):
    one, two = (Strength(0.1, ALL, p).exponent(Memory(rows)) for p in (power, power + 0.5))
    assert (two <= one).all()
    above = rows + 1
    one, two = (Strength(0.1, ALL, p).exponent(Memory(above)) for p in (power, power + 0.5))
    assert (two >= one).all()


@given(matrices, st.integers(1, 4), st.integers(-3, 3))
def test_a_scaled_accessor_scales_the_exponent_by_its_power(rows, power, doublings):
    """A power of two only moves the exponent of each number, so it holds to the bit."""
    rows = np.where(rows < 1e-30, 0, rows)  # nothing here may leave the normal numbers
    plain = Strength(0.1, ALL, float(power)).exponent(Memory(rows))
    scaled = Strength(0.1, ALL, float(power)).exponent(Memory(np.ldexp(rows, doublings)))
    np.testing.assert_array_equal(scaled, np.ldexp(plain, power * doublings))


@given(matrices, shapes, st.randoms())
def test_the_order_of_frozen_records_moves_the_last_bits_only(rows, shape, random):
    """R additions of numbers that are not negative: at most R - 1 roundings of each sum."""
    order = list(range(len(rows)))
    random.shuffle(order)
    one, two = (Strength(0.1, ALL, *shape).exponent(Memory(r)) for r in (rows, rows[order]))
    bound = len(rows) * np.finfo(np.float64).eps * one
    assert (np.abs(one - two) <= bound).all()


# Which C_f enters A


@pytest.fixture(scope="module")
def stored(artefacts: Artefacts) -> Statistics:
    return Statistics.open(Location(artefacts.statistics))


def plain_accessor(forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    return np.array(
        [
            max(0.0, math.log(f + 1e-12) - math.log(r + 1e-12))
            for f, r in zip(forget, retain, strict=True)
        ]
    )


@pytest.mark.parametrize("until", [0, 1, 3, 5, None])
@pytest.mark.parametrize("shape", [(1.0, 0.0), (2.0, 0.1), (1.5, 0.0)])
def test_the_rules_for_c_f(stored, shape, until):
    """From the sums and counts of each record, divided and added in a plain loop."""
    power, threshold = shape
    count = 5 if until is None else until
    counts = stored.read("forget_token_count")
    widths = [site.width for site in stored.sites]
    tokens = np.repeat(counts, widths, axis=1)
    sums = stored.read("forget_mean") * tokens
    retain = stored.read("retain_mean")
    rows: dict[str, list[np.ndarray]] = {rule: [] for rule in ACCESSORS}
    for record in range(count):
        rows["record"].append(plain_accessor(sums[record] / tokens[record], retain))
        so_far = sums[: record + 1].sum(axis=0) / tokens[: record + 1].sum(axis=0)
        rows["running"].append(plain_accessor(so_far, retain))
    if count:
        rows["mean"] = rows["running"][-1:]
    for rule in ACCESSORS:
        expected = sum(
            (np.maximum(0, row - threshold) ** power for row in rows[rule]), np.zeros(sum(widths))
        )
        strength = Strength(0.1, ALL, power, threshold, rule, until)
        np.testing.assert_allclose(strength.exponent(stored), expected, rtol=1e-9, atol=1e-12)
        assert strength.num_rows(stored) == len(rows[rule])
        assert len(list(strength.rows(stored))) == len(rows[rule])


def test_one_record_has_one_mean(stored):
    sums = [Strength(0.1, ALL, accessor=rule, until=1).exponent(stored) for rule in ACCESSORS]
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(sums[2], sums[1])


def test_a_site_without_retain_tokens_keeps_gate_one(stored, tmp_path):
    """Under every rule, however loud the forget data are there."""
    copy = rewritten(stored, tmp_path / "s.zarr", retain_token_count=np.array([0, 9]))
    first = copy.sites[0].vectors
    for rule in ("running", "mean"):
        assert not Strength(0.1, ALL, accessor=rule).exponent(copy)[first].any()
        assert Strength(0.1, ALL, accessor=rule).exponent(copy).any()


def rewritten(stored: Statistics, place: Path, **changes: np.ndarray) -> Statistics:
    """The same statistics with other numbers and digests that fit them."""
    writer = StatisticsWriter(Location(str(place)), stored.sites, stored.num_forget_records)
    for name, values in {n: stored.read(n) for n in stored.attributes["sha256"]}.items():
        writer.put(name, changes.get(name, values))
    keep = ("model", "progressive", "sources")
    writer.finish({name: stored.attributes[name] for name in keep})
    return Statistics.open(Location(str(place)))


# Reading


@pytest.mark.parametrize("rule", ACCESSORS)
@pytest.mark.parametrize("until", [1, None])
@pytest.mark.parametrize("record", [0, 4])
def test_a_changed_row_is_found_even_where_it_is_not_needed(
    artefacts, tmp_path, rule, until, record
):
    place = shutil.copytree(artefacts.statistics, tmp_path / "s.zarr")
    name = "accessor" if rule == "record" else "forget_running_mean"
    edit_array(place / name, put((record, 5), 0.25))
    damaged = Statistics.open(Location(str(place)))
    strength = Strength(0.1, ALL, 2.0, accessor=rule, until=until)
    with pytest.raises(DamageError, match=rf"{name}: is not what the group's digest says"):
        strength.exponent(damaged)


def test_rows_beyond_the_records_are_found(artefacts, tmp_path):
    import zarr

    place = shutil.copytree(artefacts.statistics, tmp_path / "s.zarr")
    zarr.open_array(place / "accessor", mode="r+").resize((6, 96))
    with pytest.raises(DamageError):
        Strength(0.1, ALL, 2.0).exponent(Statistics.open(Location(str(place))))


def test_memory_does_not_grow_with_the_records(tmp_path, monkeypatch):
    for module in (statistics, statistics_writer):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 17)
    records, width = 300, 4096
    sites = [Site("0", "0.weight", 1, 0, -1, width, 0)]
    writer = StatisticsWriter(Location(str(tmp_path / "s.zarr")), sites, records)
    for name, values in coordinates(sites, [str(n) for n in range(records)]):
        writer.put(name, values)
    rows = writer.rows("accessor", np.float64)
    total = np.zeros(width)
    rng = np.random.default_rng(0)
    for _ in range(records):
        row = rng.random(width)
        total += np.maximum(row - 0.5, 0) ** 2
        rows.add(row[None])
    rows.close()
    writer.put("exponent", total)
    model = dict.fromkeys(STATISTIC_FIELDS, "")
    writer.finish({"model": model, "progressive": None, "sources": []})
    stored = Statistics.open(Location(str(tmp_path / "s.zarr")))
    tracemalloc.start()
    found = Strength(0.1, LayerRange(0, 0), 2.0, 0.5).exponent(stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, total, rtol=1e-13)
    assert peak < records * width * 8 / 4


# What makes no sense


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, "gamma must be a finite number of at least 0, got -0.1"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"power": 0.0}, "power must be a multiple of 0.5, from 0.5 to 8, got 0.0"),
        ({"power": 1.25}, "power must be"),
        ({"power": -1.0}, "power must be"),
        ({"power": 8.5}, "power must be"),
        ({"power": math.nan}, "power must be"),
        ({"threshold": -0.1}, "threshold must be a finite number of at least 0, got -0.1"),
        ({"threshold": math.inf}, "threshold must be"),
        ({"accessor": "median"}, "accessor must be one of record, running, mean, got median"),
        ({"until": -1}, "until must be a whole number of at least 0, got -1"),
        ({"until": 2.5}, "until must be a whole number"),
    ],
)
def test_nonsense_is_refused_by_name(options, message):
    with pytest.raises(OptionError, match=message):
        Strength(**{"gamma": 0.1, "layers": ALL, **options})


def test_more_records_than_there_are_is_refused(stored):
    with pytest.raises(OptionError, match="until 6: the statistics hold 5 forget records"):
        Strength(0.1, ALL, until=6).exponent(stored)


def test_it_comes_back_from_json_values():
    strength = Strength(0.1, LayerRange(3, 7), 2.5, 0.25, "running", 12)
    assert Strength.from_dict(strength.to_dict()) == strength


# The same bits everywhere

SAMPLE = """
import hashlib, numpy as np
from kvwstream.accessor import LayerRange, gates
from kvwstream.strength import Strength
from tests.test_strength import Memory
rows = np.random.default_rng(0).random((4000, 4)) * 3
digest = hashlib.sha256()
for power in (0.5, 1.0, 1.5, 2.0, 3.0, 8.0):
    for threshold in (0.0, 0.3):
        total = Strength(0.01, LayerRange(0, 1), power, threshold).exponent(Memory(rows))
        digest.update(total.tobytes() + gates(total, 1e-3).tobytes())
print(digest.hexdigest())
"""
GOLDEN = "4462b0aabd6e3d844c998c58cf9cb61e1d2f3b6b7eff4819f9a1e7613193e989"


@pytest.mark.parametrize("disabled", ["", "X86_V4 AVX512_ICL AVX512_SPR", "X86_V3 X86_V4"])
def test_the_bits_do_not_depend_on_the_processor(disabled):
    """NumPy told to do without wide instructions, as on an older machine."""
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": disabled,
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAMPLE],
        capture_output=True, text=True, env=environment, cwd=root,
    )  # fmt: skip
    assert done.stdout.strip() == GOLDEN, done.stderr
