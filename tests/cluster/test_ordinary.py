"""Do an app's ordinary tasks behave after `install(app)` as they did before? Twelve behaviours, on real workers.

Each is observed twice, in plain Celery and with lanes: what is seen has to be the same, and what Celery documents.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.result import EagerResult

from ratelimit_worker.worker.transport import Transport
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet
from tests.ordinary_app import KEPT_S, Failed, make

pytestmark = [pytest.mark.server, pytest.mark.worker]
WAIT_S = 120


@dataclass(frozen=True)
class Side:
    """An app, and a worker of it."""

    app: Celery
    made: Fleet

    def task(self, name: str) -> Any:
        """One of its tasks."""
        return self.app.tasks[f"ordinary.{name}"]

    def noted(self, name: str) -> list[str]:
        """What tasks have written under a name."""
        return [what for _, what in self.made.stamps(name)]

    def go(self, name: str) -> None:
        """Let a task that holds go on."""
        (self.made.folder / f"{name}-go").touch()

    def end(self, result: Any) -> str:
        """How a task ends: its value, or the name of its error."""
        got = result.get(timeout=WAIT_S, propagate=False)
        return type(got).__name__ if isinstance(got, BaseException) else repr(got)


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    """Before and after: plain Celery, and the same with lanes."""
    with ExitStack() as stack:
        found = []
        for name in ("before", "after"):
            made = stack.enter_context(fleet())
            env = {
                **made.env,
                "ORDINARY_URL": made.valkey.url,
                "ORDINARY_LANES": "yes" if name == "after" else "",
                "C_FORCE_ROOT": "1",
            }
            options = ("-P", "prefork", "-c", "2", "-E")
            worker = Worker(name, made.folder, env, options, "tests.ordinary_app")
            made.workers.append(worker)
            found.append(Side(make(made.valkey.url, lanes=name == "after"), made))
        for side in found:
            side.made.workers[0].wait_ready()
        yield found[0], found[1]


def acks(side: Side) -> Any:
    """How many messages are unacknowledged while an early and a late task run, and afterwards."""
    seen = []
    client = side.made.valkey.client
    for name in ("early", "late"):
        result = side.task(name).delay(name)
        wait_for(partial(side.noted, f"{name}-begun"), what="it runs")
        seen.append(client.hlen("unacked"))
        side.go(name)
        result.get(timeout=WAIT_S)
    wait_for(lambda: client.hlen("unacked") == 0, what="the late one is acknowledged")
    return seen


def redelivery(side: Side) -> Any:
    """A message that is put back, and children that are lost, with and without reject_on_worker_lost."""
    ends = [side.end(side.task(name).delay(name)) for name in ("requeued", "dies", "dies_late")]
    return ends, [side.noted(name) for name in ("requeued", "dies", "dies_late")]


def serializers(side: Side) -> Any:
    """A pickled task, and what lies in the queue and in the result: all but ids, times and process."""
    answer = side.task("pickled").delay({3, 1}).get(timeout=WAIT_S)
    side.task("add").apply_async((1,), {"y": 2}, queue="nobody", headers={"mine": 7}, countdown=60)
    side.task("pickled").apply_async(({1},), queue="nobody", compression="gzip")
    client, found = side.made.valkey.client, []
    for raw in client.lrange("nobody", 0, -1):
        message = json.loads(raw)
        headers, properties = message["headers"], message["properties"]
        body = base64.b64decode(message.pop("body"))
        for name in ("id", "root_id", "origin", "eta"):
            headers[name] = type(headers[name]).__name__
        for name in ("correlation_id", "reply_to", "delivery_tag"):
            properties[name] = type(properties[name]).__name__
        found.append((message, body if message["content-type"] == "application/json" else len(body) > 20))
    client.delete("nobody")
    result = side.task("add").delay(1)
    result.get(timeout=WAIT_S)
    return answer, found, sorted(json.loads(client.get(f"celery-task-meta-{result.id}") or b""))


def expiry(side: Side) -> Any:
    """A task that is read too late is revoked; a result is kept as long as the app says."""
    late = side.task("add").apply_async((1,), expires=-1)
    kept = side.task("add").delay(1)
    kept.get(timeout=WAIT_S)
    left = side.made.valkey.client.ttl(f"celery-task-meta-{kept.id}")
    return side.end(late), late.state, KEPT_S - 120 < left <= KEPT_S


def limits(side: Side) -> Any:
    """A rate limit by annotation: the second of two tasks is held by the worker; and one that is set at run time."""
    sent = [side.task("limited").delay("limited") for _ in range(2)]
    log = side.made.workers[0].log
    wait_for(lambda: all(f"{one.id}] received" in log() for one in sent), what="the worker has both")
    sent[0].get(timeout=WAIT_S)
    unacked = side.made.valkey.client.hvals
    wait_for(
        lambda: sum(b"ordinary.limited" in one for one in unacked("unacked")) == 1, what="it holds the second alone"
    )
    seen = len(side.noted("limited"))
    side.app.control.revoke(sent[1].id)
    said = side.app.control.rate_limit("ordinary.add", "100/s", reply=True, limit=1, timeout=WAIT_S)
    return seen, [answer for reply in said for answer in reply.values()]


def routing(side: Side) -> Any:
    """By a route through a topic exchange, to a queue by name, and with a priority."""
    where = side.task("where")
    return [
        where.apply_async(**options).get(timeout=WAIT_S)
        for options in ({}, {"queue": "ordinary"}, {"queue": "side", "routing_key": "a.c"}, {"priority": 3})
    ]


def events(side: Side) -> Any:
    """Which events tell of a task that ends well, and one that is retried and fails, and with which fields."""
    found: dict[str, dict[str, list[str]]] = {}
    listens = threading.Event()

    def take(event: dict[str, Any]) -> None:
        listens.set()  # a worker's heartbeat will do
        if event["type"].startswith("task-"):
            fields = sorted(event.keys() - {"local_received", "clock", "utcoffset"})
            found.setdefault(event["uuid"], {}).setdefault(event["type"], fields)

    connection = side.app.connection_for_read()
    receiver = side.app.events.Receiver(connection, handlers={"*": take})
    listener = threading.Thread(target=receiver.capture, kwargs={"wakeup": True})
    listener.start()
    try:
        assert listens.wait(WAIT_S)
        well, ill = side.task("add").delay(1), side.task("auto").delay("events")
        side.end(well), side.end(ill)

        def told() -> bool:
            return "task-succeeded" in found.get(well.id, ()) and "task-failed" in found.get(ill.id, ())

        wait_for(told, what=lambda: f"both ends are told: {found}")
    finally:
        receiver.should_stop = True
        listener.join(WAIT_S)
        connection.release()
    return found[well.id], found[ill.id]


def eager(side: Side) -> Any:
    """`task_always_eager`, with errors kept and raised; `.apply()` and a plain call."""
    add, fail, conf = side.task("add"), side.task("fail"), side.app.conf
    conf.task_always_eager = True
    try:
        result = add.delay(1, 2)
        kept = fail.delay()
        in_chain = chain(add.s(1), add.s(2))().get()
        conf.task_eager_propagates = True
        with pytest.raises(Failed):
            fail.delay()
    finally:
        conf.task_always_eager = conf.task_eager_propagates = False
    applied = add.apply((1,))
    return type(result) is EagerResult, result.get(), kept.state, in_chain, type(applied) is EagerResult, add(3, 4)


def canvas(side: Side) -> Any:
    """All of Celery's canvas, with links and errbacks, and what a task is told of its place."""
    add, total, note = side.task("add"), side.task("total"), side.task("note")

    def shape(result: Any) -> Any:
        return [shape(child) for child in result.children or ()]

    linked = add.apply_async((1,), link=note.s("linked").set(immutable=True))
    failing = side.task("fail").apply_async(link_error=note.si("errback"))
    bad = chord([add.s(1), side.task("fail").s()], total.s().on_error(note.si("chord-errback"))).delay()
    ended = [side.end(linked), side.end(failing), side.end(bad)]
    for name in ("linked", "errback", "chord-errback"):
        wait_for(partial(side.noted, name), what=f"{name} ran")
    sent = [
        chain(add.s(1), add.s(2), add.s(3)).delay(),
        group(add.s(n) for n in range(3)).delay(),
        chord([add.s(n) for n in range(3)], total.s()).delay(),
        (add.s(1) | group(add.s(1), add.s(2)) | total.s()).delay(),
        add.chunks([(n, 1) for n in range(4)], 2).apply_async(),
        add.map([1, 2]).delay(),
        add.starmap([(1, 2), (3, 4)]).delay(),
        side.task("becomes").delay(1),
        chain(add.s(1), side.task("asked").s()).apply_async(headers={"mine": 7}),
    ]
    return ended, [(result.get(timeout=WAIT_S), shape(result)) for result in sent]


