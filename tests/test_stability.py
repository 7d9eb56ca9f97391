"""An early end: where it is decided, that it is the same for everybody, and how far it is off."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from kvwstream.canonical import digest_of
from kvwstream.errors import DamageError, OptionError
from kvwstream.passes import in_order
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.cluster import Cluster
from kvwstream.pipelines.collect import Share, collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.pipelines.stability import Stability, checkpoints
from kvwstream.pipelines.worker import Job
from kvwstream.plan import CollectPlan, Site
from kvwstream.readers import Source, read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.ending import read_ending
from kvwstream.stores.location import Location
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.tables import ExampleTable, sites_digest
from tests.conftest import COLOURS, THINGS, question, tree_bytes, write_rows

SITES = [Site("a", "a.weight", 1, 0, -1, 200, 0)]


def synthetic(folder, clusters: int, size: int, until_stable: float | None) -> CollectStore:
    """A complete store of records in clusters, whose sums vary between clusters alone."""
    rng, count = np.random.default_rng(0), clusters * size
    names = [f"{number:064x}" for number in range(count)]
    columns = list(in_order(count, 1).columns)
    columns[0] = np.arange(count) // size
    full = [np.full(count, number) for number in (9, 4, 5)]
    table = ExampleTable(names, names, *full, *columns)
    plan = CollectPlan(
        *("0" * 64,) * 3, sites_digest(SITES), table.digest, table.arrangement,
        count, 1, 200, seed=0, batch_size=1, part_size=size, tokens="answer", moments=("abs",),
        dtype="float32", attention="sdpa", threads=1, pass_tokens=1, sharing=False,
        until_stable=until_stable,
    )  # fmt: skip
    store = CollectStore.create(Location(str(folder)), plan, SITES, table)
    for part in plan.parts:
        level = rng.lognormal(0, 0.3, 200).astype(np.float32)
        sums = np.repeat(level[None], part.num_records, axis=0)
        store.write_part(PartData(part, {"abs": sums}, np.full((part.num_records, 1), 5)), {})
    return store


@pytest.mark.parametrize("size", [1, 6])
def test_the_movement_is_two_standard_errors_between_clusters(tmp_path, size):
    """Members of a cluster are no further witnesses: six times the records, the same movement."""
    store = synthetic(tmp_path / "s.zarr", 64, size, None)
    seen = Stability(store)
    parts = [store.read_part(number) for number in range(store.num_parts)]
    assert np.isinf(seen.movement()).all()
    for data in parts[:40]:
        seen.add(data)
    levels = np.stack([data.sums["abs"][0] for data in parts[:40]]).astype(np.float64)
    expected = 2 * levels.std(axis=0, ddof=1) / np.sqrt(40) / levels.mean(axis=0)
    np.testing.assert_allclose(seen.movement(), expected * np.sqrt(1 - 40 / 64), rtol=1e-12)
    for data in parts[40:]:
        seen.add(data)
    assert not seen.movement().any()  # nothing is left to measure


def test_most_vectors_stay_within_the_bound(tmp_path):
    store = synthetic(tmp_path / "s.zarr", 200, 1, None)
    seen = Stability(store)
    parts = [store.read_part(number) for number in range(store.num_parts)]
    for data in parts[:50]:
        seen.add(data)
    mean = seen.clusters.mean()
    for data in parts[50:]:
        seen.add(data)
    moved = np.abs(np.log(seen.clusters.mean() / mean))
    early = Stability(store)
    for data in parts[:50]:
        early.add(data)
    assert (moved <= early.movement()).mean() > 0.9
    assert early.bound() == np.sort(early.movement())[197]  # 198 of 200 are 99 %


def test_checkpoints_grow_and_end_before_the_last_part():
    assert list(checkpoints(1)) == []
    found = list(checkpoints(100))
    assert found[:6] == [1, 2, 3, 4, 5, 7]
    assert found == sorted(set(found))
    assert found[-1] < 100


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    rows = [question(thing, colour) for thing in THINGS for colour in COLOURS]
    return write_rows(tmp_path_factory.mktemp("facts") / "retain.jsonl", rows)


EPS = 0.2


def planned(llama, facts, **options):
    options = {"part_size": 5, "threads": 1, "until_stable": EPS, **options}
    return prepare(str(llama), read_examples(str(facts)), **options)


@pytest.fixture(scope="module")
def ended(llama, facts, tmp_path_factory):
    """A collection that ended early."""
    store = collect(planned(llama, facts), str(tmp_path_factory.mktemp("ended") / "s.zarr"))
    assert store.ending
    assert 16 <= store.num_records < 100
    return store


def test_two_workers_and_a_stopped_run_end_with_the_same_bytes(llama, facts, ended, tmp_path):
    expected = tree_bytes(ended.location.path)
    job = Job(str(tmp_path / "two.zarr"), str(llama), Source(str(facts)), "cpu").absolute()
    collect(planned(llama, facts), job.store, cluster=Cluster(2), job=job)
    assert tree_bytes(job.store) == expected
    shutil.copytree(ended.location.path, tmp_path / "cut.zarr")
    shutil.rmtree(tmp_path / "cut.zarr" / "ending")
    shutil.rmtree(tmp_path / "cut.zarr" / "parts" / "000002")
    collect(planned(llama, facts), str(tmp_path / "cut.zarr"))
    assert tree_bytes(tmp_path / "cut.zarr") == expected


def test_the_records_are_those_of_the_whole_and_c_r_is_within_the_bound(
    llama, facts, ended, tmp_path
):
    whole = collect(planned(llama, facts, until_stable=None), str(tmp_path / "whole.zarr"))
    assert whole.num_records == 100
    for number in range(ended.num_parts):
        one, two = ended.read_part(number), whole.read_part(number)
        np.testing.assert_array_equal(one.sums["abs"], two.sums["abs"])
    urls = {"early": ended.location.url, "whole": whole.location.url}
    means = {
        name: reduce([url], str(tmp_path / f"{name}-s.zarr"), []).read("retain_mean")
        for name, url in urls.items()
    }
    moved = np.abs(np.log(means["early"] / means["whole"]))
    assert 0 < np.quantile(moved, 0.99) <= EPS


def test_an_audit_decides_anew(ended, tmp_path):
    assert not audit([ended.location.url]).findings
    copy = tmp_path / "s.zarr"
    shutil.copytree(ended.location.path, copy)
    document = json.loads((copy / "ending" / "zarr.json").read_text())
    document["attributes"]["ending"]["bound"] *= 0.5
    (copy / "ending" / "zarr.json").write_text(json.dumps(document))
    assert any("the parts say" in finding for finding in audit([str(copy)]).findings)
    document["attributes"]["ending"]["num_records"] += 1
    (copy / "ending" / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(DamageError, match="does not fit the plan"):
        read_ending(Location(str(copy)), ended.plan)


def test_what_makes_no_sense_is_refused(llama, facts, tmp_path):
    with pytest.raises(OptionError, match="positive number"):
        planned(llama, facts, until_stable=0.0)
    with pytest.raises(OptionError, match="leave --parts out"):
        collect(planned(llama, facts), str(tmp_path / "s.zarr"), share=Share(1, 2))
    with pytest.raises(OptionError, match="store moment abs"):
        collect(planned(llama, facts, moments=("signed",)), str(tmp_path / "t.zarr"))


def test_the_bound_is_in_the_plan(llama, facts):
    one, two = (planned(llama, facts, until_stable=eps).plan for eps in (0.1, 0.2))
    assert one.digest != two.digest
    assert dataclasses.replace(one, until_stable=0.2) == two
    assert digest_of(one.to_dict()) == one.digest
