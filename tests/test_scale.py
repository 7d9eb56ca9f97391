"""The figures of docs/scale.md: their formulas hold for real stores, on disk and in a bucket."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import zarr
from numcodecs.blosc import MAX_BUFFERSIZE

from benchmarks.made_up import make_store
from benchmarks.scale import (
    BLOCK,
    DOC,
    LLAVA,
    Job,
    Model,
    cost,
    filled,
    put_requests,
    sites_of,
)
from kvwstream.cli import main
from kvwstream.pipelines.derive import ROW_DTYPES
from kvwstream.stores import location
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import OF_FURTHER_MOMENTS
from tests.conftest import Artefacts, tree_bytes
from tests.object_storage import FaultyProxy, s3_server

TINY = Model("the Llama of the tests", 2, 1, 48, weights=1e5, flops=1e6)


def job_of(store: str) -> Job:
    """What the script would be told of a store on the tiny Llama."""
    plan = CollectStore.open(Location(store)).plan
    return Job(TINY, plan.num_examples, 1, plan.batch_size, plan.part_size, len(plan.moments))


def size_of(group: str, names: Iterable[str] | None = None) -> int:
    """Bytes of a group's arrays before compression."""
    arrays = dict(zarr.open_group(group, mode="r").arrays())
    return sum(arrays[name].nbytes for name in names or arrays)


def test_objects_and_bytes_of_stores_and_statistics(artefacts: Artefacts):
    for store in (artefacts.retain, artefacts.forget):
        expected = cost(job_of(store))
        assert len(tree_bytes(store)) == expected.objects
        parts = [str(part) for part in Path(store, "parts").iterdir() if part.is_dir()]
        assert len(parts) == expected.parts
        assert sum(map(size_of, parts)) == expected.store_bytes
        assert max(map(size_of, parts)) == expected.part_bytes
    rows = ROW_DTYPES.keys() - OF_FURTHER_MOMENTS  # of moments that are not collected
    assert size_of(artefacts.statistics, rows) == expected.statistics_bytes


def test_compressed_parts_are_no_larger_than_predicted(tmp_path):
    model = Model("a wider one", 2, 3, 2000, weights=1e5, flops=1e6)
    make_store(tmp_path / "made-up", sites_of(model), 100)
    stored = sum(map(len, tree_bytes(tmp_path / "made-up/parts").values()))
    predicted = cost(Job(model, 100)).store_bytes
    assert 0.8 * predicted < stored < predicted


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    """A bucket whose requests are recorded."""
    with s3_server() as server, FaultyProxy(server) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in proxy.environment.items():
            patch.setenv(name, value)
        location._bucket.cache_clear()
        yield proxy
        location._bucket.cache_clear()


def kvwstream(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["kvwstream", *map(str, words)])
        main()
    assert not end.value.code


@pytest.mark.parametrize(
    "options",
    [
        ("--part-size", 3),
        ("--part-size", 2, "--batch-size", 2),
        ("--part-size", 4, "--moments", "abs,signed,square"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_requests_to_a_bucket(proxy, llama, data, options):
    name = f"retain-{'-'.join(map(str, options))}.zarr"
    store = proxy.server.url(name)

    def requests(*words: object) -> Counter[str]:
        """That a command makes for parts and their worker's notes, and listings of the store."""
        proxy.requests.clear()
        kvwstream(*words)
        places = (f"{name}/parts/0", f"{name}/.running/")
        return Counter(
            r.operation
            for r in proxy.requests
            if r.path.startswith(places) or r.query.get("prefix") == f"{name}/"
        )

    collected = requests("collect", llama, data["plain"], store, *options)
    expected = cost(job_of(store))
    assert collected == {"PUT": expected.puts, "GET": expected.gets, "LIST": expected.lists}
    assert len(Location(store).listing()) == expected.objects
    reduced = requests("reduce", "--retain", store, f"{store.removesuffix('.zarr')}-statistics")
    assert reduced == {"GET": expected.reduce_gets, "LIST": expected.reduce_lists}


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 2 * BLOCK + 1])
def test_a_large_object_is_put_in_blocks(proxy, size):
    proxy.requests.clear()
    Location(proxy.server.url("large")).write("object", bytes(size))
    assert len(proxy.requests) == put_requests(size)


def test_a_table_is_one_chunk_of_which_blosc_takes_so_many_examples():
    """The limit that the page names: 32 bytes of digest for each."""
    assert MAX_BUFFERSIZE // 32 == 67_108_863


def test_what_each_option_moves():
    job = Job(LLAVA, 10**6, gpus=64)
    default, batches = cost(job), cost(job._replace(batch_size=64))
    assert default.store_bytes == pytest.approx(64 * batches.store_bytes, rel=0.01)
    assert default.puts == pytest.approx(64 * batches.puts, rel=0.01)
    large = cost(job._replace(part_size=512))
    assert large.store_bytes == default.store_bytes
    assert large.part_bytes == 8 * default.part_bytes
    assert default.objects == pytest.approx(8 * large.objects, rel=0.01)
    moments = cost(job._replace(moments=3))
    assert moments.store_bytes == pytest.approx(3 * default.store_bytes, rel=0.01)
    assert (moments.plan, moments.retain) == (default.plan, pytest.approx(default.retain, rel=0.01))


def test_the_page_holds_what_the_script_computes():
    assert filled(DOC.read_text()) == DOC.read_text()