def revoke(side: Side) -> Any:
    """A task that waits for its time, one that runs, and one that is only told to be ignored."""
    waits = side.task("add").apply_async((1,), countdown=600)
    waits.revoke()
    runs = side.task("early").delay("killed")
    wait_for(lambda: side.noted("killed-begun"), what="it runs")
    runs.revoke(terminate=True, signal="SIGKILL")
    ignored = side.task("early").delay("ignored")
    wait_for(lambda: side.noted("ignored-begun"), what="it runs")
    ignored.revoke()
    side.go("ignored")
    soon = side.task("add").apply_async((1,), countdown=0.5)
    soon.revoke()
    return [side.end(one) for one in (runs, ignored, soon)], [one.state for one in (waits, runs, ignored, soon)]


def retries(side: Side) -> Any:
    """How often, and what the caller gets in the end."""
    ends = [side.end(side.task("retries").delay(f"retries-{how}", how)) for how in ("well", "never", "exc")]
    ends.append(side.end(side.task("auto").delay("auto")))
    return ends, [side.noted(name) for name in ("retries-well", "retries-never", "retries-exc", "auto")]


def time_limits(side: Side) -> Any:
    """The soft one can be caught, the hard one not; both also for one call."""
    one = side.task("early").apply_async(("limited-once",), soft_time_limit=1)
    return [side.end(side.task("soft").delay()), side.end(side.task("hard").delay()), side.end(one)]


