"""Are calls found where they wait, run or follow? On the real server and the test's time."""

from __future__ import annotations

import json

import pytest

from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.contracts.search import CallState, Wanted
from ratelimit_worker.stores import roster
from ratelimit_worker.stores.desks import PREFIX
from tests.builders import entry
from tests.lua.cluster import CALM, Cluster


def named(ref: str, task: str) -> bytes:
    """The message of a call, with what a search reads of it."""
    headers = {"id": ref, "task": task, "rlw": {"context": "docs"}}
    return json.dumps({"properties": {"delivery_tag": "@"}, "headers": headers, "body": ref}).encode()


@pytest.fixture
def lanes(cluster: Cluster) -> Cluster:
    """One runs, three wait (one in process), one for a time, one for the answer of another."""
    cluster.worker(slots=1)
    cluster.lanes.enqueue(entry("runs", message=named("runs", "app.ask"), lane_fields={"unlimited": 1, "cap": 1}))
    cluster.begin()
    claim = Claim(fingerprint="f", ttl_s=60.0, join=True)
    for ref in ("leads", "follows"):
        cluster.lanes.enqueue(entry(ref, message=named(ref, "app.ask"), tenant="team-a", claim=claim))
    cluster.lanes.enqueue(entry("other", message=named("other", "app.sum"), tenant="team-b"))
    cluster.lanes.enqueue(entry("later", message=named("later", "app.sum"), due_in_s=600.0))
    cluster.lanes.enqueue(entry("mine", message=named("mine", "app.sum"), queue=f"{PREFIX}host-1"))
    cluster.lanes.enqueue(entry("far", lane="far", message=named("far", "app.ask"), lane_fields=CALM, due_in_s=60.0))
    return cluster


def found(lanes: Cluster, **wanted: object) -> dict[str, CallState]:
    """Id → state of what a search finds."""
    return {call.call_id: call.state for call in roster.look(lanes.client, Wanted(**wanted)).calls}  # type: ignore[arg-type]


EVERY = {
    "runs": CallState.RUNNING,
    "leads": CallState.WAITING,
    "other": CallState.WAITING,
    "mine": CallState.WAITING,
    "later": CallState.LATER,
    "follows": CallState.FOLLOWING,
    "far": CallState.LATER,
}


def test_every_call_is_found_once_in_its_state(lanes: Cluster) -> None:
    """What runs first; with its task, tenant and context."""
    assert found(lanes) == EVERY
    calls = roster.look(lanes.client, Wanted()).calls
    assert len(calls) == len(EVERY)
    assert calls[0].state is CallState.RUNNING
    leads = next(call for call in calls if call.call_id == "leads")
    assert (leads.task, leads.tenant, leads.context, leads.lane) == ("app.ask", "team-a", "docs", "gpt")


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({"lane": "far"}, {"far"}),
        ({"lane": "gpt", "tenant": "team-a"}, {"leads", "follows"}),
        ({"task": "SUM"}, {"other", "later", "mine"}),
        ({"call_id": "other"}, {"other"}),
        ({"call_id": "follows"}, {"follows"}),
        ({"error": "timeout"}, set()),
        *(({"state": state}, {one for one, there in EVERY.items() if there is state}) for state in CallState),
    ],
)
def test_conditions_add_up(lanes: Cluster, wanted: dict[str, object], ids: set[str]) -> None:
    """By lane, tenant, part of a task's name, id, error and state."""
    assert set(found(lanes, **wanted)) == ids


def test_what_can_be_cancelled(lanes: Cluster) -> None:
    """What waits, for whatever; a call in process is its caller's."""
    calls = roster.look(lanes.client, Wanted()).calls
    assert {call.call_id for call in calls if call.can_cancel} == {"leads", "other", "later", "follows", "far"}


def test_no_more_is_told_than_is_wanted(lanes: Cluster) -> None:
    """And that there is more."""
    some = roster.look(lanes.client, Wanted(most=2))
    assert (len(some.calls), some.whole) == (2, False)
    assert roster.look(lanes.client, Wanted()).whole


def test_which_of_some_calls_are_in_lanes(lanes: Cluster) -> None:
    """Waiting or out."""
    assert roster.in_lanes(lanes.client, ["runs", "later", "gone"]) == {"runs", "later"}
    assert roster.in_lanes(lanes.client, []) == set()
