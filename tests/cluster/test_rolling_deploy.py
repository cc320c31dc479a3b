"""Do workers that know different tasks, or know nothing of lanes, harm the calls of a queue that they share?"""

from __future__ import annotations

import base64
import importlib
import json
import os
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from celery import chain

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import DeadlineExceeded, MessageRefused
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.reports.doctor import examine, findings_text
from ratelimit_worker.reports.explain import explain, explanation_text
from ratelimit_worker.reports.live import cluster_state
from ratelimit_worker.reports.stats import Sources
from ratelimit_worker.reports.tables import workers_line
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.live import Live
from ratelimit_worker.wiring import services
from ratelimit_worker.worker.transport import reference
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = pytest.mark.worker

THREADS = ("-P", "threads", "-c", "4")


@pytest.fixture
def deploy() -> Iterator[Fleet]:
    with fleet(MAISD_VISIBILITY_TIMEOUT_SECONDS="30", CREW_KNOWS="") as made:
        yield made


def shop() -> ModuleType:
    """This process as a producer of the newest release."""
    tasks = importlib.reload(importlib.import_module("tests.crew_app"))
    services().lanes.establish("shop", limit_fields(LaneLimits(unlimited=True)))
    return tasks


def worker(made: Fleet, name: str, app: str = "tests.crew_app", **env: str) -> Worker:
    """A worker of a release: of the tasks that CREW_KNOWS names, or of plain Celery."""
    started = Worker(name, made.folder, {**made.env, "CREW_WHO": name, **env}, THREADS, app)
    made.workers.append(started)
    started.wait_ready()
    return started


def ran(made: Fleet, task: str) -> list[tuple[str, str]]:
    """(worker, prompt) of every run of a task."""
    return [(who, prompt) for _, what in made.stamps(task) for who, prompt in [what.split(" ", 1)]]


def test_a_stock_worker_of_the_queue_gets_no_call(deploy: Fleet) -> None:
    """The release before `install(app)` serves the same queue: each call has the answer to its own prompt."""
    worker(deploy, "stock", "tests.stock_app")
    worker(deploy, "new")
    tasks = shop()
    prompts = [f"sentence {number}" for number in range(24)]
    calls = [tasks.translate.delay(prompt) for prompt in prompts]
    assert [call.get(timeout=120) for call in calls] == [f"translate {prompt}" for prompt in prompts]
    assert deploy.stamps("stock") == []
    # an ordinary task whose canvas holds a call is no stock worker's either: its body lies apart
    links = [chain(tasks.plain.si(number), tasks.translate.si(f"link {number}")).delay() for number in range(12)]
    assert [link.get(timeout=120) for link in links] == [f"translate link {number}" for number in range(12)]
    for _ in range(8):  # what is no call is anybody's, as it always was
        tasks.plain.delay(1)
    wait_for(lambda: not deploy.valkey.client.llen("shop"), what="the ordinary tasks are read")


def test_a_stock_worker_that_is_handed_a_reference_refuses_it(deploy: Fleet) -> None:
    """By an older version's release, or in the canvas of an ordinary task: its function is not called."""
    worker(deploy, "stock", "tests.stock_app")
    stock_app = importlib.reload(importlib.import_module("tests.stock_app"))
    body = json.loads(base64.b64decode(reference("some-call")))
    got = stock_app.app.send_task("shop.translate", *body[:2])
    with pytest.raises(TypeError, match="this_message_needs_ratelimit_worker"):
        got.get(timeout=120)
    assert deploy.stamps("stock") == []


def test_calls_go_to_workers_that_know_their_task(deploy: Fleet) -> None:
    """40 calls of a task that one of two workers knows, before 50 that both or the other know: none waits for a lease.

    Then the only one that knows it stops: they wait, and everybody says so by name; one that knows it starts: they run.
    """
    worker(deploy, "one", CREW_KNOWS="translate")
    knows = worker(deploy, "both")
    tasks = shop()
    began = time.monotonic()
    rare = [tasks.summarise.delay(f"r{number}") for number in range(40)]
    usual = [tasks.translate.delay(f"u{number}") for number in range(50)]
    assert [call.get(timeout=120) for call in usual] == [f"translate u{number}" for number in range(50)]
    assert [call.get(timeout=120) for call in rare] == [f"summarise r{number}" for number in range(40)]
    assert time.monotonic() - began < 20
    assert {who for who, _ in ran(deploy, "summarise")} == {"both"}
    assert len(ran(deploy, "translate")) == 50
    knows.stop()
    waiting = [tasks.summarise.delay(f"w{number}") for number in range(40)]
    more = [tasks.translate.delay(f"m{number}") for number in range(50)]
    assert [call.get(timeout=120) for call in more] == [f"translate m{number}" for number in range(50)]
    assert not any(call.ready() for call in waiting)
    says = "task shop.summarise: no living worker of queue shop knows it"
    live = Live(services().redis)
    wait_for(lambda: [one.calls for one in live.now().unknown] == [40], what="all 40 are found")
    assert says in workers_line(cluster_state(live.now(), None))
    assert f"waits for room: {says}" in explanation_text(explain(live, [], waiting[7].id))
    found = findings_text(
        list(
            examine(
                read_settings(),
                Sources.of(services().queries, live),
                services().outbox,
                latencies=services().latencies.everything,
                own_rules=services().own_rules.read,
            )
        )
    )
    assert f"{says}, and 40 calls wait" in found
    worker(deploy, "late")
    assert [call.get(timeout=120) for call in waiting] == [f"summarise w{number}" for number in range(40)]
    assert {who for who, prompt in ran(deploy, "summarise") if prompt.startswith("w")} == {"late"}
    assert live.now().unknown == ()
    assert services().lanes.counters().get("malformed", 0) == 0


