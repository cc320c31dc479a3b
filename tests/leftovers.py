"""What does a test leave behind? Keys that the product's table does not know, and processes.

Looked at after every test: `check` by whoever ends or flushes a server, `Processes` by tests/conftest.py.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from ratelimit_worker.stores import keys

MARK = "RLW_TEST_RUN"  #: environment variable that every process of this test run inherits
MOST = 5_000  #: keys that are looked at; a test that fills a server has many that are alike

#: Celery's and kombu's own, and the tests'; queues are lists, which anybody names.
OTHERS = re.compile(
    r"""_kombu\.binding.+ | unacked(_index|_mutex)? .* | celery-task-meta-.+ | celery-taskset-meta-.+ | chord-.+
      | .+\.reply\.celery\.pidbox | test:.+""",
    re.VERBOSE | re.DOTALL,
)


class Row(NamedTuple):
    """One row of the table in `stores/keys.py`."""

    name: re.Pattern[str]
    type: str  #: as the server says it
    ttl: bool  #: it has one at any time


@cache
def table() -> tuple[Row, ...]:
    """The rows, the one that names a key most exactly first."""
    found = []
    for line in (keys.__doc__ or "").splitlines():
        if not line.startswith("| `"):
            continue
        names, kind, _, bound = (cell.strip() for cell in line.strip("|").split(" | "))
        for name in re.findall(r"`(.+?)`", names):
            pattern = re.compile(re.sub(r"[A-Z]+", ".*", name), re.DOTALL)
            found.append(Row(pattern, kind.split()[0].lower(), bound.startswith("TTL:")))
    return tuple(sorted(found, key=lambda row: row.name.pattern.count(".*")))


def check(client: redis.Redis, namespace: str = "") -> None:
    """Fail where the server holds a key that the table does not know, is of another type, or lacks its TTL.

    Args:
        namespace: Only keys that begin so are looked at, without it.
    """
    if lines := of_server(client, namespace):
        pytest.fail("keys left behind:\n" + "\n".join(lines), pytrace=False)


def of_server(client: redis.Redis, namespace: str = "") -> list[str]:
    """A line for each such key."""
    found: list[bytes] = []
    for name in client.scan_iter(match=f"{namespace}*", count=1000):
        found.append(name)
        if len(found) == MOST:
            break
    with client.pipeline(transaction=False) as pipe:
        for name in found:
            pipe.type(name)
            pipe.ttl(name)
        answers: list[Any] = pipe.execute()
    lines = []
    for name, kind, ttl_s in zip(found, answers[::2], answers[1::2], strict=True):
        if ttl_s != -2 and (
            wrong := _judge(name.decode("utf-8", "replace").removeprefix(namespace), kind.decode(), ttl_s)
        ):
            lines.append(f"{name!r} ({kind.decode()}): {wrong}")
    return sorted(lines)


def _judge(name: str, kind: str, ttl_s: int) -> str:
    if not name.startswith(keys.NAMESPACE):
        ours = OTHERS.fullmatch(name) or kind == "list"
        return "" if ours else "nobody's"
    row = next((row for row in table() if row.name.fullmatch(name)), None)
    if row is None:
        return "not in the table of stores/keys.py"
    if row.type != kind:
        return f"the table says {row.type}"
    if row.ttl and ttl_s < 0:
        return "has no TTL"
    return ""


class Processes:
    """The processes that this one has started, and theirs, however they were orphaned."""

    def __init__(self) -> None:
        self._run = f"{os.getpid()}"
        self._started = True  #: whether a process may have been started since the last look
        self._known: frozenset[int] = frozenset()
        os.environ[MARK] = self._run
        sys.addaudithook(self._hear)

    def now(self) -> frozenset[int]:
        """Those that live. Without a look where none was started since the last."""
        if self._started:
            self._started = False
            self._known = frozenset(self._find())
        return self._known

    def again(self) -> frozenset[int]:
        """Those that live, looked at anew."""
        self._started = True
        return self.now()

    def end(self, pids: Iterable[int]) -> None:
        """Kill them, each by its id."""
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"}:
            self._started = True

    def _find(self) -> Iterable[int]:
        mark = f"{MARK}={self._run}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state == "Z" or int(folder.name) == os.getpid():  # a zombie has ended; nobody has asked how
                    continue
                if int(parent) == os.getpid() or mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)
            except OSError:  # it has ended, or is another user's
                continue


def describe(pid: int) -> str:
    """Its id and command line."""
    try:
        return f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
    except OSError:
        return str(pid)
