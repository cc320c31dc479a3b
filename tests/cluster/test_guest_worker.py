"""A team's own app, served by real workers: its calls are paced, its other tasks are as they were."""

from __future__ import annotations

import base64
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from ratelimit_worker.stores import keys
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]


@contextmanager
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Fleet, ModuleType]]:
    """A worker of tests/guest_app.py, and its app here; its broker stands in its own configuration alone."""
    with fleet() as made:
        monkeypatch.delenv("MAISD_REDIS_URL", raising=False)
        env = {name: value for name, value in made.env.items() if name != "MAISD_REDIS_URL"}
        env["GUEST_BROKER"] = made.valkey.url
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        worker = Worker(
            "guest",
            made.folder,
            {**env, "MAISD_REDIS_URL": "", "C_FORCE_ROOT": "1"},
            ("-P", "threads", "-c", "4"),
            "tests.guest_app",
        )
        made.workers.append(worker)
        worker.wait_ready()
        sys.modules.pop("tests.guest_app", None)
        yield made, importlib.import_module("tests.guest_app")


def test_a_team_s_own_app(monkeypatch: pytest.MonkeyPatch) -> None:
    with guest(monkeypatch) as (made, module):
        assert module.ask.delay("acme: hello").get(timeout=120) == ["acme: hello", "acme:"]
        assert module.app.tasks["guest.shared"].delay("beta: hello").get(timeout=120) == ["beta: hello", "beta:"]
        assert module.audited.delay("gamma").get(timeout=120) == "gamma"
        for name in ("before", "call"):
            assert (made.folder / name).read_text() == "['gamma']\n", name
        assert module.plain.delay({1, 2}).get(timeout=120) == [{1, 2}, "{1, 2"]
        assert int(made.valkey.client.hget(keys.lane("guest"), "ok") or 0) >= 0
        limit = partial(module.app.control.rate_limit, reply=True, timeout=60, limit=1)
        assert "its lane paces them" in str(limit(module.ask.name, "1/m"))
        assert "set successfully" in str(limit(module.plain.name, "100/s"))
        log = made.workers[0].log()
        assert "worker_prefetch_multiplier=4" in log
        assert "message.set_aside" not in log


def test_a_pickled_canvas_holds_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in JSON: the body of an ordinary task whose links are calls lies apart, and goes with its message."""
    with guest(monkeypatch) as (made, module):
        sent = module.plain.si({1}) | module.ask.si("canary prompt")
        assert sent.delay().get(timeout=120) == ["canary prompt", "canar"]
        sent.apply_async(queue="nobody")
        (raw,) = made.valkey.client.lrange("nobody", 0, -1)
        message = json.loads(raw)
        assert message["content-type"] == "application/x-python-serialize"
        assert b"canary" not in raw
        assert b"canary" not in base64.b64decode(message["body"])
        with module.app.connection_for_write() as connection:
            connection.default_channel.queue_purge("nobody")
        assert list(made.valkey.client.scan_iter("rlw:payload:canvas-*")) == []


def test_ordinary_tasks_are_acknowledged_as_their_app_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early: what runs longer than the visibility timeout runs once."""
    with guest(monkeypatch) as (made, module):
        enough = made.folder / "enough"
        running = module.plain.delay({1}, until=enough)
        wait_for((made.folder / "plain").exists, what="it runs")
        wait_for(lambda: not made.valkey.client.hlen("unacked"), what="it is acknowledged")
        assert not running.ready()
        enough.touch()
        assert running.get(timeout=120)


def test_a_call_by_name_from_a_stock_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    with guest(monkeypatch) as (made, module):
        stock = Celery("stock", broker=made.valkey.url, backend=made.valkey.url, set_as_current=False)
        sent: Any = stock.send_task(module.ask.name, ("delta: hi",), queue="guest", serializer="json")
        assert module.app.AsyncResult(sent.id).get(timeout=120) == ["delta: hi", "delta"]


#: A test as Celery's documentation has it, of a team that has installed lanes.
FIXTURES = """
import os
import pytest
from celery import chord, group
from ratelimit_worker import install, llm_task

@pytest.fixture(scope="session")
def celery_config():
    return {"broker_url": os.environ["BROKER"], "result_backend": os.environ["BACKEND"]}

@pytest.fixture
def tasks(celery_app):
    install(celery_app)

    @llm_task(app=celery_app, name="fixtures.ask", lane="free", shared=False, cache=False)
    def ask(n):
        return 2 * n

    @celery_app.task(name="fixtures.plain", shared=False)
    def plain(n):
        return n + 1

    @llm_task(app=celery_app, name="fixtures.total", lane="free", shared=False, cache=False)
    def total(numbers):
        return 2 * sum(numbers)

    return ask, plain, total

def test_both(tasks, celery_worker):
    ask, plain, total = tasks
    assert ask.delay(4).get(timeout=120) == 8
    assert plain.delay(4).get(timeout=120) == 5
    assert (plain.s(1) | ask.s() | plain.s() | ask.s()).delay().get(timeout=120) == 10
    assert group(ask.s(n) for n in range(3)).delay().get(timeout=120) == [0, 2, 4]
    assert chord([ask.s(1), plain.s(1)], total.s()).delay().get(timeout=120) == 8
"""


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_celery_s_own_fixtures(broker: str, tmp_path: Path) -> None:
    """`celery_app` and `celery_worker`: a worker in a thread of the test's own process."""
    with fleet() as made:
        env = {name: value for name, value in os.environ.items() if name != "MAISD_REDIS_URL"}
        redis = made.valkey.url
        env |= (
            {"BROKER": "memory://", "BACKEND": "cache+memory://"}
            if broker == "memory"
            else {"BROKER": redis, "BACKEND": redis}
        )
        (tmp_path / "test_fixtures.py").write_text(FIXTURES)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "celery.contrib.pytest",
            "-p",
            "no:cacheprovider",
            str(tmp_path),
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout
