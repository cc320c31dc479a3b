"""Does a call go through its lane, whichever of Celery's ways it was sent, or is it refused? On a real worker.

The table in docs/your-app.md has a row for each way and names the tests; one test here holds it to that.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType
from typing import Any

import kombu
import pytest
from celery import Celery, chain, chord, group, signature
from celery.canvas import Signature, xmap
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult, result_from_tuple

from ratelimit_worker.errors import BadInput, ConfigurationError, MessageRefused
from ratelimit_worker.wiring import services
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]
WAIT_S = 120
TABLE = ROOT / "docs" / "your-app.md"


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with fleet() as made:
        options = ("-P", "threads", "-c", "4", "-Q", "ways,side")
        worker = Worker("ways", made.folder, made.env, options, "tests.ways_app")
        made.workers.append(worker)
        worker.wait_ready()
        yield made


@pytest.fixture(scope="module")
def tasks(running: Fleet) -> ModuleType:
    sys.modules.pop("tests.ways_app", None)
    import tests.ways_app as agent

    return agent


def runs(made: Fleet, name: str) -> list[str]:
    """Ids of the calls for which functions ran under this name; what ran for no call is "None"."""
    return [what.split(" ")[0] for _, what in made.stamps(f"runs-{name}")]


def through_its_lane(made: Fleet, name: str, n: int) -> None:
    """Exactly `n` runs, each an attempt on record."""
    wait_for(lambda: len(runs(made, name)) >= n, what="they run")
    attempts = services().tracker.attempts_of
    wait_for(
        lambda: all(attempts(call_id) for call_id in runs(made, name)),
        timeout_s=60,
        what=lambda: f"each run is an attempt: {runs(made, name)}",
    )
    assert len(runs(made, name)) == n


def stock(made: Fleet, **conf: Any) -> Celery:
    """An app that knows neither tasks nor lanes, on the same broker."""
    app = Celery("stock", broker=made.valkey.url, backend=made.valkey.url, set_as_current=False)
    app.conf.update(task_default_queue="ways", **conf)
    return app


def by_json(sent: Signature, app: Celery) -> Any:
    """A signature as it comes out of a database or a message."""
    return signature(json.loads(json.dumps(sent)), app=app)


def message_of(t: ModuleType, name: str) -> Any:
    """What Celery would publish for a call, unplanned."""
    return t.app.amqp.as_task_v2(f"by-hand-{name}", "ways.ask", (name, 3), {})


def published(t: ModuleType, name: str, producer: Any) -> Any:
    """The answer of a call whose message was published by hand."""
    made = message_of(t, name)
    producer.publish(
        made.body, exchange="ways", routing_key="ways", serializer="json", headers=made.headers, **made.properties
    )
    return t.app.AsyncResult(f"by-hand-{name}").get(timeout=WAIT_S)


def with_pool(t: ModuleType, name: str) -> Any:
    """A producer of the app's own pool, as a task's `producer=` and for a message by hand."""
    with t.app.producer_pool.acquire() as producer:
        return published(t, name, producer)


def with_producer(t: ModuleType, name: str) -> Any:
    """`producer=` of the app's own pool."""
    with t.app.producer_or_acquire() as producer:
        return t.ask.apply_async((name, 1), producer=producer)


def with_connection(t: ModuleType, name: str) -> Any:
    """`connection=` that the app has made."""
    with t.app.connection_for_write() as connection:
        return t.ask.apply_async((name, 1), connection=connection)


def restored(t: ModuleType, name: str) -> Any:
    """A group's result, saved and found again."""
    sent = group(t.ask.s(name, n) for n in range(3)).apply_async()
    sent.save()
    return GroupResult.restore(sent.id, app=t.app)


def as_tuple(t: ModuleType, name: str) -> Any:
    """The results of a canvas, rebuilt from what can be stored."""
    sent = chain(t.ask.s(name, 1), group(t.passes.s(name), t.passes.s(name)), t.after.s(name)).apply_async()
    return result_from_tuple(sent.as_tuple(), app=t.app)


def stamped(t: ModuleType, name: str) -> Any:
    """A signature with a stamp."""
    sent = t.told.s(name)
    sent.stamp(team="a")
    return sent.apply_async().get(timeout=WAIT_S)["stamped_headers"]


def then(t: ModuleType, name: str) -> Any:
    """A promise on the result."""
    got: list[Any] = []
    result = t.ask.delay(name, 3)
    result.then(lambda found: got.append(found.result))
    result.get(timeout=WAIT_S)
    return got


