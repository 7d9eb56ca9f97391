"""Faults of a local disk and of a process, as data: the same bytes in the end, or a named error.

Each crash happens in a process of its own, in which one function of `kvwstream.stores` fails; all
are forked from one that has imported torch, which takes longer than all the rest. What `status` and
`audit` say of the wreck must be true, and the same command must complete it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvwstream.errors import DamageError
from kvwstream.pipelines.audit import audit
from kvwstream.pipelines.status import status
from tests.conftest import tree_bytes
from tests.test_cli import run

pytestmark = pytest.mark.long

# For each line on standard input (a crash, the command's words, a file for what it says), a child
# fails the calls whose path matches, at most `times` of them, while it runs the command line.
NURSERY = """
import errno, json, os, re, signal, sys
from pathlib import Path
import obstore
import kvwstream.commands.collect, kvwstream.pipelines.collect
from kvwstream.cli import main
from kvwstream.stores import location

for line in sys.stdin:
    crash, words, log = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(said, 1)
os.dup2(said, 2)
sys.argv = ["kvwstream", *words]
fsync, put = location.fsync, obstore.put

def due(path):
    crash["times"] -= bool(found := re.search(crash["path"], str(path)))
    return found and crash["times"] >= 0

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def fail():
    code = getattr(errno, crash["what"])
    raise OSError(code, os.strerror(code))

