"""Calls that are the same, on real workers: one is asked for many, whoever dies; an old answer is renewed once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery.result import AsyncResult

from ratelimit_worker.stores import keys
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet
from tests.fleet import fleet as a_fleet

pytestmark = pytest.mark.worker
PROCESSES, EACH = 8, 25
#: Processes that have nothing in common but what they ask.
PRODUCERS = f"""
import os, sys
from tests.fleet_app import shared_twice
children = []
for _ in range({PROCESSES}):
    child = os.fork()
    if not child:
        told = "".join(shared_twice.delay("the same").id + "\\n" for _ in range({EACH}))
        os.write(1, told.encode())
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Fleet]:
    with a_fleet() as made:
        made.worker("one", wait=False)
        made.worker("two")
        made.workers[0].wait_ready()
        yield made


def test_an_old_answer_is_given_at_once_and_renewed_once(place: Fleet) -> None:
    """The callers have the old one; a call of the product's own, without a result, asks; then the new one is there."""
    ask, client = place.agent().shared, place.valkey.client

    def asked() -> Any:
        return ask.apply_async(("renewed",), stale_while_revalidate=600).get(timeout=120)

    first = ask.apply_async(("renewed",), cache_ttl=0.001, stale_while_revalidate=600)
    assert first.get(timeout=120) == ["renewed", 1]
    assert client.zcard(keys.CACHE_USED) == 1
    assert [asked() for _ in range(3)] == [["renewed", 1]] * 3
    wait_for(lambda: asked() == ["renewed", 2], what="the new answer is there")
    assert len(place.stamps("shared")) == 2
    wait_for(lambda: client.zcard(keys.LEDGER) == 0, what="the renewal has ended")
    results: Any = client.keys("celery-task-meta-*")
    assert client.get(f"celery-task-meta-{first.id}") is not None
    answers = {json.loads(client.get(name) or b"")["result"][1] for name in results}
    assert answers == {1, 2}
    told = int(client.hget(keys.COUNTERS, "cache_hits") or 0) + int(client.hget(keys.COUNTERS, "cache_stale") or 0)
    assert len(results) == 1 + told, "each caller's, and none of the renewal"


def test_a_killed_leader_costs_one_request_more(place: Fleet) -> None:
    """200 calls of 8 processes, and SIGKILL for the worker that asks: at most 2 requests, and 200 answers."""
    client = place.valkey.client
    joined = int(client.hget(keys.COUNTERS, "joined") or 0)
    sent = subprocess.Popen([sys.executable, "-c", PRODUCERS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        ids = (sent.communicate(timeout=300)[0] or "").split()
    finally:
        sent.kill()
    assert (sent.returncode, len(set(ids))) == (0, PROCESSES * EACH)
    wait_for(lambda: place.stamps("twice"), what="the leader runs")
    assert int(client.hget(keys.COUNTERS, "joined") or 0) - joined == PROCESSES * EACH - 1
    (leads,) = (int(pid) for _, pid in place.stamps("twice"))
    (worker,) = (one for one in place.workers if one.process.pid == leads)
    worker.kill()
    app = place.agent().app
    assert [AsyncResult(one, app=app).get(timeout=120) for one in ids] == [2] * PROCESSES * EACH
    assert len(place.stamps("twice")) == 2
