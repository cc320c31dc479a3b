"""Does a worker live on whatever lies in its queue? A real one, with messages, broadcasts and records of any shape.

After each heap of them its good calls are answered, and all its slots are free: as many calls as it has slots meet.
"""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import random
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.errors import MessageRefused
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.stores import keys
from ratelimit_worker.wiring import services
from tests import hostile
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet
from tests.properties import share

pytestmark = pytest.mark.worker

SLOTS, HEAP = 4, 100


@pytest.fixture(scope="module", params=["threads", "prefork"])
def attacked(request: pytest.FixtureRequest) -> Iterator[tuple[Fleet, ModuleType]]:
    """A worker with four slots."""
    with fleet() as made:
        made.worker("attacked", "-P", request.param, "-c", str(SLOTS))
        tasks = made.agent()
        services().lanes.set_points("free", limit_fields(LaneLimits(unlimited=True)))
        yield made, tasks
        made.valkey.client.flushall()  # what was put there is in no table


def throw(made: Fleet, seed: int) -> None:
    """A heap of messages, some broadcasts, and records that cannot be read."""
    rnd = random.Random(seed)
    client = made.valkey.client
    with client.pipeline(transaction=False) as pipe:
        for n in range(HEAP):
            pipe.lpush(hostile.QUEUE, hostile.raw_message(rnd, f"h-{seed}-{n}"))
            if n % 10 == 0:
                pipe.publish(*hostile.broadcast(rnd, f"b-{seed}-{n}"))
        for n in range(3):
            ref = f"r-{seed}-{n}"
            junk = rnd.choice([b"", b"\xc1", b"junk", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"a": 1})])
            pipe.hset(f"rlw:call:{ref}", mapping={"i": junk, "m": rnd.choice([b"", b"{}", b'"delivery_tag": "@"'])})
            pipe.zadd(keys.waiting("free", hostile.QUEUE), {ref: rnd.choice([0.0, -1.0, 1e15])})
            pipe.sadd("rlw:queues:free", hostile.QUEUE)
            pipe.zadd(keys.LEDGER, {f"{ref}.{n}": 1.0})
            pipe.zadd("rlw:expiry", {ref: 1.0})
            pipe.zadd("rlw:suspects", {ref: rnd.choice([0.0, 1.0, 2.0])})
            pipe.zadd("unacked_index", {ref: 1.0})
            pipe.hset("unacked", ref, rnd.choice(["", "junk", "[]", "[5, 5, 5]", '[{"headers": 5}, "a", "b"]']))
        pipe.execute()


def survive(attacked: tuple[Fleet, ModuleType], seed: int) -> None:
    made, tasks = attacked
    worker = made.workers[0]
    good = [tasks.echo.delay(f"good {seed} {n}") for n in range(5)]
    throw(made, seed)
    good += [tasks.echo.delay(f"more {seed} {n}") for n in range(5)]
    plain = tasks.total_plain.delay([1, seed])

    def says() -> str:
        return f"seed {seed}: {worker.log()[-3000:]}"

    def alive_and(done: bool) -> bool:
        assert worker.process.poll() is None, says()
        return done

    wait_for(lambda: alive_and(all(one.ready() for one in (*good, plain))), 120.0, says)
    assert plain.get(timeout=120) == 1 + seed
    assert good[0].get(timeout=120) == f"good {seed} 0"
    assert {one.state for one in good} == {"SUCCESS"}
    wait_for(lambda: alive_and(made.valkey.client.llen(hostile.QUEUE) == 0), 120.0, says)
    meeting = [tasks.meet.delay(SLOTS, f"meet-{seed}") for _ in range(SLOTS)]
    wait_for(lambda: alive_and(all(one.ready() for one in meeting)), 120.0, says)
    assert [one.state for one in meeting] == ["SUCCESS"] * SLOTS, says()


