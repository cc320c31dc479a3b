"""What travels in a call's message, and what a worker takes for what does not?"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context

from ratelimit_worker.contracts.plan import HEADER, Plan
from ratelimit_worker.worker.transport import USUAL, entry

PLAN = Plan(lane="l", deadline_s=4e9, publication="0" * 32)


def sent(**options: Any) -> dict[str, Any]:
    """A message as Celery hands it to kombu, and as it is stored in the lane."""
    made = Celery("app", set_as_current=False).amqp.as_task_v2("id-1", "noop", (1,), {}, **options)
    body = json.dumps(made.body).encode()
    message = {
        "headers": made.headers,
        "properties": {**made.properties, "delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "q"}},
        "body": base64.b64encode(body).decode(),
        "content-type": "application/json",
    }
    stored: dict[str, Any] = json.loads(entry("q", message, PLAN).message)
    assert made.headers.keys() >= USUAL.keys()  # the publisher's own headers are as they were
    return stored


@pytest.mark.parametrize("name", USUAL)
def test_what_need_not_travel_is_what_celery_takes_for_it(name: str) -> None:
    """The request of a task has it all the same, in a worker of any version."""
    assert getattr(Context({}), name) == USUAL[name]


def test_headers_that_say_nothing_stay_at_home() -> None:
    """What is left says what the call is; kombu's own field for a broker that it is not goes too."""
    stored = sent()
    assert USUAL.keys().isdisjoint(stored["headers"])
    assert {"id", "task", "root_id", "argsrepr", "kwargsrepr", "ignore_result", HEADER} <= stored["headers"].keys()
    assert "delivery_mode" not in stored["properties"]


def test_headers_that_say_something_travel() -> None:
    """A retry, a member of a group, a call with a parent."""
    told = {"retries": 2, "parent_id": "p", "group_index": 0, "replaced_task_nesting": 1}
    headers = sent(group_id="g", **told)["headers"]
    assert {name: headers[name] for name in told} == told
    assert headers["group"] == "g"
