"""What is stored of a call's attempts, and in which order it may come."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery, states

from ratelimit_worker.app import make_app
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.plan import HEADER


class Request(SimpleNamespace):
    """Of a delivery, as much as a backend looks at."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def request(**more: Any) -> Request:
    """One of a call."""
    named = dict.fromkeys(("args", "kwargs", "errbacks", "group", "parent_id", "replaced_task_nesting"))
    return Request(id="a", task="t", children=[], hostname="h", retries=0, delivery_info={}, **{**named, **more})


@pytest.fixture
def app(redis_client: redis.Redis, redis_server: str) -> Celery:
    return make_app(read_settings({}), f"unix://{redis_server}")


OF_A_CALL = {HEADER: {"lane": "l"}}


def test_the_end_of_a_call_stays(app: Celery) -> None:
    """An attempt that says late that the call is sent again says it to nobody: its next attempt was the last."""
    backend = app.backend
    backend.store_result("a", ValueError("1"), states.RETRY, request=request(**OF_A_CALL))
    assert app.AsyncResult("a").state == states.RETRY
    backend.store_result("a", ValueError("2"), states.FAILURE, request=request(**OF_A_CALL))
    backend.store_result("a", ValueError("1"), states.RETRY, request=request(**OF_A_CALL))
    result = app.AsyncResult("a")
    assert result.state == states.FAILURE
    with pytest.raises(ValueError, match="2"):
        result.get(timeout=120)
    backend.client.delete(backend.get_key_for_task("a"))


def test_it_stays_also_when_it_comes_in_between(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the writing."""
    backend = app.backend
    came, decode = threading.Event(), backend.decode

    def decode_late(stored: Any) -> Any:
        if not came.is_set():
            came.set()
            backend.store_result("a", ValueError("2"), states.FAILURE, request=request(**OF_A_CALL))
        return decode(stored)

    backend.store_result("a", ValueError("0"), states.RETRY, request=request(**OF_A_CALL))
    monkeypatch.setattr(backend, "decode", decode_late)
    backend.store_result("a", ValueError("1"), states.RETRY, request=request(**OF_A_CALL))
    assert came.is_set()
    assert decode(backend.client.get(backend.get_key_for_task("a")))["status"] == states.FAILURE
    backend.client.delete(backend.get_key_for_task("a"))


def test_other_tasks_are_celerys(app: Celery) -> None:
    """A task that is no call keeps what Celery makes of it: a retry after a failure is written."""
    backend = app.backend
    backend.store_result("b", ValueError("1"), states.FAILURE, request=request())
    backend.store_result("b", ValueError("2"), states.RETRY, request=request())
    assert app.AsyncResult("b").state == states.RETRY
    backend.client.delete(backend.get_key_for_task("b"))