def plain(call_id: str, body: bytes = b"[[[1, 2]], {}, null]", **headers: object) -> dict[str, Any]:
    """A good message of an ordinary task, as a stock producer sends it."""
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": hostile.PLAIN, "id": call_id, "retries": 0, **headers},
        "properties": {
            "correlation_id": call_id,
            "delivery_info": {"exchange": "", "routing_key": hostile.QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": f"tag-{call_id}",
        },
    }


@settings(max_examples=share(0.02))
@given(seed=st.integers(0, 2**32))
def test_no_message_stops_a_worker(attacked: tuple[Fleet, ModuleType], seed: int) -> None:
    """Good calls among a hundred hostile messages are answered, by the same process, and no slot is lost."""
    survive(attacked, seed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timelimit", "abc"),
        ("timelimit", [1]),
        ("timelimit", 5),
        ("eta", {}),
        ("eta", ""),
        ("expires", {}),
        ("stamped_headers", 5),
        ("shadow", [1]),
        ("content-type", ["a"]),
        ("id", "\ud800"),
        ("get", 5),
        ("retries", "x"),
        ("rlw", 5),
        ("rlw_body", [1]),
        ("chain", 5),
    ],
)
def test_a_field_of_another_type_is_refused(
    attacked: tuple[Fleet, ModuleType], name: str, value: object, request: pytest.FixtureRequest
) -> None:
    """It is set aside, and whoever waits for that call is told, where its id can be read."""
    made, tasks = attacked
    call_id = f"refused-{request.node.nodeid.encode().hex()[-40:]}"
    message = plain(call_id)
    (message if name == "content-type" else message["headers"])[name] = value
    before = services().lanes.counters().get("malformed", 0)
    made.valkey.client.lpush(hostile.QUEUE, json.dumps(message))
    wait_for(lambda: services().lanes.counters().get("malformed", 0) > before, what="it is set aside")
    if name != "id":
        with pytest.raises(MessageRefused):
            tasks.app.AsyncResult(call_id).get(timeout=120)
    assert made.workers[0].process.poll() is None


@pytest.mark.parametrize(
    ("method", "pack"), [("gzip", zlib.compress), ("bzip2", bz2.compress), ("lzma", lzma.compress)]
)
def test_a_compressed_message_is_read_and_a_bomb_is_not(
    attacked: tuple[Fleet, ModuleType], method: str, pack: Callable[[bytes], bytes]
) -> None:
    """As in Celery, with a bound."""
    made, tasks = attacked
    name = f"{made.workers[0].process.pid}-{method}"
    good = plain(f"good-{name}", pack(b"[[[1, 2]], {}, null]"), compression=method)
    bomb = plain(f"bomb-{name}", pack(b"[[[1, 2]], {}, null]" + b" " * (65 * 1024 * 1024)), compression=method)
    made.valkey.client.lpush(hostile.QUEUE, json.dumps(bomb), json.dumps(good))
    assert tasks.app.AsyncResult(f"good-{name}").get(timeout=120) == 3
    with pytest.raises(MessageRefused, match="compressed"):
        tasks.app.AsyncResult(f"bomb-{name}").get(timeout=120)


@pytest.mark.parametrize(("task", "args", "result"), [(hostile.PLAIN, [[1, 2]], 3), (hostile.CALL, ["x"], "x")])
def test_protocol_1_is_read(attacked: tuple[Fleet, ModuleType], task: str, args: list[Any], result: object) -> None:
    """An ordinary task runs as in Celery; a call goes through its lane."""
    made, tasks = attacked
    call_id = f"one-{made.workers[0].process.pid}-{task}"
    told = {"task": task, "id": call_id, "args": args, "kwargs": {}, "retries": 0, "eta": None, "utc": True}
    message = plain(call_id, json.dumps(told).encode())
    made.valkey.client.lpush(hostile.QUEUE, json.dumps({**message, "headers": {}}))
    assert tasks.app.AsyncResult(call_id).get(timeout=120) == result
