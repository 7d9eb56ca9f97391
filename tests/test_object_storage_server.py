"""The tests' S3 server is one, the proxy's faults are real, and what obstore makes of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import ObjectStore, from_url

from tests import object_storage
from tests.object_storage import BUCKET, FAILURES, Fault, FaultyProxy, on

s3 = object_storage.s3
AFTER = [f"{kind}-after" for kind in FAILURES]
NO_RETRIES: Any = {"max_retries": 0}
_numbers = count()


@pytest.fixture
def proxy(s3, monkeypatch, request) -> Iterator[FaultyProxy]:
    """Where this process finds S3; it waits long for an answer only where one is sure to come."""
    patience = "500ms" if "timeout" in request.node.name else "10s"
    with FaultyProxy(s3) as proxy:
        for name, value in (proxy.environment | {"AWS_TIMEOUT": patience}).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def url(s3) -> str:
    return s3.url(f"server-{next(_numbers)}/a folder")


def get(store: ObjectStore, name: str) -> bytes:
    return bytes(obstore.get(store, name).bytes())


def names(store: ObjectStore) -> list[str]:
    return sorted(item["path"] for page in obstore.list(store) for item in page)


def test_requests_pass_unchanged_and_are_counted(proxy, url):
    store = from_url(url)
    content = {"zarr.json": b"{}", "c/0/0": bytes(range(256)) * 40, "ü +%&?#": b"odd", "none": b""}
    for name, value in content.items():
        obstore.put(store, name, value)
    assert {name: get(store, name) for name in names(store)} == content
    assert bytes(obstore.get_range(store, "c/0/0", start=10, end=300)) == content["c/0/0"][10:300]
    assert obstore.head(store, "c/0/0")["size"] == 10240
    obstore.delete(store, ["none", "ü +%&?#"])
    assert names(store) == ["c/0/0", "zarr.json"]
    with pytest.raises(FileNotFoundError):
        get(store, "none")
    assert proxy.counts == {"PUT": 4, "GET": 6, "LIST": 2, "HEAD": 1, "POST": 1}
    put, part = proxy.requests[1], proxy.requests[9]
    folder = url.removeprefix(f"s3://{BUCKET}/")
    assert (put.path, put.sent, put.received, put.status) == (f"{folder}/c/0/0", 10240, 0, 200)
    assert (part.headers["Range"], part.sent, part.received) == ("bytes=10-299", 0, 290)
    assert proxy.requests[-1].status == 404


def test_large_objects_travel_in_parts_unless_they_are_created(proxy, url):
    store, large = from_url(url), bytes(6_000_000)
    obstore.put(store, "parts", large)
    obstore.put(store, "whole", large, mode="create")
    assert get(store, "parts") == get(store, "whole") == large
    assert [r.operation for r in proxy.requests if "parts" in r.path][:4] == [
        *("POST", "PUT", "PUT", "POST")
    ]
    assert [r.operation for r in proxy.requests if "whole" in r.path] == ["PUT", "GET"]


def test_create_is_a_conditional_put_that_one_of_many_wins(proxy, url):
    store = from_url(url)

    def create(value: int) -> bool:
        try:
            obstore.put(store, "seal", str(value).encode(), mode="create")
        except AlreadyExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(create, range(24)))
    assert won.count(True) == 1
    assert get(store, "seal") == str(won.index(True)).encode()
    assert {r.headers["If-None-Match"] for r in proxy.requests if r.operation == "PUT"} == {"*"}


@pytest.mark.parametrize("mode", ["overwrite", "create"])
@pytest.mark.parametrize("kind", [*FAILURES, *AFTER])
def test_a_fault_is_an_error_and_after_means_executed(kind, mode, proxy, url):
    proxy.faults.append(Fault(on("PUT"), kind))
    store = from_url(url, retry_config=NO_RETRIES)
    with pytest.raises(GenericError):
        obstore.put(store, "name", b"value", mode=mode)
    [request] = proxy.requests
    assert request.fault is proxy.faults[0]
    assert request.status == (int(kind[:3]) if kind[0] == "5" else None)
    assert names(store) == (["name"] if kind.endswith("-after") else [])


READS: dict[str, Callable[[ObjectStore], object]] = {
    "GET": lambda store: get(store, "name"),
    "LIST": names,
    "HEAD": lambda store: obstore.head(store, "name")["size"],
}


@pytest.mark.parametrize("operation", READS)
@pytest.mark.parametrize("kind", FAILURES)
def test_obstore_reads_again_whatever_fails(kind, operation, proxy, url):
    obstore.put(from_url(url), "name", b"value")
    proxy.faults.append(Fault(on(operation), kind))
    with pytest.raises(GenericError):
        READS[operation](from_url(url, retry_config=NO_RETRIES))
    expected = READS[operation](from_url(url))
    proxy.faults[:] = [Fault(on(operation), kind)]
    proxy.requests.clear()
    assert READS[operation](from_url(url)) == expected
    assert proxy.counts[operation] == 2


@pytest.mark.parametrize("kind", [*FAILURES, *AFTER])
def test_obstore_overwrites_again_whatever_fails(kind, proxy, url):
    proxy.faults.append(Fault(on("PUT"), kind))
    store = from_url(url)
    obstore.put(store, "name", b"value")
    assert get(store, "name") == b"value"
    assert proxy.counts["PUT"] == 2


@pytest.mark.parametrize("kind", [*FAILURES, *AFTER])
def test_obstore_may_take_its_own_created_object_for_another_s(kind, proxy, url):
    """It sends a create again after 5xx and FIN, executed or not, but not after RST or silence."""
    proxy.faults.append(Fault(on("PUT"), kind))
    store = from_url(url)
    again = not kind.startswith(("timeout", "reset"))
    if not again:
        with pytest.raises(GenericError):
            obstore.put(store, "name", b"value", mode="create")
    elif kind in AFTER:
        with pytest.raises(AlreadyExistsError):
            obstore.put(store, "name", b"value", mode="create")
    else:
        obstore.put(store, "name", b"value", mode="create")
    assert proxy.counts["PUT"] == (2 if again else 1)
    assert names(store) == (["name"] if again or kind in AFTER else [])


def test_a_fault_meets_only_what_it_names_and_only_so_often(proxy, url):
    proxy.faults.append(Fault(on("PUT", r"seal$"), "503", times=2))
    store = from_url(url)
    for name in ("other", "seal", "seal"):
        obstore.put(store, name, b"")
    assert [r.status for r in proxy.requests] == [200, 503, 503, 200, 200]


def test_an_unknown_kind_of_fault_is_refused():
    with pytest.raises(ValueError, match=r"expected one of .*, got '404'"):
        Fault(on("PUT"), "404")


def test_chunked_bodies_arrive_whole_on_one_connection(proxy):
    address = urlsplit(proxy.environment["AWS_ENDPOINT_URL"]).netloc
    content = {"chunked/1": [b"one ", b"two"], "chunked/2": [b"three"]}
    with closing(HTTPConnection(address, timeout=5)) as connection:
        for name, chunks in content.items():
            connection.request("PUT", f"/{BUCKET}/{name}", body=iter(chunks), encode_chunked=True)
            used = connection.sock
            response = connection.getresponse()
            assert (response.status, response.read(), connection.sock) == (200, b"", used)
    assert [r.sent for r in proxy.requests] == [7, 5]
    store = from_url(f"s3://{BUCKET}")
    assert {name: get(store, name) for name in content} == {
        name: b"".join(chunks) for name, chunks in content.items()
    }


def test_half_a_body_of_a_killed_client_is_no_object(proxy, capfd):
    address = urlsplit(proxy.environment["AWS_ENDPOINT_URL"])
    with socket.create_connection((address.hostname, address.port), timeout=5) as client:
        client.sendall(f"PUT /{BUCKET}/half HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf".encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    with pytest.raises(FileNotFoundError):
        get(from_url(f"s3://{BUCKET}"), "half")
    assert proxy.counts == {"GET": 1}
    assert capfd.readouterr().err == ""
