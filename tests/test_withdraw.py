"""An example withdrawn from a store is as if it had never been collected, and nothing is lost."""

from __future__ import annotations

import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvwstream.errors import DamageError, DataError, IncompleteError, StorageError
from kvwstream.pipelines import withdraw as pipeline
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.derive import reduce_serial
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.pipelines.withdraw import withdraw
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.stores.views import open_store
from tests import faults
from tests.conftest import THINGS, Artefacts, tree_bytes
from tests.faults import Fault
from tests.test_cli import run

NUMBERS = ("retain_mean", "retain_standard_error", "retain_token_count")
ROWS = ("forget_mean", "forget_running_mean", "accessor", "forget_token_count", "exponent")
HARMLESS = ("deleted group of the revisions", "extra file beside a revision")
PINK = [f"{thing}-pink" for thing in THINGS[:5]]


@pytest.fixture
def stores(llama: Path, data: dict[str, Path], tmp_path: Path) -> tuple[str, str]:
    """To retain (parts of 3 records) and to forget."""
    for name in ("retain", "forget"):
        collected(llama, data[name], tmp_path / f"{name}.zarr", part_size=3)
    return str(tmp_path / "retain.zarr"), str(tmp_path / "forget.zarr")


def collected(model: Path, data: Path, store: Path, leave_out=(), **options: object) -> str:
    examples = [e for e in read_examples(str(data)) if e.id not in leave_out]
    alone = {"sharing": False, "pass_tokens": 1}
    collect(prepare(str(model), examples, threads=1, **alone, **options), str(store))
    return str(store)


def parts(url: str):
    store = CollectStore.open(Location(url))
    return [store.read_records(number) for number in range(store.plan.num_parts)]


