"""A real S3 server in its own process, and a proxy before it that counts requests and fails them.

The fixture `s3` is the server. A test of faults puts a `FaultyProxy` before it and gives the
proxy's `environment` to whoever shall meet the faults.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

HOST = "127.0.0.1"
BUCKET = "kvwstream"
SERVER_SECONDS = 30
"""What the server may take to start, or to answer the proxy."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST, not FIN."""
CODES = {"500": "InternalError", "503": "SlowDown"}
FAILURES = (*CODES, "timeout", "reset", "close")
"""An answer of 5xx, none until the client gives up, RST, or FIN instead of an answer."""


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket, which the tests share."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What leads a process here, and nowhere else, and lets it give up soon."""
        return {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_TIMEOUT": "2s",
            "NO_PROXY": HOST,
        }

    def url(self, name: str) -> str:
        """A folder in the bucket; each test needs a name of its own."""
        return f"s3://{BUCKET}/{name}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run moto's server; `RuntimeError` with what it printed if it does not come up."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + SERVER_SECONDS
            while not _made_bucket(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)}:\n{log.read().decode()}")
                time.sleep(0.05)
            yield S3Server(f"http://{HOST}:{port}")
        finally:
            process.kill()


def _made_bucket(port: int) -> bool:
    with closing(HTTPConnection(HOST, port, timeout=SERVER_SECONDS)) as connection:
        try:
            connection.request("PUT", f"/{BUCKET}")
        except ConnectionRefusedError:
            return False
        return connection.getresponse().status == 200


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@dataclass
class Request:
    """One request as the proxy saw it."""

    method: str
    path: str
    """The object's key, decoded; empty where the bucket itself is asked."""
    query: dict[str, str]
    headers: Message
    sent: int
    """Bytes of the body."""
    received: int = 0
    """Bytes of the answer's body."""
    status: int | None = None
    """None where no answer was given."""
    fault: Fault | None = None

    @property
    def operation(self) -> str:
        """The method, or LIST: the one GET that names no object."""
        return "LIST" if self.method == "GET" and not self.path else self.method


@dataclass(frozen=True)
class Fault:
    """Fails the first `times` requests that match, as one of `FAILURES`.

    With `-after` behind its name the server has executed the request; only its answer is lost.
    """

    match: Callable[[Request], bool]
    kind: str
    times: int = 1

    def __post_init__(self) -> None:
        if self.kind.removesuffix("-after") not in FAILURES:
            raise ValueError(f"kind of a fault: expected one of {FAILURES}, got {self.kind!r}")


def on(operation: str, path: str = "") -> Callable[[Request], bool]:
    """Match an operation (GET, PUT, LIST, ...) on keys in which a regular expression is found."""
    return lambda request: request.operation == operation and bool(re.search(path, request.path))


@dataclass
class FaultyProxy:
    """A reverse proxy in this process; `faults` may be changed at any time."""

    server: S3Server
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> FaultyProxy:
        self.recording, self.conditional_put = threading.Lock(), threading.Lock()
        self._listener = _Listener(self)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The server's, but through the proxy."""
        return S3Server(f"http://{HOST}:{self._listener.server_port}").environment

    @property
    def counts(self) -> Counter[str]:
        """Number of requests by operation, failed ones too."""
        return Counter(request.operation for request in self.requests)

    def record(self, request: Request) -> None:
        """Note a request, and the fault that awaits it."""
        with self.recording:
            for fault in self.faults:
                spent = sum(earlier.fault is fault for earlier in self.requests)
                if spent < fault.times and fault.match(request):
                    request.fault = fault
                    break
            self.requests.append(request)


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__((HOST, 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or that gave up, is no error of the proxy."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def _serve(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(url.path).removeprefix(f"/{BUCKET}").strip("/"),
            dict(parse_qsl(url.query, keep_blank_values=True)),
            self.headers,
            len(body),
        )
        self.server.proxy.record(request)
        failure, _, after = request.fault.kind.partition("-") if request.fault else ("", "", "")
        if after or not failure:
            # moto looks first and writes then; S3 promises one step.
            conditional = "If-None-Match" in self.headers
            with self.server.proxy.conditional_put if conditional else nullcontext():
                answer = self._forward(body)
        if failure in CODES:
            xml = f"<Error><Code>{CODES[failure]}</Code></Error>"
            answer = (int(failure), [], xml.encode())
        if failure and failure not in CODES:
            self._break_off(failure)
        else:
            self._answer(request, *answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self._read(size)
            self._read(len(b"\r\n"))
        while self.rfile.readline().strip():
            continue
        return body

    def _read(self, size: int) -> bytes:
        """What a client sent before it was killed must never reach the server as a whole body."""
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionAbortedError
        return content

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        address = urlsplit(self.server.proxy.server.endpoint).netloc
        headers = dict(_end_to_end(self.headers.items()))
        with closing(HTTPConnection(address, timeout=SERVER_SECONDS)) as connection:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def _break_off(self, failure: str) -> None:
        self.close_connection = True
        if failure == "timeout":
            self.rfile.read(1)
        elif failure == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            socket.close(self.connection.detach())

    def _answer(
        self, request: Request, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        request.status, request.received = status, len(body)
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        length = dict(headers).get("Content-Length", "0") if is_head else str(len(body))
        for name, value in [*_end_to_end(headers), ("Content-Length", length)]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if is_head else body)

    def log_message(self, *_: object) -> None:
        """The proxy keeps its own record."""


def _end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that do not belong to one connection only."""
    own = {"connection", "content-length", "keep-alive", "transfer-encoding"}
    return [(name, value) for name, value in headers if name.lower() not in own]
