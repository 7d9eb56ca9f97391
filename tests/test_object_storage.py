"""Stores and statistics in a bucket: the bytes and answers of a local path, whatever fails."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import obstore
import pytest
import xarray as xr
from tenacity import wait_none

from kvwstream.cli import main
from kvwstream.errors import OptionError
from kvwstream.stores import location
from kvwstream.stores.collected import sealed_among
from kvwstream.stores.location import Location
from kvwstream.stores.views import open_statistics, open_store
from tests.conftest import THINGS, question, tree_bytes, write_rows
from tests.object_storage import BUCKET, CODES, FAILURES, Fault, FaultyProxy, on, s3_server

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAKVWSTREAM", "AWS_SECRET_ACCESS_KEY": "hush-do-not-tell"}
EVER = 10**6
SOON = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {
        "base": 2,
        "init_backoff": timedelta(milliseconds=10),
        "max_backoff": timedelta(milliseconds=50),
    },
}
PATIENCE = 30
"""Seconds that a command may take to give up with `SOON`, on a busy machine."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    """A bucket behind a proxy; this process finds no other, and does not wait long for it."""
    with s3_server() as server, FaultyProxy(server) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in (proxy.environment | KEYS | {"AWS_TIMEOUT": "400ms"}).items():
            patch.setenv(name, value)
        patch.setattr(location, "RETRIES", SOON)
        patch.setattr(location, "WAIT", wait_none())
        location._bucket.cache_clear()
        yield proxy
        location._bucket.cache_clear()


_numbers = itertools.count()


@pytest.fixture
def folder(proxy) -> Iterator[str]:
    """The URL of an empty folder in the bucket; the proxy has forgotten what was before."""
    proxy.faults.clear()
    proxy.requests.clear()
    yield proxy.server.url(f"test-{next(_numbers)}")
    proxy.faults.clear()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, Path]:
    """12 examples to retain, 4 to forget."""
    place = tmp_path_factory.mktemp("rows")
    retain = [question(thing, "red") for thing in THINGS] + [question("sea", "blue")]
    forget = [question(thing, "pink") for thing in THINGS[:4]]
    retain.append(question("sky", "blue"))
    return {
        "retain": write_rows(place / "retain.jsonl", retain),
        "forget": write_rows(place / "forget.jsonl", forget),
    }


class Commands:
    """The command line in this process, in one place, be it a folder or a bucket."""

    def __init__(self, place: str, model: Path, rows: dict[str, Path]) -> None:
        self.place, self.model, self.rows = place, model, rows

    def url(self, name: str) -> str:
        return f"{self.place}/{name}.zarr"

    def __call__(self, *words: object) -> tuple[int, str]:
        """Exit code, and what was printed on both streams."""
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(sys, "argv", ["kvwstream", *map(str, words)])
            main()
        return int(end.value.code or 0), ""

    def collect(self, kind: str, part_size: int = 4) -> tuple[int, str]:
        options = ("--part-size", part_size, "--threads", 1)
        return self("collect", self.model, self.rows[kind], self.url(kind), *options)

    def reduce(self) -> tuple[int, str]:
        stores = ("--retain", self.url("retain"), "--forget", self.url("forget"))
        return self("reduce", *stores, self.url("statistics"))


@pytest.fixture
def say(capfd) -> Callable[[tuple[int, str]], tuple[int, str]]:
    """Adds to an exit code what the command said; credentials are never in it."""

    def said(done: tuple[int, str]) -> tuple[int, str]:
        told = "".join(capfd.readouterr())
        assert not any(key in told for key in KEYS.values())
        return done[0], told

    return said


@pytest.fixture(scope="module")
def local(tmp_path_factory, llama, rows) -> Commands:
    """The main job on a local path; to be read only."""
    commands = Commands(str(tmp_path_factory.mktemp("local")), llama, rows)
    for done in (commands.collect("retain"), commands.collect("forget"), commands.reduce()):
        assert done[0] == 0
    return commands


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL, read at once; credentials are in none."""
    place = Location(url)
    found = {name: place.read(name) or b"" for name in sorted(place.listing())}
    assert not any(key.encode() in content for content in found.values() for key in KEYS.values())
    return found