def same(one: Statistics, other: Statistics, *names: str, exact: bool = True) -> None:
    for name in names:
        tolerance = 0.0 if exact else 1e-12
        np.testing.assert_allclose(
            one.read(name), other.read(name), rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_reduce_is_the_serial_specification_over_the_records_that_count(stores, tmp_path):
    retain, forget = stores
    run("forget-example", retain, "sky-red", "chat")
    run("forget-example", retain, "snow-blue")
    run("forget-example", forget, PINK[1])
    stored = reduce([retain], str(tmp_path / "r.zarr"), [forget])
    left = CollectStore.open(Location(retain))
    assert (left.revision.number, len(left.records)) == (2, 8)
    # the specification over the records of the parts, filtered by hand
    removed = {left.examples.ids.index(name) for name in ("sky-red", "chat", "snow-blue")}
    filtered = []
    for data in (left.read_part(number) for number in range(left.plan.num_parts)):
        kept = [r - data.part.start for r in range(*data.part[1:]) if r not in removed]
        sums = {moment: values[kept] for moment, values in data.sums.items()}
        filtered.append(data.__class__(data.part, sums, data.counts[kept]))
    for name, values in reduce_serial(filtered, parts(forget), left.widths).items():
        np.testing.assert_array_equal(stored.read(name), values, err_msg=name)
    assert stored.attributes["num_retain_records"] == 8
    assert stored.num_forget_records == 4


@pytest.mark.parametrize("part_size", [1, 4])
def test_it_equals_a_store_collected_without_the_example(part_size, llama, data, tmp_path):
    gone = ("grass-green", "rose-yellow")
    with_it = collected(llama, data["retain"], tmp_path / "with.zarr", part_size=part_size)
    without = collected(llama, data["retain"], tmp_path / "no.zarr", gone, part_size=part_size)
    forget = collected(llama, data["forget"], tmp_path / "forget.zarr", part_size=part_size)
    withdraw(with_it, gone)
    one = reduce([with_it], str(tmp_path / "one.zarr"), [forget])
    two = reduce([without], str(tmp_path / "two.zarr"), [forget])
    same(one, two, *NUMBERS, *ROWS, exact=part_size == 1)


def test_a_withdrawn_record_to_forget_is_in_no_row_and_no_name(stores, llama, data, tmp_path):
    retain, forget = stores
    withdraw(forget, [PINK[0], PINK[3]])
    without = collected(llama, data["forget"], tmp_path / "no.zarr", (PINK[0], PINK[3]))
    one = reduce([retain], str(tmp_path / "one.zarr"), [forget])
    two = reduce([retain], str(tmp_path / "two.zarr"), [without])
    same(one, two, *ROWS)
    for names in (one.read("examples").tolist(), open_store(forget).examples.values.tolist()):
        assert names == two.read("examples").tolist()
        assert set(names) == {PINK[1], PINK[2], PINK[4]}
    assert open_store(forget).abs_sum.shape == (3, 96)
    np.testing.assert_array_equal(open_store(forget).abs_sum, open_store(without).abs_sum)


def test_new_and_old_statistics_pass_the_audit(stores, tmp_path):
    """What was reduced before is derived anew from the revision that it saw."""
    names = []
    for step in (None, ("chat",), ("sky-red", "snow-blue")):
        if step:
            withdraw(stores[0], step)
        names.append(str(tmp_path / f"statistics-{len(names)}.zarr"))
        reduce(stores[:1], names[-1], stores[1:])
    found = audit([*stores, *names])
    assert found.findings == []
    assert sum("derived anew from 2 stores, bit for bit" in line for line in found.verified) == 3
    (note,) = found.notes
    assert re.search(r"retain\.zarr: revision 2 leaves out .*chat", note)
    digests = [Statistics.open(Location(n)).attributes["sources"][0]["digest"] for n in names]
    assert len(set(digests)) == 3


def test_it_no_longer_stands_in_the_way_of_another_store(stores, llama, data, tmp_path):
    retain, forget = stores
    (tmp_path / "both.jsonl").write_text(data["retain"].read_text() + data["forget"].read_text())
    both = collected(llama, tmp_path / "both.jsonl", tmp_path / "both.zarr")
    with pytest.raises(DataError, match="5 examples stand in an earlier store too"):
        reduce([both], str(tmp_path / "r.zarr"), [forget])
    withdraw(both, PINK)
    one = reduce([both], str(tmp_path / "r.zarr"), [forget])
    two = reduce([retain], str(tmp_path / "two.zarr"), [forget])
    same(one, two, *NUMBERS, *ROWS, exact=False)


def test_parts_stay_and_collect_has_nothing_to_do(stores, llama, data, capfd):
    retain, _ = stores
    before = tree_bytes(retain)
    withdraw(retain, ["chat"])
    after = tree_bytes(retain)
    assert {name for name in after if name not in before} == {
        "revisions/zarr.json",
        "revisions/000001/zarr.json",
    }
    assert before.items() <= after.items()
    alone = ("--no-sharing", "--pass-tokens", 1)
    run("collect", llama, data["retain"], retain, "--part-size", 3, "--threads", 1, *alone)
    assert "all 4 parts are sealed, nothing to do" in capfd.readouterr().err
    assert tree_bytes(retain) == after


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (("nobody",), "holds no example 'nobody'"),
        (("chat", "nobody", "no one"), "holds no example 'nobody', 'no one'"),
        (("sky-red",), "already withdrawn: 'sky-red'"),
        (("chat", "sky-red"), "already withdrawn: 'sky-red'"),
    ],
)
def test_wrong_ids_are_named_and_nothing_is_withdrawn(ids, message, stores, capfd):
    withdraw(stores[0], ["sky-red"])
    before = tree_bytes(stores[0])
    run("forget-example", stores[0], *ids, expect=1)
    assert f"{stores[0]}: {message}" in capfd.readouterr().err
    assert tree_bytes(stores[0]) == before


def test_a_record_of_several_examples_is_not_taken_apart(llama, data, tmp_path):
    url = collected(llama, data["retain"], tmp_path / "s.zarr", batch_size=3, part_size=2)
    store = CollectStore.open(Location(url))
    ids = store.examples.ids
    with pytest.raises(DataError) as caught:
        withdraw(url, [ids[10], ids[4], ids[6], ids[8]])
    _, *records = str(caught.value).splitlines()
    assert [line.strip() for line in records] == [
        f"record 1, with {ids[3]}, {ids[5]}",
        f"record 2, with {ids[7]}",
        f"record 3, with {ids[9]}",
    ]
    assert not (tmp_path / "s.zarr/revisions").exists()
    withdraw(url, [ids[9], ids[10]])
    withdraw(url, ids[3:6])
    assert CollectStore.open(Location(url)).records.tolist() == [0, 2]
    assert open_store(url).examples.values.tolist() == [", ".join(ids[:3]), ", ".join(ids[6:9])]
    assert audit([url]).findings == []


