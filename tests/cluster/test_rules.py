"""Rules of tasks for what they raise, on a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.errors import InvalidRequest, MalformedResponse
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.wiring import services
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.worker

WAIT_S = 120


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with fleet() as made:
        made.worker("rules")
        yield made


@pytest.fixture
def tasks(running: Fleet) -> ModuleType:
    return running.agent()


def test_a_task_rules_its_own_exceptions(tasks: ModuleType, running: Fleet) -> None:
    """What Celery would fail at once is retried, or becomes an error of ours that says nothing of its message."""
    assert tasks.ruled.delay("conflict", 1).get(timeout=WAIT_S) == 1
    with pytest.raises(InvalidRequest) as refused:
        tasks.ruled.delay("invalid_request", 9).get(timeout=WAIT_S)
    assert (refused.value.cause, refused.value.attempts) == ("LookupError", 1)
    assert len(running.stamps("ruled-invalid_request")) == 1


def test_a_broken_rule_leaves_the_task_to_celery(tasks: ModuleType, running: Fleet) -> None:
    """The exception comes as it was raised, and the worker's log names the rule."""
    with pytest.raises(LookupError):
        tasks.ruled.delay("nonsense", 9).get(timeout=WAIT_S)
    assert "classify.rule_failed rule=tests.fleet_app." in running.workers[0].log()


def test_an_error_says_how_many_attempts_were_made(tasks: ModuleType, running: Fleet) -> None:
    """Also where the task raised one of ours itself, which knows of one attempt only."""
    services().lanes.establish("free", limit_fields(LaneLimits(unlimited=True)))
    later_us = int((time.time() + 3600) * 1e6)  # other calls of its lane are answered all the time: it is this one
    services().lanes.set_points("free", {"good_at": later_us, "good_sent": later_us})
    with pytest.raises(MalformedResponse) as failed:
        tasks.garbled.delay().get(timeout=WAIT_S)
    assert failed.value.attempts == len(running.stamps("garbled")) == 3
    assert (failed.value.status, failed.value.cause) == (200, "no JSON")
