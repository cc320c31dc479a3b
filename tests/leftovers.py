"""What does a test leave behind? Keys and fields of hashes that the product's tables do not know, and processes.

Looked at after every test: `check` by whoever ends or flushes a server, `Processes` by tests/conftest.py.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from ratelimit_worker.contracts.lane import FIELDS
from ratelimit_worker.stores import keys

MARK = "RLW_TEST_RUN"  #: environment variable that every process of this test run inherits
MOST = 5_000  #: keys that are looked at; a test that fills a server has many that are alike

#: Celery's and kombu's own, and the tests'; queues are lists, which anybody names.
OTHERS = re.compile(
    r"""_kombu\.binding.+ | unacked(_index|_mutex)? .* | celery-task-meta-.+ | celery-taskset-meta-.+ | chord-.+
      | .+\.reply\..+\.pidbox | test:.+""",
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
    for names, kind, _, bound in _rows(4):
        for name in re.findall(r"`(.+?)`", names):
            found.append(Row(_pattern(name), kind.split()[0].lower(), bound.startswith("TTL:")))
    return tuple(sorted(found, key=lambda row: row.name.pattern.count(".*")))


@cache
def fields() -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
    """Of each hash in the second table: its name, and what its fields may be; the most exact name first."""
    found: dict[str, list[str]] = {}
    for name, cell in _rows(2):
        named = [field.stored for field in FIELDS] if "`FIELDS`" in cell else re.findall(r"`([^`]+)`", cell)
        found.setdefault(name.strip("`"), []).extend(_pattern(field).pattern for field in named)
    patterns = ((_pattern(name), re.compile("|".join(named), re.DOTALL)) for name, named in found.items())
    return tuple(sorted(patterns, key=lambda row: row[0].pattern.count(".*")))


def _rows(cells: int) -> Iterator[list[str]]:
    for line in (keys.__doc__ or "").splitlines():
        row = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(row) == cells:
            yield row


def _pattern(name: str) -> re.Pattern[str]:
    """Capital letters stand for any text, `#` for one of the four dimensions."""
    exact = ".*".join(re.escape(part) for part in re.split(r"[A-Z]+", name))
    return re.compile(exact.replace(re.escape("#"), "[1-4]"), re.DOTALL)


def check(client: redis.Redis, namespace: str = "") -> None:
    """Fail where the server holds a key that the table does not know, is of another type, or lacks its TTL, or a hash
    has a field that the second table does not know.

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
    hashes = [name for name, kind in zip(found, answers[::2], strict=True) if kind == b"hash"]
    with client.pipeline(transaction=False) as pipe:
        for name in hashes:
            pipe.hkeys(name)
        for name, has in zip(hashes, pipe.execute(), strict=True):
            if unknown := _unknown(name.decode("utf-8", "replace").removeprefix(namespace), has):
                lines.append(f"{name!r}: fields not in the table of stores/keys.py: {unknown}")
    return sorted(lines)


def _unknown(name: str, has: Iterable[bytes]) -> list[str]:
    """Fields of a hash that no table knows; of what is not ours, none."""
    if not name.startswith(keys.NAMESPACE):
        return []
    known = next((allowed for pattern, allowed in fields() if pattern.fullmatch(name)), None)
    named = [raw.decode("utf-8", "replace") for raw in has]
    return [field for field in named if known is None or not known.fullmatch(field)]


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
        self.started()
        return self.now()

    def started(self) -> None:
        """Look the next time: a process was started that the audit hook does not hear of."""
        self._started = True

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
