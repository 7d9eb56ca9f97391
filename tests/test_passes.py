"""What runs together: laws of the arrangement, and how little it leaves to run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwstream.passes import IMAGE, MOST_RECORDS, Reading, arrange, in_order
from kvwstream.stores.tables import ExampleTable, positions_run


@st.composite
def readings(draw) -> list[Reading]:
    """Examples of few beginnings, some behind an image."""
    beginnings = [[1] * n + [number] * 40 for number, n in enumerate((0, 20, 70), start=2)]
    found = []
    for number in range(draw(st.integers(1, 40))):
        tokens = list(draw(st.sampled_from(beginnings)))
        images = draw(st.sampled_from(["", "", "a", "b"]))
        tokens = [9] * 3 + [IMAGE] * 8 * bool(images) + tokens
        tokens += [100 + number] * draw(st.integers(1, 30))
        first = draw(st.integers(len(tokens) - 3, len(tokens) - 1))
        array = np.array(tokens, np.uint32)
        found.append(Reading(array, first, 11 if images else 0, images))
    return found


OPTIONS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 3),
        "part_size": st.integers(1, 20),
        "pass_tokens": st.sampled_from([1, 300, 2048]),
        "sharing": st.booleans(),
    }
)


@settings(deadline=None)
@given(readings(), OPTIONS)
def test_every_example_runs_once_and_a_pass_is_what_it_says(line, options):
    arranged = arrange(line, **options)
    assert sorted(arranged.order) == list(range(len(line)))
    placed = [line[index] for index in arranged.order]
    steps = np.diff(arranged.forward, prepend=0)
    assert set(steps) <= {0, 1}
    for number in range(arranged.forward[-1] + 1):
        (places,) = np.nonzero(arranged.forward == number)
        members = [placed[place] for place in places]
        (prefix,) = set(arranged.prefix[places])
        batch, part = options["batch_size"], options["part_size"] * options["batch_size"]
        assert len(set(places // part)) == 1
        assert places[0] % part % batch == 0  # whole records
        records = -(-len(places) // batch)
        assert records <= MOST_RECORDS
        tokens = len(members) * (max(len(member.tokens) for member in members) - prefix)
        assert tokens <= options["pass_tokens"] or records == 1
        groups = set(arranged.group[places])
        if prefix:
            assert options["sharing"]
            assert all(member.bare <= prefix <= member.first for member in members)
            assert len({member.bare > 0 for member in members}) == 1
        for group in groups if prefix else ():
            alike = [placed[place] for place in places if arranged.group[place] == group]
            assert len({member.tokens[:prefix].tobytes() for member in alike}) == 1
            if IMAGE in alike[0].tokens[:prefix]:
                assert len({member.images for member in alike}) == 1
            if len(groups) > 1:  # whole groups alone run together
                (here,) = np.nonzero((arranged.group == group) & (arranged.prefix > 0))
                assert set(here) <= set(places)
                assert len(groups) * prefix <= options["pass_tokens"]
    again = arrange(line, **options)
    assert all(map(np.array_equal, arranged.columns, again.columns))


@given(readings(), OPTIONS)
def test_clusters_follow_in_the_order_of_the_seed_and_keep_an_images_questions(line, options):
    arranged = arrange(line, **options)
    part = options["part_size"] * options["batch_size"]
    by_part = [sorted(arranged.cluster[n : n + part]) for n in range(0, len(line), part)]
    assert [c for part in by_part for c in part] == sorted(arranged.cluster)
    for images in ("a", "b"):
        own = [c for c, i in zip(arranged.cluster, arranged.order, strict=True)
               if line[i].images == images]  # fmt: skip
        assert len(set(own)) <= 1


@given(readings(), st.integers(1, 20))
def test_two_questions_about_one_image_are_a_group(line, part_size):
    arranged = arrange(line, batch_size=1, part_size=part_size, pass_tokens=2048, sharing=True)
    images = [line[index].images for index in arranged.order]
    for start in range(0, len(line), part_size):
        here = images[start : start + part_size]
        for image in {"a", "b"} & {name for name in here if here.count(name) == 2}:
            places = [start + n for n, name in enumerate(here) if name == image]
            assert len(set(arranged.group[places])) == 1
            assert arranged.prefix[places].all()


@given(readings(), OPTIONS)
def test_the_passes_of_a_group_follow_each_other_with_one_prefix(line, options):
    """So that its prefix runs once."""
    arranged = arrange(line, **options)
    shared = arranged.prefix > 0
    for group in set(arranged.group[shared]):
        (places,) = np.nonzero((arranged.group == group) & shared)
        assert set(np.diff(places)) <= {1}
        assert len(set(arranged.prefix[places])) == 1


def test_the_progressive_schedule_keeps_the_order():
    arranged = in_order(5, 2)
    assert arranged.order.tolist() == [0, 1, 2, 3, 4]
    assert arranged.forward.tolist() == [0, 0, 1, 1, 2]
    assert not arranged.prefix.any()


def beginnings(rng, count: int, size: int, images: bool = False) -> list[Reading]:
    """Groups of examples behind beginnings of their own."""
    line = []
    for number in range(count):
        beginning = rng.integers(10, 1000, rng.integers(80, 120))
        beginning[:8] = IMAGE if images else beginning[:8]
        for _ in range(size):
            tokens = np.concatenate([beginning, rng.integers(2000, 3000, 30)]).astype(np.uint32)
            name = f"image {number}" if images else ""
            line.append(Reading(tokens, len(tokens) - 3, 8 * images, name))
    return line


def test_groups_with_images_do_not_keep_those_without_apart(rng):
    line = beginnings(rng, 8, 4) + beginnings(rng, 8, 4, images=True)
    options = {"batch_size": 1, "part_size": 64, "pass_tokens": 2048, "sharing": True}
    apart = [arrange(half, **options).forward[-1] + 1 for half in (line[:32], line[32:])]
    assert arrange(line, **options).forward[-1] + 1 <= sum(apart)


def test_records_of_several_groups_run_together(rng):
    """They share nothing, and cost no more passes than without sharing."""
    line = beginnings(rng, 24, 2)
    options = {"batch_size": 3, "part_size": 64, "pass_tokens": 2048}
    passes = [arrange(line, **options, sharing=how).forward[-1] + 1 for how in (True, False)]
    assert passes[0] <= passes[1]


def run_of(line: list[Reading], **options: object) -> tuple[int, int]:
    """Positions that run, and tokens in all."""
    values = {"batch_size": 1, "part_size": 64, "pass_tokens": 2048, "sharing": True, **options}
    arranged = arrange(line, **values)
    lengths = np.array([len(line[index].tokens) for index in arranged.order])
    names = [str(index) for index in arranged.order]
    table = ExampleTable(names, names, lengths + 1, lengths - 4, lengths * 0 + 5, *arranged.columns)
    return positions_run(table), int(lengths.sum())


def test_little_is_padded_where_lengths_are_skewed(rng):
    lengths = np.clip(rng.lognormal(4, 0.8, 1000), 12, 800).astype(int)
    line = [
        Reading(rng.integers(0, 30_000, length).astype(np.uint32), length - 5, 0, "")
        for length in lengths
    ]
    run, tokens = run_of(line)
    assert 1 <= run / tokens < 1.05


@pytest.mark.parametrize(("questions", "limit"), [(8, 0.38), (14, 0.35)])
def test_a_shared_beginning_runs_once(rng, questions, limit):
    """Of three quarters of the tokens."""
    line = []
    for _ in range(32):
        passage = rng.integers(0, 30_000, 96)
        for _ in range(questions):
            tail = rng.integers(0, 30_000, rng.integers(28, 37))
            tokens = np.concatenate([passage, tail]).astype(np.uint32)
            line.append(Reading(tokens, len(tokens) - 5, 0, ""))
    line = [line[index] for index in rng.permutation(len(line))]
    run, tokens = run_of(line)
    assert run / tokens < limit
    assert run_of(line, sharing=False)[0] >= tokens
