"""A team's own app, served by real workers: its calls are paced, its other tasks are as they were."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from ratelimit_worker.stores import keys
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
        assert module.ask.delay("acme: hello").get(timeout=60) == ["acme: hello", "acme:"]
        assert module.app.tasks["guest.shared"].delay("beta: hello").get(timeout=60) == ["beta: hello", "beta:"]
        assert module.audited.delay("gamma").get(timeout=60) == "gamma"
        for name in ("before", "call"):
            assert (made.folder / name).read_text() == "['gamma']\n", name
        assert module.plain.delay({1, 2}).get(timeout=60) == [{1, 2}, "{1, 2"]
        assert int(made.valkey.client.hget(keys.lane("guest"), "ok") or 0) >= 0
        limit = partial(module.app.control.rate_limit, reply=True, timeout=60, limit=1)
        assert "its lane paces them" in str(limit(module.ask.name, "1/m"))
        assert "set successfully" in str(limit(module.plain.name, "100/s"))
        log = made.workers[0].log()
        assert "worker_prefetch_multiplier=4" in log
        assert "message.set_aside" not in log


def test_ordinary_tasks_are_acknowledged_as_their_app_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early: what runs longer than the visibility timeout runs once."""
    with guest(monkeypatch) as (made, module):
        running = module.plain.delay({1}, sleep_s=2.0)
        wait_for((made.folder / "plain").exists, what="it runs")
        assert made.valkey.client.hlen("unacked") == 0
        assert running.get(timeout=60)


def test_a_call_by_name_from_a_stock_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    with guest(monkeypatch) as (made, module):
        stock = Celery("stock", broker=made.valkey.url, backend=made.valkey.url, set_as_current=False)
        sent: Any = stock.send_task(module.ask.name, ("delta: hi",), queue="guest", serializer="json")
        assert module.app.AsyncResult(sent.id).get(timeout=60) == ["delta: hi", "delta"]