def wrongly_sealed(url: str, whole: dict[str, bytes]) -> list[str]:
    """Objects of sealed parts that are missing or not as they should be."""
    found = objects(url)
    parts = [f"parts/{number:06d}/" for number in sealed_among(found)]
    names = [name for name in whole if name.startswith(tuple(parts))]
    return [name for name in names if found.get(name) != whole[name]]


def test_a_bucket_holds_the_bytes_and_gives_the_answers_of_a_folder(
    folder, local, tmp_path, llama, rows, say
):
    cloud, here = Commands(folder, llama, rows), Commands(str(tmp_path), llama, rows)
    names = [cloud.url(name) for name in ("retain", "forget", "statistics")]
    script = [
        lambda place: place.collect("retain"),
        lambda place: place("status", place.url("retain")),
        lambda place: place.collect("retain"),
        lambda place: place.collect("forget"),
        lambda place: place.reduce(),
        lambda place: place("audit", *map(place.url, ("retain", "forget", "statistics"))),
        lambda place: place("forget-example", place.url("retain"), "sea-blue", "sky-red"),
        lambda place: place("audit", *map(place.url, ("retain", "forget", "statistics"))),
        lambda place: place("status", place.url("forget")),
        lambda place: place.reduce(),
        lambda place: place.collect("retain", part_size=3),
        lambda place: place("forget-example", place.url("retain"), "sea-blue"),
    ]
    expected = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    for step, code in zip(script, expected, strict=True):
        there, told = zip(*(say(step(place)) for place in (cloud, here)), strict=True)
        assert there == (code, code)
        # rates and times are not the same twice
        answers = [re.sub(r".*/s, .*|\s+", " ", text) for text in told]
        assert answers[0].replace(folder, "") == answers[1].replace(str(tmp_path), "")
    for name in ("retain", "forget", "statistics"):
        assert objects(cloud.url(name)) == tree_bytes(here.url(name))
    xr.testing.assert_identical(open_store(names[0]).load(), open_store(here.url("retain")).load())
    assert open_store(names[0]).sizes["record"] == 10
    xr.testing.assert_identical(
        open_statistics(names[2]).load(), open_statistics(local.url("statistics")).load()
    )


class Point(NamedTuple):
    """A request of a command that shall fail."""

    operation: str
    path: str
    at_last: str | None
    """What the command says if it fails for ever; None where it can do without."""


COLLECT = [
    Point("LIST", "", "retain.zarr: "),
    Point("PUT", r"retain\.zarr/zarr\.json$", "retain.zarr/zarr.json: "),
    Point("PUT", r"sites/layer/c/0$", "retain.zarr/sites/layer/c/0: "),
    Point("PUT", r"/examples/zarr\.json$", "retain.zarr/examples/zarr.json: "),
    Point("PUT", r"parts/zarr\.json$", "retain.zarr/parts/zarr.json: "),
    Point("PUT", r"environment/zarr\.json$", "retain.zarr/environment/zarr.json: "),
    Point("GET", r"parts/000001/zarr\.json$", "part 1: .*/parts/000001/zarr.json: "),
    Point("PUT", r"parts/000001/abs_sum/zarr\.json$", "part 1: .*/000001/abs_sum/zarr.json: "),
    Point("PUT", r"parts/000001/abs_sum/c/0/0$", "part 1: .*/000001/abs_sum/c/0/0: "),
    Point("PUT", r"parts/000001/token_count/c/0/0$", "part 1: .*/000001/token_count/c/0/0: "),
    Point("GET", r"parts/000001/abs_sum/zarr\.json$", "part 1: .*/000001/abs_sum/zarr.json: "),
    Point("PUT", r"parts/000001/zarr\.json$", "part 1: .*/parts/000001/zarr.json: "),
    Point("POST", "", "retain.zarr/.running: "),
]
REDUCE = [
    Point("LIST", "", "retain.zarr/revisions: "),
    Point("GET", r"retain\.zarr/zarr\.json$", "retain.zarr/zarr.json: "),
    Point("GET", r"examples/id/c/0$", "retain.zarr/examples/id: "),
    Point("GET", r"retain\.zarr/parts/000001/zarr\.json$", "parts/000001/zarr.json: "),
    Point("GET", r"parts/000001/abs_sum/c/0/0$", "parts/000001/abs_sum/c/0/0: "),
    Point("GET", r"parts/000000/token_count/c/0/0$", "parts/000000/token_count/c/0/0: "),
    Point("GET", r"forget\.zarr/parts/000000/abs_sum/c/0/0$", "parts/000000/abs_sum/c/0/0: "),
    Point("PUT", r"statistics\.zarr/accessor/c/0/0$", "statistics.zarr/accessor/c/0/0: "),
    Point("PUT", r"statistics\.zarr/zarr\.json$", "statistics.zarr/zarr.json: "),
]
EVERY = [*FAILURES, *(f"{kind}-after" for kind in FAILURES)]


