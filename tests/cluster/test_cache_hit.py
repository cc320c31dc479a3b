"""What does a kept answer, or a refusal, cost its caller? One script at most, and no new connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery, group
from celery._state import _task_stack

from ratelimit_worker import install, llm_task
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.errors import BadInput, LaneFull, LaneShedding, RateLimitWorkerError
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Lanes
from tests.lua.cluster import OPEN, said

TIMES = 100


class Cost(NamedTuple):
    """Of so many calls, to the thread that makes them."""

    exchanges: int  #: with Redis
    scripts: int  #: of these
    connections: int  #: that were opened


@dataclass
class Place:
    """An app on a real server without workers, and what a worker would do by hand."""

    app: Celery
    ask: Any
    client: redis.Redis
    traffic: list[bytes | None]  #: what this thread has sent to Redis; None: it has opened a connection

    @property
    def lanes(self) -> Lanes:
        return Lanes(self.client)

    def answer_one(self, answer: bytes) -> None:
        """Whatever is out is answered."""
        ledger: Any = self.client.zrange(keys.LEDGER, 0, -1)
        (tag,) = (one.decode() for one in ledger)
        assert self.lanes.begin(tag, 60.0).state == "go"
        self.lanes.settle(Settlement(tag=tag, lane="gpt", answer=answer, lesson=said("good")))
        self.lanes.free([tag])

    def cost(self, do: Callable[[], object]) -> Cost:
        """Do it so often, when it has been done once."""
        do()
        self.traffic.clear()
        for _ in range(TIMES):
            do()
        sent = [one for one in self.traffic if one is not None]
        return Cost(len(sent), sum(b"FCALL" in one for one in sent), len(self.traffic) - len(sent))


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What goes to Redis from this thread from now on: others of the process look for calls that are lost, say."""
    traffic: list[bytes | None] = []
    mine, kind = threading.get_ident(), redis.connection.UnixDomainSocketConnection
    send, connect = kind.send_packed_command, kind._connect

    def sends(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == mine:
            traffic.append(b"".join(command))
        send(self, command, *args, **kwargs)

    def connects(self: Any) -> Any:
        if threading.get_ident() == mine:
            traffic.append(None)
        return connect(self)

    monkeypatch.setattr(kind, "send_packed_command", sends)
    monkeypatch.setattr(kind, "_connect", connects)
    return traffic


@pytest.fixture
def place(redis_server: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The app's broker and its results are on the one server."""
    url = f"redis+socket://{redis_server}"
    monkeypatch.setenv("MAISD_REDIS_URL", url)
    monkeypatch.setenv("MAISD_MAX_WAITING", "2")
    app = install(Celery("hits", broker=url, backend=url), read_settings())

    @llm_task(app=app, shared=False, lane="gpt", name="hits.ask")
    def ask(what: Any = None) -> Any:
        return what

    @llm_task(app=app, shared=False, lane="gpt", name="hits.traced", version=2, ignore=["trace_id"])
    def traced(what: Any = None, model: str = "small", *, trace_id: str = "", **more: Any) -> Any:
        return what

    @llm_task(app=app, shared=False, lane="gpt", name="hits.everybodys", share_across_tenants=True)
    def everybodys(what: Any = None) -> Any:
        return what

    made = Place(app, ask, redis_client, recorded(monkeypatch))
    made.lanes.beat("w", 4, 60.0, ["celery"], 60.0, [])
    yield made
    app.close()


def test_a_hit_is_one_script_and_its_result_is_there_for_everybody(place: Place) -> None:
    """Nothing is asked of Redis for the answer, by its caller; who has only the id finds it there, with its TTL."""
    place.ask.delay({"a": 1})
    place.answer_one(b'{"value": {"text": "\\u00e4 \\"}", "n": [1.5, null]}}')
    answer = {"text": 'ä "}', "n": [1.5, None]}

    cost = place.cost(lambda: place.ask.delay({"a": 1}).get(timeout=0.1))
    assert cost == Cost(exchanges=TIMES, scripts=TIMES, connections=0)

    hit = place.ask.apply_async(({"a": 1},), task_id='id of "mine"')
    assert hit.get(timeout=0.1) == answer
    stranger = place.app.AsyncResult('id of "mine"')
    assert (stranger.state, stranger.result) == ("SUCCESS", answer)
    assert stranger.date_done is not None
    left_s: Any = place.client.ttl(place.app.backend.get_key_for_task('id of "mine"'))
    assert place.app.conf.result_expires.total_seconds() - 60 < left_s <= place.app.conf.result_expires.total_seconds()
    hit.forget()
    assert place.app.AsyncResult('id of "mine"').state == "PENDING"


def test_whoever_waits_for_the_id_of_a_hit_is_told(place: Place) -> None:
    """The script publishes the result, as a worker would."""
    place.ask.delay(1)
    place.answer_one(b'{"value": 7}')
    heard = []
    with place.client.pubsub(ignore_subscribe_messages=True) as ear:
        key = place.app.backend.get_key_for_task("known before")
        ear.subscribe(key)
        assert ear.get_message(timeout=30.0) is None  # the word that it listens now
        place.ask.apply_async((1,), task_id="known before")
        message = ear.get_message(timeout=30.0)
        assert message is not None
        heard.append(place.app.backend.decode_result(message["data"])["result"])
    assert heard == [7]


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        pytest.param({"result_extended": True}, {}, id="results that hold the arguments"),
        pytest.param({"result_serializer": "yaml", "result_accept_content": ["yaml"]}, {}, id="another form"),
        pytest.param({}, {"ignore_result": True}, id="nobody wants it"),
    ],
)
def test_what_no_script_can_write_the_caller_stores(
    place: Place, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    """The result is what it would be of a call that ran."""
    place.app.conf.update(settings)
    place.ask.delay(1)
    place.answer_one(b'{"value": 7}')
    hit = place.ask.apply_async((1,), **options)
    stored = place.client.get(place.app.backend.get_key_for_task(hit.id))
    if options:
        assert (hit.get(timeout=0.1), stored) == (None, None)
    else:
        assert hit.get(timeout=120) == 7
        assert place.app.backend.decode(stored)["status"] == "SUCCESS"
        assert (place.app.backend.decode(stored).get("args") == [1]) == ("result_extended" in settings)


def test_a_refusal_keeps_its_connection(place: Place) -> None:
    """LaneFull, LaneShedding and BadInput: alone, in a group, and over a producer that was given."""

    def refused(kind: type[RateLimitWorkerError], send: Callable[[], object]) -> Callable[[], None]:
        def do() -> None:
            with pytest.raises(kind):
                send()

        return do

    def given() -> None:
        with place.app.producer_or_acquire() as producer:
            place.ask.apply_async((float("nan"),), producer=producer, cache=False)

    costs = {
        "bad": place.cost(refused(BadInput, lambda: place.ask.delay(float("nan")))),
        "bad, in a group": place.cost(refused(BadInput, lambda: group(place.ask.s(float("nan"))).apply_async())),
        "bad, over a given producer": place.cost(refused(BadInput, given)),
    }
    place.lanes.establish("gpt", {"p1": 0.0001, "d1": 1.0})
    for number in range(3):  # one goes, two wait
        place.ask.apply_async((number,), cache=False)
    costs["full"] = place.cost(refused(LaneFull, lambda: place.ask.apply_async((9,), cache=False)))
    costs["full, in a group"] = place.cost(
        refused(LaneFull, lambda: group(place.ask.s(9).set(cache=False)).apply_async())
    )
    place.lanes.set_points("gpt", {"mode": "EMERGENCY"})
    shed = {"shed_below": "high", "priority": "low"}
    costs["shed"] = place.cost(refused(LaneShedding, lambda: place.ask.apply_async((9,), **shed)))

    nothing, one = Cost(0, 0, 0), Cost(TIMES, TIMES, 0)
    assert costs == {name: nothing if name.startswith("bad") else one for name in costs}


@pytest.mark.parametrize(
    ("task", "first", "second", "same"),
    [
        pytest.param("traced", (("a",), {}), ((), {"what": "a"}), True, id="by position or by name"),
        pytest.param("traced", (("a",), {}), (("a", "small"), {}), True, id="a default given or left out"),
        pytest.param("traced", ((1, "b"), {}), ((1.0, "b"), {}), True, id="1 and 1.0"),
        pytest.param("traced", (((1, 2),), {}), (([1, 2],), {}), True, id="tuple and list"),
        pytest.param("traced", (("a",), {"trace_id": "x"}), (("a",), {"trace_id": "y"}), True, id="what is ignored"),
        pytest.param("traced", (("a",), {"n": 1}), (("a",), {}), False, id="one more by name"),
        pytest.param("traced", ((True,), {}), ((1,), {}), False, id="True and 1"),
        pytest.param("ask", (("a",), {}), (("a ",), {}), False, id="a letter"),
        pytest.param("ask", (("a",), {}), (("a",), {"_tenant": "acme"}), False, id="another tenant"),
        pytest.param("ask", (("a",), {}), (("a",), {"_context": "docs"}), False, id="another context"),
        pytest.param("ask", (("a",), {}), (("a",), {"_lane": "gpt2"}), False, id="another lane"),
        pytest.param(
            "ask",
            (("a",), {"_namespace": "n"}),
            (("a",), {"_tenant": "b", "_namespace": "n"}),
            True,
            id="one namespace",
        ),
        pytest.param("ask", (("a",), {"_tenant": "n"}), (("a",), {"_namespace": "n"}), False, id="tenant or namespace"),
        pytest.param("everybodys", (("a",), {"_tenant": "x"}), (("a",), {"_tenant": "y"}), True, id="across tenants"),
    ],
)
def test_which_calls_get_the_answer_of_another(place: Place, task: str, first: Any, second: Any, same: bool) -> None:
    """What may change the answer keeps calls apart, and nothing else does. Options begin with a `_` here."""
    named = place.app.tasks[f"hits.{task}"]

    def send(args: Any, kwargs: dict[str, Any]) -> Any:
        options = {name.removeprefix("_"): value for name, value in kwargs.items() if name.startswith("_")}
        return named.apply_async(args, {name: v for name, v in kwargs.items() if not name.startswith("_")}, **options)

    send(*first)
    place.answer_one(b'{"value": 7}')
    assert (send(*second)._cache is not None) is same


def test_a_call_says_for_itself_how_it_shares(place: Place) -> None:
    """cache=False, refresh=True, no_store=True, cache_ttl=…; also for a call that is sent by its name."""
    ask, kept = place.ask.apply_async, b'{"value": 7}'
    place.lanes.establish("gpt", dict(OPEN))

    def is_known(**options: Any) -> bool:
        return ask((1,), **options)._cache is not None

    ask((1,), no_store=True)
    place.answer_one(kept)
    assert not is_known(cache_ttl=500.0)
    place.answer_one(kept)
    (entry,) = place.client.scan_iter("rlw:cache:?" + "?" * 63)
    left_s: Any = place.client.ttl(entry)
    assert 400 < left_s <= 500
    assert is_known()
    assert not is_known(cache=False)
    place.answer_one(b'{"value": "nobody sees it"}')
    assert not is_known(refresh=True)
    place.answer_one(b'{"value": 8}')
    assert ask((1,)).get(timeout=0.1) == 8
    place.app.send_task("hits.ask", (1,), refresh=True)
    place.answer_one(b'{"value": 9}')
    assert ask((1,)).get(timeout=0.1) == 9


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache_tll": 5.0}, r"cache_tll= is no option of a call: did you mean cache_ttl=\?"),
        ({"nonsense_at_all": 1}, r"nonsense_at_all= is no option of a call$"),
        ({"cache_ttl": -1.0}, "cache_ttl"),
        ({"namespace": ""}, "namespace"),
    ],
)
def test_an_option_that_nobody_knows_is_refused(place: Place, options: dict[str, Any], told: str) -> None:
    """By the task, and by `send_task`; nothing is sent."""
    for send in (place.ask.apply_async, lambda args, **more: place.app.send_task("hits.ask", args, **more)):
        with pytest.raises(BadInput, match=told):
            send((1,), **options)
    assert place.client.zcard(keys.LEDGER) == 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"ignore": ["trace"]}, "ignore='trace': ask has no such argument"),
        ({"ignore": "what"}, "use a list of names"),
        ({"on_leader_failure": "wait"}, "use share or retry"),
        ({"namespace": ""}, "namespace"),
    ],
)
def test_a_task_is_refused_that_says_what_cannot_be(place: Place, said: dict[str, Any], told: str) -> None:
    """When it is made, and not when it is called."""

    def ask(what: str) -> str:
        return what

    with pytest.raises(BadInput, match=told):
        llm_task(app=place.app, shared=False, **said)(ask)


