"""What if a producer that knows only Celery pushes calls past their lanes? They are paced; none stops a worker."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import redis

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Fleet, Worker]]:
    with fleet(MAISD_MAX_WAITING="2", MAISD_MAX_PAYLOAD_MB="1") as made:
        yield made, made.worker("pushed", "-P", "threads", "-c", "4", "-I", "tests.semantics_app")


@pytest.fixture
def tasks(running: tuple[Fleet, Worker]) -> ModuleType:
    running[0].agent()
    return importlib.reload(importlib.import_module("tests.semantics_app"))


def push(client: redis.Redis, call_id: str, args: str, **headers: Any) -> None:
    """A message as stock Celery writes it, straight into the queue; `args` is JSON, or nearly."""
    message = {
        "body": base64.b64encode(f"[{args}, {{}}, {{}}]".encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "tests.semantics_app.priced",
            "id": call_id,
            "retries": 0,
            "root_id": call_id,
            **headers,
        },
        "properties": {
            "correlation_id": call_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "fleet"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"d-{call_id}",
        },
    }
    client.lpush("fleet", json.dumps(message))


def test_what_cannot_be_a_call_is_set_aside(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """Bad input, a cost that cannot be told, odd headers, one id too often: a counter, and the worker goes on."""
    made, worker = running
    client = made.valkey.client
    services().lanes.set_points("pushed", {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})
    before = services().lanes.counters().get("malformed", 0)
    push(client, "nan", '[{"tokens": 1, "x": NaN}]')
    push(client, "large", '[{"tokens": 1, "x": "' + "x" * 1_100_000 + '"}]')
    push(client, "no-cost", "[7]")
    push(client, "arity", "[]")
    push(client, "eta", '[{"tokens": 1}]', eta="yesterday")
    push(client, "expires", '[{"tokens": 1}]', expires=["x"])
    push(client, "plan", '[{"tokens": 1}]', rlw={"lane": "pushed"})
    push(client, "plan-text", '[{"tokens": 1}]', rlw="x")
    for n in range(10):
        push(client, "same", f'[{{"tokens": {n + 1}}}]')
    for _ in range(10):
        push(client, "twice", '[{"tokens": 1}]')  # the same call
    wait_for(lambda: services().lanes.counters().get("malformed", 0) >= before + 9, what="all are set aside")
    assert services().lanes.counters()["malformed"] == before + 9
    wait_for(lambda: services().lanes.size("fleet") >= 10, what="all others are in their lane")
    assert services().lanes.size("fleet") == 10
    assert "Canary" not in worker.log()
    services().lanes.set_points("pushed", limit_fields(LaneLimits(unlimited=True)))
    assert tasks.doubled.delay(2).get(timeout=120) == 4
    assert worker.process.poll() is None
    assert worker.log().count("Connection to broker lost") == 0
    wait_for(lambda: services().lanes.size("fleet") == 0, what="what could run has run")


def test_a_full_lane_takes_what_is_there_already(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """A pushed call was accepted before anybody could refuse it: beyond MAISD_MAX_WAITING too it is kept, and run."""
    made, worker = running
    services().lanes.set_points("pushed", {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})
    ids = [f"full-{n}" for n in range(5)]
    for call_id in ids:
        push(made.valkey.client, call_id, '[{"tokens": 3}]')
    wait_for(lambda: all(services().lanes.record(call_id) for call_id in ids), what="all are in their lane")
    services().lanes.set_points("pushed", limit_fields(LaneLimits(unlimited=True)))
    for call_id in ids:
        assert tasks.app.AsyncResult(call_id).get(timeout=120) == {"tokens": 3}
    assert worker.process.poll() is None