def point_id(point: object) -> str | None:
    return re.sub(r"[\\$]", "", " ".join(point[:2])) if isinstance(point, Point) else None


def fault(point: Point, kind: str, times: int) -> Fault:
    return Fault(on(point.operation, point.path), kind, times)


@pytest.mark.parametrize("kind", EVERY)
def test_what_fails_once_or_twice_at_every_point_leaves_no_trace(
    kind, proxy, folder, local, llama, rows, say
):
    """All points of a command fail in the same run, each for itself, every other one twice."""
    cloud = Commands(folder, llama, rows)
    some = slice(None, None, 4) if kind.startswith("timeout") else slice(None)
    for step, points in (("collect", COLLECT[some]), ("reduce", REDUCE[some])):
        if step == "reduce":
            assert say(cloud.collect("forget"))[0] == 0
        proxy.requests.clear()
        proxy.faults[:] = [fault(point, kind, 1 + n % 2) for n, point in enumerate(points)]
        done, told = say(cloud.collect("retain") if step == "collect" else cloud.reduce())
        spent = Counter(id(request.fault) for request in proxy.requests if request.fault)
        assert done == 0, told
        assert [spent[id(f)] for f in proxy.faults] == [f.times for f in proxy.faults]
        proxy.faults.clear()
    for name in ("retain", "statistics"):
        assert objects(cloud.url(name)) == tree_bytes(local.url(name))


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        *((point, "503") for point in COLLECT),
        *((COLLECT[-2], kind) for kind in ("500", "reset", "close")),
        *((COLLECT[8], kind) for kind in ("reset-after", "500-after")),
        (COLLECT[1], "timeout"),
        (COLLECT[1], "close-after"),
    ],
    ids=point_id,
)
def test_what_fails_for_ever_is_named_and_the_same_command_completes_it(
    point, kind, proxy, folder, local, llama, rows, say
):
    cloud, whole = Commands(folder, llama, rows), tree_bytes(local.url("retain"))
    proxy.faults[:] = [fault(point, kind, EVER)]
    start = time.monotonic()
    done, told = say(cloud.collect("retain"))
    assert time.monotonic() - start < PATIENCE
    proxy.faults.clear()
    assert done == 1
    assert re.search(rf"(?m)^kvwstream: s3://.*{point.at_last}", told), told
    assert wrongly_sealed(cloud.url("retain"), whole) == []
    assert say(cloud.collect("retain"))[0] == 0
    assert objects(cloud.url("retain")) == whole


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind.endswith("-after")])
def test_a_seal_whose_answer_is_always_lost_is_a_seal(kind, proxy, folder, local, llama, rows, say):
    cloud = Commands(folder, llama, rows)
    proxy.faults[:] = [fault(COLLECT[-2], kind, EVER)]
    assert say(cloud.collect("retain"))[0] == 0
    proxy.faults.clear()
    assert objects(cloud.url("retain")) == tree_bytes(local.url("retain"))


@pytest.mark.parametrize("point", REDUCE, ids=point_id)
def test_a_reduce_that_fails_is_named_and_the_same_command_completes_it(
    point, proxy, folder, local, llama, rows, say
):
    cloud = Commands(folder, llama, rows)
    for name in ("retain", "forget"):
        for key, content in tree_bytes(local.url(name)).items():
            Location(cloud.url(name)).write(key, content)
    proxy.faults[:] = [fault(point, "503", EVER)]
    done, told = say(cloud.reduce())
    proxy.faults.clear()
    assert done == 1
    assert re.search(rf"(?m)^kvwstream: s3://.*{point.at_last}", told), told
    code, told = say(cloud("audit", cloud.url("statistics")))
    assert code == 1, "never statistics that are not whole"
    assert say(cloud.reduce())[0] == 0
    assert objects(cloud.url("statistics")) == tree_bytes(local.url("statistics"))