def test_a_call_that_nobody_knows_fails_at_its_deadline(deploy: Fleet) -> None:
    """A worker that does not know its task tells its caller."""
    worker(deploy, "one", CREW_KNOWS="translate")
    tasks = shop()
    call = tasks.summarise.apply_async(("late",), deadline_s=2.0)
    with pytest.raises(DeadlineExceeded):
        call.get(timeout=120)
    wait_for(lambda: not deploy.valkey.client.keys(keys.call("*")), what="nothing is left of it")
    assert services().lanes.counters().get("malformed", 0) == 0


def test_what_an_older_release_hands_to_a_worker_that_does_not_know_it_goes_back(deploy: Fleet) -> None:
    """It lies in the plain list, as a version without crews leaves it: no attempt is used, and another runs it."""
    worker(deploy, "one", CREW_KNOWS="translate")
    tasks = shop()
    call = tasks.summarise.delay("handed")
    client = deploy.valkey.client
    raw: Any = client.hget(keys.call(call.id), "m")
    tag = f"{call.id}.1"
    services().lanes.client.hset(keys.COUNTERS, "released", 1)
    with client.pipeline() as pipe:  # as that version releases
        pipe.zadd(keys.LEDGER, {tag: time.time() * 1e6 + 30e6})
        pipe.zadd(keys.out("shop"), {tag: 0})
        pipe.sadd("rlw:onqueue:shop", tag)
        pipe.sadd("rlw:onqueues", "shop")
        pipe.zrem(keys.due("shop", "shop"), call.id)
        pipe.zrem(keys.waiting("shop", "shop"), call.id)
        pipe.lpush("shop", raw.replace(b'"@"', json.dumps(tag).encode(), 1))
        pipe.execute()
    wait_for(lambda: "message.declined" in deploy.workers[0].log(), what="it is given back")
    assert services().lanes.counters().get("malformed", 0) == 0
    worker(deploy, "late")
    assert call.get(timeout=120) == "summarise handed"


@pytest.mark.parametrize("spoilt", ["no JSON", "no headers", "no task", "content type", "body"])
def test_what_is_set_aside_gives_its_caller_an_error_at_once(deploy: Fleet, spoilt: str) -> None:
    """A released call whose message cannot be read: slot, permit, claim and payload are free, and it is recorded."""
    one = worker(deploy, "one")
    tasks = shop()
    lanes = services().lanes
    lanes.set_points("shop", {"gate": int(time.time() * 1e6 + 3600e6), "unlimited": 0, "p1": 0.001, "d1": 1, "cap": 1})
    call = tasks.translate.apply_async(("spoilt",), cache=True)
    follower = tasks.translate.apply_async(("spoilt",), cache=True)
    client = deploy.valkey.client
    text: Any = client.hget(keys.call(call.id), "m")
    changes = {
        "no JSON": (b'"headers": ', b'"headers": ]'),
        "no headers": (b'"headers": ', b'"headers": null, "heads": '),
        "no task": (b'"task": "shop.translate", ', b'"task": 7, '),
        "content type": (b'"content-type": "application/json"', b'"content-type": "application/x-pickle"'),
        "body": (b'"body": "', b'"body": "%'),
    }
    assert text.count(changes[spoilt][0]) == 1
    client.hset(keys.call(call.id), "m", text.replace(*changes[spoilt]))
    lanes.set_points("shop", {"gate": 0, "l1": 1})
    with pytest.raises(MessageRefused, match="set aside"):
        call.get(timeout=120)
    with pytest.raises(MessageRefused, match="set aside"):
        follower.get(timeout=120)
    wait_for(lambda: not client.zcard(keys.LEDGER), what="nothing is out")
    assert not client.exists(keys.payload(call.id), keys.call(call.id))
    assert client.llen(keys.MALFORMED) == 1
    assert float(lanes.fields("shop")["c1"]) == 0, "its permit was given back"
    assert one.process.poll() is None
    row = lambda: [one for one in services().tracker.attempts_of(call.id) if one.cause]  # noqa: E731
    wait_for(row, what="it is recorded")
    assert "MessageRefused" in str(row()[0].cause)


def test_a_task_that_is_unknown_to_all_is_an_error_where_it_is_no_call(deploy: Fleet) -> None:
    """As in plain Celery: a message that no worker can take fails, and its caller need not wait."""
    worker(deploy, "one")
    tasks = shop()
    with pytest.raises(MessageRefused, match="not registered"):
        tasks.app.send_task("shop.nobody", args=(1,)).get(timeout=120)
    assert os.environ["MAISD_REDIS_URL"] == deploy.valkey.url


def test_neither_calls_nor_ordinary_tasks_starve(deploy: Fleet) -> None:
    """Of 200 calls and 200 ordinary tasks that wait for one worker, the last of both kinds come at about one time."""
    tasks = shop()
    plain = [tasks.plain.delay(number) for number in range(200)]
    calls = [tasks.translate.delay(f"s{number}") for number in range(200)]
    worker(deploy, "one")
    done = lambda results: sum(result.ready() for result in results)  # noqa: E731
    wait_for(lambda: done(plain) > 20 and done(calls) > 20, what="both kinds run", timeout_s=30)
    wait_for(lambda: done(plain) == done(calls) == 200, what="all have run", timeout_s=60)