def test_a_canvas_that_goes_on_is_not_refused_for_an_option(place: Place) -> None:
    """A worker sends its next link, perhaps of a version that let it pass: nobody would hear of an error there."""
    running = place.app.tasks["hits.ask"]
    running.push_request(id="parent", called_directly=False)
    _task_stack.push(running)
    try:
        place.ask.apply_async((1,), parent_id="parent", nonsense_at_all=1)
        with pytest.raises(BadInput):
            place.ask.apply_async((2,), nonsense_at_all=1)
    finally:
        _task_stack.pop()
        running.pop_request()
    assert place.client.zcard(keys.LEDGER) == 1


def test_options_of_celery_and_kombu_are_known(place: Place) -> None:
    """All that its documentation names, stamps, and what a message of AMQP may carry."""
    place.ask.apply_async(
        (1,),
        countdown=0.0,
        expires=60.0,
        queue="celery",
        retry=True,
        retry_policy={"max_retries": 1},
        headers={"mine": 1},
        ignore_result=False,
        add_to_parent=False,
        time_limit=9,
        soft_time_limit=8,
        shadow="s",
        reply_to="me",
        correlation_id="c",
        stamped_headers=["stamp"],
        stamp="x",
        priority=3,
        link=place.ask.s(2),
        link_error=place.ask.s(3),
        delivery_mode=2,
        app_id="a",
        serializer="json",
    )
    assert place.client.zcard(keys.LEDGER) == 1