@pytest.mark.parametrize("kind", ["reset-after", "timeout-after", "close-after", "503-after"])
def test_a_withdrawal_whose_answer_is_lost_is_no_other_command_s(
    kind, proxy, folder, llama, rows, say
):
    cloud = Commands(folder, llama, rows)
    say(cloud.collect("forget"))
    proxy.faults[:] = [Fault(on("PUT", r"revisions/000001/zarr\.json"), kind)]
    done, told = say(cloud("forget-example", cloud.url("forget"), "sky-pink"))
    assert (done, "1 examples withdrawn, 1 in all (revision 1)" in told) == (0, True), told


def test_what_stands_in_the_way_of_statistics_is_left_alone(folder, local, llama, rows, say):
    """Names that `reduce` would not write belong to somebody; those of a killed one are cleared."""
    cloud = Commands(folder, llama, rows)
    for name in ("retain", "forget"):
        for key, content in tree_bytes(local.url(name)).items():
            Location(cloud.url(name)).write(key, content)
    place = Location(cloud.url("statistics"))
    place.write("accessor/c/9/0", b"of a longer reduce that was killed")
    place.write("examples/thesis.txt", b"years of work")
    done, told = say(cloud.reduce())
    assert (done, "statistics.zarr: exists already" in told) == (1, True)
    assert objects(place.url)["examples/thesis.txt"] == b"years of work"
    place.delete(["examples/thesis.txt"])
    assert say(cloud.reduce())[0] == 0
    assert objects(place.url) == tree_bytes(local.url("statistics"))


def test_requests_do_not_grow_beyond_what_parts_need(proxy, folder, llama, rows, say):
    """Objects are put once, claims are conditional, and lists do not depend on the parts."""
    lists = {}
    for size, num_parts in ((4, 3), (1, 12)):
        cloud, counted = Commands(f"{folder}/{num_parts}", llama, rows), []
        retain, statistics = cloud.url("retain"), cloud.url("statistics")
        for step in (
            lambda: cloud.collect("retain", size),  # noqa: B023
            lambda: cloud.collect("retain", size),  # noqa: B023
            lambda: cloud("status", retain),  # noqa: B023
            lambda: cloud("reduce", "--retain", retain, statistics),  # noqa: B023
            lambda: cloud("audit", retain, statistics),  # noqa: B023
            lambda: cloud("forget-example", retain, "sea-blue"),  # noqa: B023
            lambda: (open_store(retain).load(), 0)[1:],  # noqa: B023
            lambda: (open_statistics(statistics).load(), 0)[1:],  # noqa: B023
        ):
            proxy.requests.clear()
            assert say(step())[0] == 0
            counted.append(proxy.counts["LIST"])
            puts = [r for r in proxy.requests if r.operation == "PUT" and ".running" not in r.path]
            assert max(Counter(r.path for r in puts).values(), default=1) == 1
            if len(counted) == 1:
                arrays = [r.path for r in puts if "/c/" in r.path and "/parts/" in r.path]
                conditional = {r.path for r in puts if r.headers.get("If-None-Match") == "*"}
        store = retain.removeprefix(f"s3://{BUCKET}/")
        parts = [f"{store}/parts/{number:06d}" for number in range(num_parts)]
        assert sorted(arrays) == sorted(
            f"{part}/{array}/c/0/0" for part in parts for array in ("abs_sum", "token_count")
        )
        groups = (store, f"{store}/environment", *parts)
        assert conditional == {f"{group}/zarr.json" for group in groups}
        lists[num_parts] = counted
    assert lists[3] == lists[12]
    assert max(lists[3]) <= 8