def broken_put(store, name, data, **options):
    path = Path(store.prefix, name)
    if not due(path):
        return put(store, name, data, **options)
    what = crash["what"]
    if what in ("staged", "torn"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + "#1" * (what == "staged")).write_bytes(data[: len(data) // 2])
    elif what == "after":
        put(store, name, data, **options)
    elif what != "before":
        fail()
    kill()

def broken_fsync(path):
    if due(path):
        kill() if crash["what"] == "before" else fail()
    fsync(path)

if crash["where"] == "put":
    obstore.put = broken_put
else:
    location.fsync = broken_fsync
main()
"""


class Crash(NamedTuple):
    """What fails: calls of `where` (put or fsync) on a path, as an error or as a sudden death."""

    where: str
    path: str
    what: str
    """An errno; or a kill `before` the call, `after` it, or inside: the file that is `staged` for
    the name is cut, or, as a power cut may leave it, the object itself is `torn`."""
    times: int = 1
    ends: int = -signal.SIGKILL
    says: str = ""


SEAL = r"parts/000001/zarr\.json$"
SUMS = r"parts/000001/abs_sum/c/0/0$"
COUNTS = r"parts/000001/token_count/c/0/0$"
EVER = 10**6

CRASHES = [
    # killed
    Crash("put", r"s\.zarr/zarr\.json$", "before"),
    Crash("put", r"s\.zarr/zarr\.json$", "staged"),
    Crash("put", r"s\.zarr/zarr\.json$", "after"),
    Crash("put", r"sites/layer/c/0$", "torn"),
    Crash("put", r"examples/zarr\.json$", "before"),
    Crash("put", r"parts/zarr\.json$", "before"),
    Crash("put", r"environment/zarr\.json$", "after"),
    Crash("put", r"\.running/", "staged"),
    Crash("put", r"parts/000000/abs_sum/c/0/0$", "before"),
    *(Crash("put", SUMS, what) for what in ("staged", "torn", "after")),
    *(Crash("put", COUNTS, what) for what in ("staged", "torn", "after")),
    *(Crash("put", SEAL, what) for what in ("before", "staged", "after")),
    Crash("put", r"parts/000003/zarr\.json$", "after"),
    Crash("fsync", SUMS, "before"),
    Crash("fsync", r"parts/000001$", "before"),
    Crash("fsync", SEAL, "before"),
    # failing once or twice: the part is tried again
    Crash("put", SUMS, "EIO", 1, 0),
    Crash("put", COUNTS, "ENOSPC", 2, 0),
    Crash("put", SEAL, "EIO", 2, 0),
    Crash("fsync", SUMS, "EIO", 1, 0),
    # failing for ever
    Crash("put", r"s\.zarr/zarr\.json$", "ENOSPC", EVER, 1, "zarr.json: .*No space left"),
    Crash("put", r"sites/width/c/0$", "EIO", EVER, 1, "sites/width/c/0: .*Input/output error"),
    Crash("put", SUMS, "EIO", EVER, 1, "part 1: .*/abs_sum/c/0/0: .*Input/output error"),
    Crash("put", COUNTS, "ENOSPC", EVER, 1, "part 1: .*/token_count/c/0/0: .*No space left"),
    Crash("put", SEAL, "EDQUOT", EVER, 1, "part 1: .*parts/000001/zarr.json: .*[Qq]uota"),
    Crash("fsync", SUMS, "EIO", EVER, 1, "part 1: .*parts/000001: .*Input/output error"),
    Crash("put", r"parts/", "EROFS", EVER, 1, "parts/zarr.json: .*Read-only file system"),
]


class Collect:
    """The command, in a child that crashes or in this process."""

    def __init__(self, store: Path, model: Path, data: Path, log: Path | None = None) -> None:
        self.store, self.log = store, log or store.with_name("log")
        options = ("--part-size", "3", "--threads", "1")
        self.words = ("collect", str(model), str(data), str(store), *options)

    def crash(self, nursery: subprocess.Popen[str], crash: Crash) -> tuple[int, str]:
        """Exit code, and what the command said."""
        assert nursery.stdin
        assert nursery.stdout
        line = json.dumps([crash._asdict(), self.words, str(self.log)])
        print(line, file=nursery.stdin, flush=True)
        return int(nursery.stdout.readline()), self.log.read_text()

    def complete(self) -> dict[str, bytes]:
        """Run it to its end; the bytes."""
        run(*self.words)
        return tree_bytes(self.store)


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process


@pytest.fixture(scope="module")
def whole(llama, data, tmp_path_factory) -> dict[str, bytes]:
    """An undisturbed run."""
    return Collect(tmp_path_factory.mktemp("whole") / "s.zarr", llama, data["retain"]).complete()


def check_wreck(store: Path, whole: dict[str, bytes]) -> None:
    """Sealed parts are whole, `status` counts them, and `audit` finds just what is missing."""
    found = tree_bytes(store) if store.exists() else {}
    sealed = {n for n in range(4) if f"parts/{n:06d}/zarr.json" in found}
    for name, content in whole.items():
        if any(name.startswith(f"parts/{number:06d}/") for number in sealed):
            assert found.get(name) == content, name
    if "zarr.json" not in found:
        with pytest.raises(DamageError, match=r"nothing is there|no Zarr group"):
            status(str(store))
        assert not audit([str(store)]).passed
        return
    assert status(str(store)).sealed == sealed
    findings = audit([str(store)]).findings
    missing = [f"parts/{n:06d}: missing seal; run" for n in range(4) if n not in sealed]
    if any(name not in found for name in whole if name.startswith(("sites/", "examples/"))):
        (finding,) = findings
        assert re.search(r"s\.zarr/(sites|examples)", finding)
        return
    if "parts/zarr.json" not in found:
        missing.insert(0, "parts/zarr.json: missing")
    found_of = [line.removeprefix(f"{store}/") for line in findings]
    assert all(line.startswith(m) for line, m in zip(found_of, sorted(missing), strict=True))


@pytest.mark.parametrize(
    "crash", CRASHES, ids=lambda c: f"{c.where} {c.path} {c.what} {c.times}".replace("\\", "")
)
def test_after_any_crash_the_same_command_gives_the_same_bytes(
    crash, nursery, whole, llama, data, tmp_path
):
    collect = Collect(tmp_path / "s.zarr", llama, data["retain"])
    ends, says = collect.crash(nursery, crash)
    assert ends == crash.ends, says
    if crash.says:
        assert re.search(rf"(?ms)^kvwstream: {collect.store}.*{crash.says}", says), says
    assert "Traceback" not in says.split("kvwstream: ")[-1]
    check_wreck(collect.store, whole)
    assert collect.complete() == whole
    assert audit([str(collect.store)]).findings == []


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, of 200 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "kvwstream-test", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only who may mount a file system can fill one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [0, 8, 40, 100, 120, 140])
def test_a_disk_that_is_really_full(free, small_disk, nursery, whole, llama, data, tmp_path):
    """With `free` KB; once there is room, the same command completes it."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((200 - free) << 10))
    collect = Collect(small_disk / "s.zarr", llama, data["retain"], tmp_path / "log")
    ends, says = collect.crash(nursery, Crash("put", "nowhere", "EIO"))
    assert ends == 1
    assert re.search(rf"(?ms)^kvwstream: {small_disk}.*No space left on device", says), says
    check_wreck(collect.store, whole)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert collect.complete() == whole