def in_future(**ahead: float) -> datetime:
    """A moment of today, in UTC."""
    return datetime.now(UTC) + timedelta(**ahead)


#: name → (what is sent, its answer, how many runs of calls it makes)
WAYS: dict[str, tuple[Callable[[ModuleType, str], Any], Any, int]] = {
    "delay": (lambda t, name: t.ask.delay(name, 1), 1, 1),
    "apply_async": (lambda t, name: t.ask.apply_async([name], {"n": 2}), 2, 1),
    "countdown": (lambda t, name: t.ask.apply_async((name, 1), countdown=0.2), 1, 1),
    "eta": (lambda t, name: t.ask.apply_async((name, 1), eta=in_future(seconds=0.2)), 1, 1),
    "expires": (lambda t, name: t.ask.apply_async((name, 1), expires=in_future(hours=1)), 1, 1),
    "priority": (lambda t, name: t.ask.apply_async((name, 1), priority=9), 1, 1),
    "compression": (lambda t, name: t.ask.apply_async((name, 1), compression="gzip"), 1, 1),
    "retry_policy": (lambda t, name: t.ask.apply_async((name, 1), retry=True, retry_policy={"max_retries": 1}), 1, 1),
    "link": (lambda t, name: t.ask.apply_async((name, 1), link=[t.passes.s(name), t.note.s()]), 1, 2),
    "link_error": (
        lambda t, name: t.recovers(t.fails.apply_async((name,), link_error=t.ask.si(name))),
        "LookupError",
        2,
    ),
    "producer of the app": (with_producer, 1, 1),
    "connection of the app": (with_connection, 1, 1),
    "queue": (lambda t, name: t.routed.apply_async((name,), queue="ways"), "ways", 1),
    "queue object": (lambda t, name: t.routed.apply_async((name,), queue=kombu.Queue("ways")), "ways", 1),
    "exchange and routing key": (
        lambda t, name: t.routed.apply_async((name,), exchange="ways", routing_key="side"),
        "side",
        1,
    ),
    "task_routes": (lambda t, name: t.routed.delay(name), "side", 1),
    "send_task": (lambda t, name: t.app.send_task("ways.ask", (name, 1)), 1, 1),
    "signature": (lambda t, name: t.ask.s(name, 1).apply_async(), 1, 1),
    "signature by name": (lambda t, name: t.app.signature("ways.ask", args=(name, 1)).delay(), 1, 1),
    "subtask": (lambda t, name: t.ask.subtask((name,), {"n": 5}).delay(), 5, 1),
    "partial": (lambda t, name: t.ask.s(n=4).clone((name,)).delay(), 4, 1),
    "signature from JSON": (lambda t, name: by_json(t.ask.s(name, 4), t.app).delay(), 4, 1),
    "chord from JSON": (lambda t, name: by_json(chord([t.ask.s(name, 4)], t.after.s(name)), t.app).delay(), 4, 2),
    "stamp": (stamped, ["team"], 1),
    "chain": (lambda t, name: (t.ask.s(name, 1) | t.plain.s() | t.passes.s(name)).delay(), 1, 2),
    "group": (lambda t, name: group(t.ask.s(name, n) for n in range(3)).delay(), [0, 1, 2], 3),
    "chord": (lambda t, name: chord([t.ask.s(name, n) for n in range(3)], t.after.s(name)).delay(), 3, 4),
    "chord of an ordinary body": (
        lambda t, name: chord([t.ask.s(name, n) for n in range(3)], t.sums.s()).delay(),
        3,
        3,
    ),
    "chain into a group": (
        lambda t, name: (t.plain.s(2) | group(t.passes.s(name), t.passes.s(name))).delay(),
        [2, 2],
        2,
    ),
    "map": (lambda t, name: t.ask.map([name] * 3).delay(), [0, 0, 0], 3),
    "map of nothing": (lambda t, name: t.ask.map([]).delay(), [], 0),
    "map in a chain": (lambda t, name: (t.ask.map([name] * 2) | t.sums.s()).delay(), 0, 2),
    "map on a queue": (lambda t, name: t.routed.map([name] * 2).apply_async(queue="side"), ["side", "side"], 2),
    "map of a signature": (lambda t, name: xmap(by_json(t.ask.s(), t.app), [name], app=t.app).delay(), [0], 1),
    "starmap": (lambda t, name: t.ask.starmap([(name, n) for n in range(3)]).delay(), [0, 1, 2], 3),
    "chunks": (lambda t, name: t.ask.chunks([(name, n) for n in range(4)], 2).apply_async(), [[0, 1], [2, 3]], 4),
    "chunks as a group": (
        lambda t, name: t.ask.chunks([(name, n) for n in range(4)], 2).group().skew(stop=0.2).delay(),
        [[0, 1], [2, 3]],
        4,
    ),
    "replace": (lambda t, name: t.becomes.delay(name, "call"), 1, 2),
    "replace by a group": (lambda t, name: t.becomes.delay(name, "group"), [0, 1, 2], 4),
    "replace by a chain": (lambda t, name: t.becomes.delay(name, "chain"), 2, 3),
    "add_to_chord": (lambda t, name: chord([t.grows.s(name, 1), t.ask.s(name, 2)], t.sums.s()).delay(), 13, 3),
    "retry": (lambda t, name: t.again.delay(name), 1, 2),
    "from an ordinary task": (lambda t, name: t.sends.delay(name).get(timeout=WAIT_S) and t.ask.delay(name, 7), 7, 3),
    "saved group": (restored, [0, 1, 2], 3),
    "result from a tuple": (as_tuple, 2, 4),
    "then": (then, [3], 1),
    "message by hand": (with_pool, 3, 1),
    "abortable": (lambda t, name: t.abortable.delay(name), False, 1),
    "own apply_async": (lambda t, name: t.tenanted.delay(name), "acme", 1),
    "send_task with a lane": (
        lambda t, name: t.app.send_task("ways.lane_of", (name,), lane="another", priority="high"),
        ["another", "high"],
        1,
    ),
    "own request": (lambda t, name: t.requested.delay(name), "OwnRequest", 1),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_way(tasks: ModuleType, running: Fleet, name: str) -> None:
    """The answer is Celery's, and each run of a call was an attempt in its lane."""
    send, answer, n = WAYS[name]
    file = re.sub(r"\W", "-", name)
    got = send(tasks, file)
    assert (got.get(timeout=WAIT_S) if hasattr(got, "get") else got) == answer
    through_its_lane(running, file, n)


def test_what_a_call_is_told_of_its_way(tasks: ModuleType, running: Fleet) -> None:
    """shadow, headers, reply_to, time limits, ids: the task's request has them."""
    sent = tasks.told.apply_async(
        ("told",),
        task_id="told-id",
        shadow="Shadow",
        headers={"mine": 7},
        reply_to="me",
        time_limit=50,
        soft_time_limit=40,
        root_id="root",
        parent_id="parent",
    )
    assert sent.id == "told-id"
    told = sent.get(timeout=WAIT_S)
    assert told.pop("stamped_headers") is None
    assert told == {
        "shadow": "Shadow",
        "mine": 7,
        "reply_to": "me",
        "correlation_id": "told-id",
        "root_id": "root",
        "parent_id": "parent",
        "group": None,
        "timelimit": [50, 40],
    }
    through_its_lane(running, "told", 1)
    states: list[str] = []
    again = tasks.told.delay("told2")
    again.get(timeout=WAIT_S, on_message=lambda body: states.append(body["status"]))
    assert states[-1] == "SUCCESS"
    assert set(states) <= {"PROGRESS", "SUCCESS"}


def test_a_result_that_nobody_wants(tasks: ModuleType, running: Fleet) -> None:
    sent = tasks.ask.apply_async(("ignored", 1), ignore_result=True)
    through_its_lane(running, "ignored", 1)
    assert (sent.state, sent.get()) == ("PENDING", None)


def test_an_abortable_call_is_aborted(tasks: ModuleType, running: Fleet) -> None:
    """Its result can do both: what Celery's class can, and what a call's can."""
    sent = tasks.abortable.apply_async(("aborted",), countdown=60)
    sent.abort()
    assert sent.is_aborted()
    assert tasks.abortable.AsyncResult(sent.id).is_aborted()
    sent.revoke()
    assert services().lanes.record(sent.id) is None
    assert runs(running, "aborted") == []


def test_a_queue_that_is_consumed_later(tasks: ModuleType, running: Fleet) -> None:
    """`control.add_consumer`: its calls go as soon as a worker reads it, and stay when none does any more."""
    waiting = tasks.routed.apply_async(("fresh",), queue="fresh")
    control = tasks.app.control
    assert control.add_consumer("fresh", reply=True, limit=1, timeout=WAIT_S)
    assert waiting.get(timeout=WAIT_S) == "fresh"
    assert tasks.plain.apply_async((3,), queue="fresh").get(timeout=WAIT_S) == 3
    pushed = stock(running).send_task("ways.routed", ("fresh",), queue="fresh")
    assert tasks.app.AsyncResult(pushed.id).get(timeout=WAIT_S) == "fresh"
    through_its_lane(running, "fresh", 2)
    assert control.cancel_consumer("fresh", reply=True, limit=1, timeout=WAIT_S)


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_producer_without_this_package(tasks: ModuleType, running: Fleet, protocol: int) -> None:
    """Either of Celery's protocols; also as one of a canvas that it has made, and with `map`."""
    app, name = stock(running, task_protocol=protocol), f"foreign-{protocol}"
    ids = [
        app.send_task("ways.ask", (name, 1)).id,
        app.send_task("celery.map", kwargs={"task": dict(app.signature("ways.ask")), "it": [name]}).id,
    ]
    assert [tasks.app.AsyncResult(call_id).get(timeout=WAIT_S) for call_id in ids] == [1, [0]]
    through_its_lane(running, name, 2)


def test_the_lane_that_a_producer_without_this_package_names(tasks: ModuleType, running: Fleet) -> None:
    """To Celery it is a property of the message like any other; one that cannot be is told to whoever waits."""
    send = partial(stock(running).send_task, "ways.lane_of", ("foreign-lane",))
    assert tasks.app.AsyncResult(send(lane="third").id).get(timeout=WAIT_S) == ["third", "normal"]
    through_its_lane(running, "foreign-lane", 1)
    with pytest.raises(MessageRefused, match="lane=''"):
        tasks.app.AsyncResult(send(lane="").id).get(timeout=WAIT_S)
    assert len(runs(running, "foreign-lane")) == 1


def test_an_async_def_is_refused(tasks: ModuleType, running: Fleet) -> None:
    """Nothing of it runs, and its caller reads what to do."""
    with pytest.raises(ConfigurationError, match=r"ways\.awaited is an async def.*asyncio\.run"):
        tasks.awaited.delay("awaited").get(timeout=WAIT_S)
    assert runs(running, "awaited") == []


def test_handlers_of_signals_see_the_arguments(tasks: ModuleType, running: Fleet) -> None:
    """`task_prerun` as `task_postrun`: a tenant or a language is read from them."""
    tasks.heard.delay("heard", prompt="Grüße").get(timeout=WAIT_S)
    wait_for(lambda: len(running.stamps("heard")) == 2, what="both signals")
    assert {told for _, told in running.stamps("heard")} == {repr((["heard"], {"prompt": "Grüße"}))}
    through_its_lane(running, "heard", 1)


def revoke(t: ModuleType, call_id: str, by: str) -> None:
    """By an agent's process, or by the worker that is told to."""
    told = {"destination": [f"ways@{socket.gethostname()}"], "reply": True, "limit": 1, "timeout": WAIT_S}
    t.app.control.revoke(call_id, **(told if by == "worker" else {}))


@pytest.mark.parametrize("by", ["agent", "worker"])
def test_a_revoked_call_ends_its_chord(tasks: ModuleType, running: Fleet, by: str) -> None:
    """As with a worker that refuses its message: whoever finds the chord by its id alone hears of it."""
    name = f"revoked-{by}"
    sent = chord([tasks.ask.s(name, 1).set(countdown=600), tasks.ask.s(name, 2)], tasks.sums.s()).delay()
    waiting = sent.parent.results[0]
    through_its_lane(running, name, 1)
    revoke(tasks, waiting.id, by)
    with pytest.raises(ChordError, match=waiting.id):
        AsyncResult(sent.id, app=tasks.app).get(timeout=WAIT_S)
    assert waiting.state == "REVOKED"
    assert len(runs(running, name)) == 1


@pytest.mark.parametrize("by", ["agent", "worker"])
def test_a_revoked_call_is_an_event(
    tasks: ModuleType, running: Fleet, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Whoever watches events, as Flower does, hears that what was sent is gone."""
    monkeypatch.setitem(tasks.app.conf, "task_send_sent_event", True)
    tasks.app.control.enable_events(reply=True, limit=1, timeout=WAIT_S)
    seen: set[str] = set()
    with tasks.app.connection_for_read() as connection:
        receiver = tasks.app.events.Receiver(connection, handlers={"task-revoked": lambda told: seen.add(told["uuid"])})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):

            def hears() -> bool:
                with suppress(TimeoutError):
                    listening.drain_events(timeout=0.1)
                return bool(sent) and sent[-1] in seen

            sent: list[str] = []
            hears()  # it listens from now on
            sent.append(tasks.ask.apply_async(("revoked-event", 1), countdown=600).id)
            revoke(tasks, sent[-1], by)
            wait_for(hears, what="the event of the call that was revoked")
    assert runs(running, "revoked-event") == []


def test_a_message_of_kombu(tasks: ModuleType, running: Fleet) -> None:
    """Published with nothing but kombu."""
    with kombu.Connection(running.valkey.url) as connection:
        assert published(tasks, "kombu", connection.Producer()) == 3
    through_its_lane(running, "kombu", 1)


def test_celery_call(tasks: ModuleType, running: Fleet) -> None:
    """The command, with an app that knows the task, and with the broker's address alone."""
    for n, of in enumerate((["-A", "tests.ways_app"], ["-b", running.valkey.url])):
        told = ["call", "ways.ask", "--args", json.dumps(["command", n]), "--queue", "ways"]
        done = subprocess.run(
            [sys.executable, "-m", "celery", *of, *told], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert tasks.app.AsyncResult(done.stdout.split()[-1]).get(timeout=WAIT_S) == n
    through_its_lane(running, "command", 2)


def test_beat(running: Fleet, tasks: ModuleType) -> None:
    """A schedule of calls, sent by a beat of its own."""
    log = running.folder / "beat.log"
    with log.open("wb") as out:
        beat = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.ways_app", "beat", "-s", str(running.folder / "schedule")],
            cwd=ROOT,
            env={**os.environ, **running.env, "WAYS_BEAT": "yes"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: len(runs(running, "beat")) >= 2, what=log.read_text)
    finally:
        beat.terminate()
        beat.wait(timeout=120)
    wait_for(lambda: services().lanes.size("ways") == 0, what="all that it sent was read")
    through_its_lane(running, "beat", len(runs(running, "beat")))


def refusals(t: ModuleType, made: Fleet) -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    """name → (what is sent, what it raises, what that says)."""
    foreign = stock(made).connection_for_write()
    producer = stock(made).amqp.Producer(foreign, auto_declare=False)
    ask = partial(t.ask.apply_async, ("refused", 1))
    return {
        "connection of another": (lambda: ask(connection=foreign), ConfigurationError, "connection="),
        "producer of another": (lambda: ask(producer=producer), ConfigurationError, "producer="),
        "send_task with another's": (
            lambda: t.app.send_task("ways.ask", ("refused", 1), producer=producer),
            ConfigurationError,
            "producer=",
        ),
        "pickle": (lambda: ask(serializer="pickle"), BadInput, "plain JSON"),
        "broadcast": (lambda: ask(exchange="everybody", routing_key="x"), BadInput, "broadcast"),
        "broadcast by name": (
            lambda: t.app.send_task("ways.ask", ("refused", 1), queue="everybody"),
            BadInput,
            "broadcast",
        ),
        "nowhere": (lambda: ask(exchange="ways", routing_key="nowhere"), BadInput, "no queue is bound"),
        "nowhere by name": (
            lambda: t.app.send_task("ways.ask", ("refused", 1), exchange="ways", routing_key="nowhere"),
            BadInput,
            "no queue is bound",
        ),
    }


REFUSED = (
    *("connection of another", "producer of another", "send_task with another's", "pickle"),
    *("broadcast", "broadcast by name", "nowhere", "nowhere by name"),
)


@pytest.mark.parametrize("way", REFUSED)
def test_a_way_that_is_refused(tasks: ModuleType, running: Fleet, way: str) -> None:
    """One line that names the option; nothing was sent."""
    send, error, words = refusals(tasks, running)[way]
    with pytest.raises(error, match=words) as told:
        send()
    assert "\n" not in str(told.value)
    assert tasks.ask.delay("after-refusal").get(timeout=WAIT_S) == 0
    assert runs(running, "refused") == []


def rows() -> list[list[str]]:
    """The table of ways in the docs: way, what happens, tests."""
    text = TABLE.read_text("utf-8").partition("## Ways to send a call")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def test_the_table_of_ways_names_its_tests() -> None:
    """Each row points to tests that are there, and each way that is tried here has a row."""
    told = rows()
    assert len(told) > 20
    named: set[str] = set()
    for row in told:
        assert len(row) == 3, row
        found = re.findall(r"`(\w+)\.(\w+)(?:\[([^\]]+)\])?`", row[2])
        assert found, row
        for module, function, case in found:
            (path,) = (ROOT / "tests").rglob(f"{module}.py")
            text = path.read_text("utf-8")
            assert f"def {function}(" in text, row
            named.update(case.split(", ") if case else [])
            assert all(f'"{one}"' in text for one in case.split(", ") if one), row
    assert set(WAYS) | set(REFUSED) <= named