def test_reduce_and_audit_read_each_byte_once(proxy, folder, local, llama, rows, say):
    """Every object of the parts is asked for once, and every chunk of whatever is read.

    But for the seals: which stores the statistics came from, an audit knows from these first.
    """
    cloud = Commands(folder, llama, rows)
    for name in ("retain", "forget"):
        for key, content in tree_bytes(local.url(name)).items():
            Location(cloud.url(name)).write(key, content)
    names = [cloud.url(name) for name in ("retain", "forget", "statistics")]
    for times, step in ((1, cloud.reduce), (2, lambda: cloud("audit", *names))):
        proxy.requests.clear()
        assert say(step())[0] == 0
        read = Counter(r.path for r in proxy.requests if r.operation == "GET")
        parts = {path for path in read if "/parts/0" in path}
        chunks = {path for path in read if "/c/" in path and "/examples/" not in path}
        seals = {path for path in parts if re.search(r"parts/\d+/zarr\.json$", path)}
        assert len(seals) == 4
        assert len(parts & chunks) == 2 * len(seals)
        assert {path: read[path] for path in parts | chunks if read[path] != 1} == {
            path: times for path in seals if times > 1
        }


def test_without_a_conditional_put_the_first_still_wins(
    folder, local, llama, rows, say, monkeypatch
):
    """The same where the storage says so, and where its client does."""
    put = obstore.put

    def refuse(*words, mode="overwrite", **options):
        if mode == "create":
            raise NotImplementedError("conditional put")
        return put(*words, mode=mode, **options)

    for number, say_no in enumerate(
        (
            lambda: monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled"),
            lambda: monkeypatch.setattr(obstore, "put", refuse),
        )
    ):
        say_no()
        location._bucket.cache_clear()
        cloud = Commands(f"{folder}/{number}", llama, rows)
        assert say(cloud.collect("retain"))[0] == 0
        assert objects(cloud.url("retain")) == tree_bytes(local.url("retain"))
        place = Location(f"{folder}/{number}")
        assert place.create("name", b"first")
        assert place.create("name", b"first")
        assert not place.create("name", b"second")
        assert place.read("name") == b"first"
    monkeypatch.undo()
    location._bucket.cache_clear()


def test_many_objects_are_removed_by_one_request(proxy, folder):
    place = Location(folder)
    names = [f"{number}.json" for number in range(5)]
    for name in names[1:]:
        place.write(name, b"")
    proxy.requests.clear()
    proxy.faults[:] = [Fault(on("POST"), "reset-after")]
    place.delete(names)
    assert proxy.counts == {"POST": 2}
    assert place.listing() == {}
    proxy.requests.clear()
    place.delete([])
    assert not proxy.requests


def test_a_storage_without_bulk_deletion_removes_them_all(folder, monkeypatch):
    delete = obstore.delete

    def one_by_one(store, paths):
        for path in [paths] if isinstance(paths, str) else paths:
            obstore.head(store, path)  # FileNotFoundError as Google's answer
            delete(store, path)

    place = Location(folder)
    for name in ("b", "d"):
        place.write(name, b"")
    monkeypatch.setattr(obstore, "delete", one_by_one)
    place.delete(["a", "b", "c", "d"])
    assert place.listing() == {}


def test_a_large_object_goes_up_in_pieces_and_survives_faults(proxy, folder):
    """obstore sends what exceeds 5 MiB as a multipart upload; it appears whole or not at all."""
    place, content = Location(folder), b"coefficients" * (1 << 20)
    proxy.faults[:] = [
        Fault(on("POST"), "500"),
        *(Fault(on("PUT"), kind) for kind in (*CODES, "reset", "close-after")),
    ]
    place.write("large", content)
    assert proxy.counts["POST"] == 3
    assert place.read("large") == content


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket", "s3://bucket: names a whole bucket; name a folder within it"),
        ("s3://bucket/", "s3://bucket/: names a whole bucket"),
        ("ftp://host/store.zarr", "ftp:// is not supported; a local path, or one of s3://, gs://"),
        ("http://host/store.zarr", "http:// is not supported"),
        ("file:///tmp/store.zarr", "file:// is not supported"),
    ],
)
def test_urls_that_no_storage_has_are_options_to_mend(url, message, local, tmp_path, say):
    with pytest.raises(OptionError, match=re.escape(message)):
        Location(url)
    retain, data = local.url("retain"), local.rows["retain"]
    for words in (
        ("collect", local.model, data, url),
        ("status", url),
        ("forget-example", url, "x"),
        ("reduce", "--retain", url, tmp_path / "r.zarr"),
        ("reduce", "--retain", retain, url),
        ("audit", url),
    ):
        done, told = say(local(*words))
        assert done == 2, words
        assert message in told