def test_a_store_that_is_not_complete_is_refused(stores):
    (Path(stores[0]) / "parts/000002/zarr.json").unlink()
    with pytest.raises(IncompleteError, match=r"1 of 4 parts have no seal \(2\)"):
        withdraw(stores[0], ["chat"])


def test_of_two_withdrawals_at_once_the_second_is_told_to_run_again(stores, monkeypatch):
    write = pipeline.write_revision

    def late(*words):
        monkeypatch.setattr(pipeline, "write_revision", write)
        withdraw(stores[0], ["sky-red"])
        return write(*words)

    monkeypatch.setattr(pipeline, "write_revision", late)
    with pytest.raises(StorageError, match="another command withdrew examples just now; run this"):
        withdraw(stores[0], ["chat"])
    assert withdraw(stores[0], ["chat"]).number == 2
    store = CollectStore.open(Location(stores[0]))
    assert {store.examples.ids[p] for p in store.revision.removed} == {"sky-red", "chat"}


def test_of_which_nothing_is_left_no_statistics_are_made(stores, tmp_path):
    withdraw(stores[1], PINK)
    with pytest.raises(DataError, match=r"forget\.zarr: every example is withdrawn"):
        reduce(stores[:1], str(tmp_path / "r.zarr"), stores[1:])
    assert not (tmp_path / "r.zarr").exists()
    assert audit([stores[1]]).findings == []


def test_a_withdrawal_that_was_cut_off_withdraws_nothing(stores, tmp_path):
    """The group of the revisions comes first; alone it says that somebody tried."""
    withdraw(stores[0], ["chat"])
    shutil.rmtree(Path(stores[0]) / "revisions/000001")
    found = audit([stores[0]])
    assert found.findings == []
    assert any("a `kvwstream forget-example` was begun" in note for note in found.notes)
    assert len(CollectStore.open(Location(stores[0])).records) == 11
    assert withdraw(stores[0], ["chat"]).number == 1


@pytest.fixture(scope="module")
def revised(artefacts: Artefacts, tmp_path_factory) -> Path:
    """A store with two revisions."""
    folder = tmp_path_factory.mktemp("revised") / "retain.zarr"
    shutil.copytree(artefacts.retain, folder)
    withdraw(str(folder), ["chat"])
    withdraw(str(folder), ["sky-red"])
    return folder


@pytest.mark.parametrize("fault", faults.REVISED, ids=lambda fault: fault.name)
def test_a_damaged_revision_is_found_and_never_reduced(fault: Fault, revised, tmp_path):
    store = shutil.copytree(revised, tmp_path / "retain.zarr")
    fault.damage(store)
    found = audit([str(store)]).findings
    assert any(re.search(fault.finding, line) for line in found), found
    if fault.name not in HARMLESS:
        with pytest.raises(DamageError, match="revisions/00000"):
            reduce([str(store)], str(tmp_path / "r.zarr"))


def test_statistics_of_a_deleted_last_revision_are_found(revised, artefacts, tmp_path):
    """The store alone cannot tell; what was reduced from it can."""
    store = shutil.copytree(revised, tmp_path / "retain.zarr")
    statistics = str(tmp_path / "statistics.zarr")
    reduce([str(store)], statistics, [artefacts.forget])
    shutil.rmtree(store / "revisions/000002")
    found = audit([str(store), artefacts.forget, statistics]).findings
    assert any("made from another retain.zarr" in line for line in found), found


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    order=st.permutations(range(5)),
    size=st.integers(1, 4),
    cuts=st.sets(st.integers(1, 3), max_size=3),
)
def test_any_split_of_a_withdrawal_gives_the_same_result(
    order, size, cuts, artefacts, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("split")
    gone = [PINK[index] for index in order[:size]]
    bounds = [0, *sorted(cut for cut in cuts if cut < size), size]
    results = []
    for steps in ([gone], [gone[a:b] for a, b in pairwise(bounds)]):
        store = shutil.copytree(artefacts.forget, folder / f"{len(results)}" / "forget.zarr")
        for step in steps:
            withdraw(str(store), step)
        out = str(folder / f"{len(results)}.zarr")
        results.append(reduce([artefacts.retain], out, [str(store)]))
    same(*results, *NUMBERS, *ROWS)
    assert results[0].read("examples").tolist() == results[1].read("examples").tolist()
    assert results[0].num_forget_records == 5 - size
    shutil.rmtree(folder)