#: What Celery documents, where it can be said in a line.
EXPECTED: dict[Callable[[Side], Any], Any] = {
    acks: [0, 1],
    redelivery: (
        ["True", "WorkerLostError", "'lived'"],
        [["False", "True"], ["False"], ["False", "True"]],
    ),
    serializers: None,
    expiry: ("TaskRevokedError", "REVOKED", True),
    routing: None,
    events: None,
    eager: (True, 3, "FAILURE", 3, True, 7),
    canvas: None,
    revoke: (
        ["TaskRevokedError", "None", "TaskRevokedError"],
        ["REVOKED", "REVOKED", "SUCCESS", "REVOKED"],
    ),
    retries: (
        ["2", "MaxRetriesExceededError", "Failed", "Failed"],
        [["0", "1", "2"], ["0", "1", "2"], ["0", "1", "2"], ["0", "1"]],
    ),
    time_limits: ["'cleaned up'", "TimeLimitExceeded", "SoftTimeLimitExceeded"],
    limits: (
        1,
        [{"ok": "new rate limit set successfully"}],
    ),  # last: the second task stays with its worker for a while
}


@pytest.mark.parametrize("behaviour", EXPECTED, ids=lambda one: one.__name__)
def test_an_ordinary_task_is_as_before(sides: tuple[Side, Side], behaviour: Callable[[Side], Any]) -> None:
    """What is seen with lanes is what is seen without."""
    before, after = (behaviour(side) for side in sides)
    assert after == before
    if EXPECTED[behaviour] is not None:
        assert before == EXPECTED[behaviour]


def test_only_one_of_the_two_has_lanes(sides: tuple[Side, Side]) -> None:
    """Else the comparison says nothing."""
    assert [isinstance(side.app.connection_for_write().transport, Transport) for side in sides] == [False, True]
    assert [bool(side.made.valkey.client.exists("rlw:workers")) for side in sides] == [False, True]
