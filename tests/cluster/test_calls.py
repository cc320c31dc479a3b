"""Calls are found where they wait, run or have ended; those that wait are cancelled, those that failed run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from celery import signature
from celery.exceptions import TaskRevokedError
from click.testing import CliRunner, Result
from kombu.utils.json import dumps

from ratelimit_worker import wiring
from ratelimit_worker.calls import Mode, Outcome
from ratelimit_worker.cli import main
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.stores import keys, set_aside
from ratelimit_worker.worker.again import NOT_KEPT, run_again
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    """A broker and a worker."""
    with fleet() as made:
        made.worker("w", "-P", "threads", "-c", "8")
        yield made


@pytest.fixture(scope="module")
def tasks(running: Fleet) -> ModuleType:
    """This process as an agent."""
    return running.agent()


def calls(*arguments: str) -> Result:
    """What the command prints."""
    return CliRunner().invoke(main, ["calls", *arguments, *(("-A", "tests.fleet_app"))])


def listed(*arguments: str) -> list[dict[str, Any]]:
    """What `calls list` finds."""
    done = calls("list", "--format", "json", *arguments)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["calls"]
    return found


def test_fifty_that_wait_are_cancelled_and_their_callers_told(tasks: ModuleType) -> None:
    """Found by lane and tenant, taken out by the same words; another tenant's calls go on."""
    control = wiring.services().control
    pin(control, Mode.HALT, lane="stamp", who="ann")
    theirs = [tasks.stamp.apply_async((f"t{number}",), tenant="team-a") for number in range(50)]
    other = tasks.stamp.apply_async(("other",), tenant="team-b")
    wait_for(lambda: len(listed("--lane", "stamp", "--limit", "100")) == 51, what="all wait")
    found = listed("--lane", "stamp", "--tenant", "team-a", "--limit", "100")
    assert {call["call_id"] for call in found} == {call.id for call in theirs}
    assert {call["state"] for call in found} <= {"waiting", "due later"}
    assert {call["task"] for call in found} == {"tests.fleet_app.stamp"}
    assert listed(theirs[7].id)[0]["tenant"] == "team-a"
    done = calls("cancel", "--lane", "stamp", "--tenant", "team-a", "--limit", "100", "--yes")
    assert (done.exit_code, done.stdout) == (0, "50 of 50 calls cancelled.\n")
    for call in theirs:
        with pytest.raises(TaskRevokedError):
            call.get(timeout=120)
    again = calls("cancel", theirs[0].id, "--yes")
    assert again.exit_code == 1
    assert "it does not wait" in again.stderr
    auto(control, lane="stamp", who="ann")
    assert other.get(timeout=120) == "other"


def test_ten_that_failed_run_again_under_their_ids(tasks: ModuleType) -> None:
    """Their callers get the new answer, their attempts count on, what hangs on them follows, and their end is one."""
    failed = [tasks.ruled.apply_async(("invalid_request", 10), link=tasks.note.s()) for _ in range(10)]
    for call in failed:
        with pytest.raises(Exception, match="invalid_request"):
            call.get(timeout=120)
    ids = {call.id for call in failed}
    wait_for(lambda: len(listed("--state", "failed", "--error", "invalid_request")) == 10, what="they are on record")
    found = listed("--state", "failed", "--task", "ruled")
    assert {call["call_id"] for call in found} == ids
    assert all(call["can_run_again"] and call["category"] == "invalid_request" for call in found)
    done = calls("retry", "--error", "invalid_request", "--yes")
    assert (done.exit_code, done.stdout) == (0, "10 of 10 calls on their way again.\n")
    answers = [tasks.ruled.AsyncResult(one).get(timeout=120) for one in ids]
    assert all(10 <= runs < 20 for runs in answers), answers  # how many had run; two at once may see the same number
    tracker = wiring.services().tracker

    def outcomes(call_id: str) -> list[tuple[int, Outcome]]:
        return [(one.number, one.outcome) for one in tracker.attempts_of(call_id)]

    ended = [(1, Outcome.RETRIED), (2, Outcome.ANSWERED)]
    wait_for(lambda: all(outcomes(one) == ended for one in ids), what="the record has their new ends")
    assert listed("--state", "failed", "--error", "invalid_request") == []
    assert listed(failed[0].id)[0]["state"] == "answered"
    assert "answered" in calls("show", failed[0].id).stdout
    refused = calls("retry", failed[0].id, "--yes")
    assert (refused.exit_code, NOT_KEPT in refused.stderr) == (1, True)


def test_one_that_fails_again_can_be_run_once_more_and_two_people_run_it_once(tasks: ModuleType) -> None:
    """What is kept is of its last end; both presses are the same publication."""
    call = tasks.refused.delay("p", "k")
    with pytest.raises(Exception, match="invalid_request"):
        call.get(timeout=120)
    services = wiring.services()
    kept = services.shelf.take(call.id)
    assert kept is not None
    assert kept.attempts == 1
    # Its caller hears of its end a moment before it has left its lane.
    wait_for(lambda: run_again(tasks.app, [call.id])[0].why_not == "", what="it can be run again")
    wait_for(lambda: services.shelf.holds([call.id]), what="it has failed again")
    again = services.shelf.take(call.id)
    assert again is not None
    assert again.attempts == 2
    with pytest.raises(Exception, match="invalid_request"):
        tasks.refused.AsyncResult(call.id).get(timeout=120)


def test_a_message_that_was_set_aside_goes_back_to_its_queue(tasks: ModuleType, running: Fleet) -> None:
    """Once its task is known; one that no worker would take stays, and says why."""
    client = running.valkey.client
    body = signature("tests.fleet_app.note", app=tasks.app)
    with tasks.app.connection_for_write() as connection, connection.channel() as channel:
        message = channel.prepare_message(
            dumps([[1, 2], {}, {}]),
            content_type="application/json",
            content_encoding="utf-8",
            headers={"id": "aside-1", "task": body.task, "lang": "py", "argsrepr": "", "kwargsrepr": ""},
            properties={"delivery_info": {"exchange": "", "routing_key": "fleet"}, "delivery_tag": "x"},
        )
    nobody = {**message, "headers": {**message["headers"], "id": "aside-2", "task": "nobody.knows"}}
    for one in (message, nobody):
        client.lpush(keys.MALFORMED, set_aside.encode(dumps(one).encode(), "not registered", "fleet"))
    found = {call["call_id"]: call for call in listed("--state", "set-aside")}
    assert found["aside-1"]["cause"] == "not registered"
    done = calls("retry", "aside-1", "aside-2", "--yes")
    assert done.exit_code == 1
    assert "1 of 2 calls" in done.stdout
    assert "'nobody.knows' is not registered" in done.stderr
    wait_for(lambda: "2" in [what for _, what in running.stamps("notes")], what="it ran")
    assert [one.call_id for one in set_aside.read(client)] == ["aside-2"]
    client.delete(keys.MALFORMED)
