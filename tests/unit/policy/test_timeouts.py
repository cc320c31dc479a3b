"""How long an attempt may take: by what a person says, by what was learned, and at a server that never answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest
import redis

from ratelimit_worker import timeout_s
from ratelimit_worker.calls import Attempt, Category, Outcome, Timeouts, within
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, ConfigurationError
from ratelimit_worker.flow.call.enqueue import Kind, Said, plan, timeout_told_s
from ratelimit_worker.flow.duty.record import learn_latencies
from ratelimit_worker.inprocess.limiter import AdvancedRateLimiter
from ratelimit_worker.policy.timeout import Latencies, Sample, key, learn, learned_s, p99_s, timeouts
from ratelimit_worker.providers import openai
from ratelimit_worker.stores.usage import LatencyMemory
from ratelimit_worker.wiring import Services
from tests.builders import attempt
from tests.dead_server import Dead

NOW_S = 1_000_000.0
LATER_S = NOW_S + 700.0  #: when no slow answer is a witness any more


def history(*latencies_s: float, at_s: float = NOW_S, known: Latencies | None = None) -> Latencies:
    return learn(known, [Sample(latency_s=latency, at=at_s) for latency in latencies_s])


# ── what is learned ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_p99_is_told_from_enough_answers() -> None:
    """At most a bucket (a fifth) too high, and of fewer than twenty answers none."""
    assert p99_s(None) is None
    assert p99_s(history(*[1.0] * 19)) is None
    assert p99_s(history(*[1.0] * 21)) == pytest.approx(1.0, rel=0.2)
    latencies = [0.1 * n for n in range(1, 1001)]  # 0.1 to 100 s
    p99 = p99_s(history(*latencies))
    assert p99 is not None
    assert 98.0 <= p99 <= 100.0 * 1.2


@pytest.mark.parametrize("latency_s", [0.0, 1e-9, 0.1, 599.9, 1e9, float("inf")])
def test_no_latency_breaks_the_histogram(latency_s: float) -> None:
    """It has 53 buckets, whatever comes."""
    known = history(*[latency_s] * 30)
    assert len(known.weights) == 1
    assert 0 <= next(iter(known.weights)) <= 52


def test_old_answers_are_forgotten() -> None:
    """A model that has become faster is known to be so after some thousand answers; the memory stays bounded."""
    slow = history(*[60.0] * 1000)
    fast = history(*[1.0] * 8000, known=slow)
    assert p99_s(fast) == pytest.approx(1.0, rel=0.2)
    assert sum(fast.weights.values()) <= 1001


@pytest.mark.parametrize(
    ("known", "now_s", "most_tokens", "expected"),
    [
        pytest.param(None, NOW_S, None, 600.0, id="nothing is known"),
        pytest.param(None, NOW_S, 100, 140.0, id="... but how much may come back"),
        pytest.param(None, NOW_S, 1_000_000, 600.0, id="... which may be much"),
        pytest.param(history(*[0.5] * 50), LATER_S, None, 30.0, id="fast: never less than 30 s"),
        pytest.param(history(*[0.5] * 50), LATER_S, 100_000, 30.0, id="what is learned says more than a maximum"),
        pytest.param(history(*[10.0] * 50), LATER_S, None, 4 * 10.0, id="4 times the p99"),
        pytest.param(history(*[400.0] * 50), LATER_S, None, 600.0, id="never more than 600 s"),
        pytest.param(history(*[0.5] * 999, 100.0), NOW_S, None, 150.0, id="a slow answer is a witness"),
        pytest.param(history(*[0.5] * 999, 100.0), LATER_S, None, 30.0, id="... for ten minutes"),
    ],
)
def test_what_is_allowed_for_an_answer(
    known: Latencies | None, now_s: float, most_tokens: int | None, expected: float
) -> None:
    """Between 30 and 600 s, by the p99."""
    assert learned_s(known, now_s, most_tokens) == pytest.approx(expected, rel=0.2)


def test_a_provider_that_became_slower_is_found_out() -> None:
    """While all attempts time out the bound grows with the time that this has gone on, so that an answer gets through,
    and stays wide enough for the next; an answer ends the growth."""
    hanging = learn(
        history(*[0.5] * 999), [Sample(latency_s=30.0, at=NOW_S + 30 * n, answered=False) for n in range(3)]
    )
    assert hanging.hanging_since == NOW_S
    assert learned_s(hanging, NOW_S + 100.0) == 30.0
    assert learned_s(hanging, NOW_S + 400.0) == 100.0
    assert learned_s(hanging, NOW_S + 1e6) == 600.0
    answered = learn(hanging, [Sample(latency_s=90.0, at=NOW_S + 400.0)])
    assert answered.hanging_since == 0.0
    assert learned_s(answered, NOW_S + 500.0) == pytest.approx(135.0)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"known": history(*[0.5] * 50)}, Timeouts(connect_s=10.0, first_byte_s=30.0, whole_s=30.0)),
        ({"told_s": 2.0}, Timeouts(connect_s=2.0, first_byte_s=2.0, whole_s=2.0)),
        ({"told_s": 7200.0}, Timeouts(connect_s=10.0, first_byte_s=7200.0, whole_s=7200.0)),
        ({"told_s": 2.0, "tries": 3}, Timeouts(connect_s=2.0, first_byte_s=2.0, whole_s=2.0)),
        ({"known": history(*[0.5] * 50), "tries": 2}, Timeouts(connect_s=10.0, first_byte_s=120.0, whole_s=120.0)),
        ({"known": history(*[0.5] * 50), "tries": 9}, Timeouts(connect_s=10.0, first_byte_s=600.0, whole_s=600.0)),
        ({"left_s": 5.0}, Timeouts(connect_s=5.0, first_byte_s=5.0, whole_s=5.0, by_deadline=True)),
        ({"told_s": 60.0, "left_s": 50.0}, Timeouts(connect_s=10.0, first_byte_s=50.0, whole_s=50.0)),
        ({"known": history(*[60.0] * 50), "left_s": 50.0}, Timeouts(first_byte_s=50.0, whole_s=50.0, by_deadline=True)),
        ({"told_s": 2.0, "left_s": 5.0}, Timeouts(connect_s=2.0, first_byte_s=2.0, whole_s=2.0)),
        ({"left_s": -1.0}, Timeouts(connect_s=0.001, first_byte_s=0.001, whole_s=0.001, by_deadline=True)),
    ],
)
def test_the_time_outs_of_an_attempt(more: dict[str, Any], expected: Timeouts) -> None:
    """What a person says is held, what is learned doubles with each try, and the deadline bounds both."""
    given: dict[str, Any] = {"told_s": None, "known": None, "now_s": LATER_S, "left_s": 86_400.0, **more}
    assert timeouts(**given) == expected


def test_answers_and_time_outs_are_learned_from_rows(redis_client: redis.Redis) -> None:
    """By task and model, or the lane where no model is known; what else failed teaches nothing."""
    redis_client.flushall()
    memory = LatencyMemory(redis_client)

    def row(outcome: Outcome, took_s: float, category: Category | None = None, model: str | None = "m") -> Attempt:
        more: dict[str, Any] = {"lane": "l", "task": "t", "category": category, "asked_model": model}
        return attempt(outcome=outcome, finished_at=NOW_S + took_s, took_s=took_s, **more)

    rows = [row(Outcome.ANSWERED, 2.0)] * 20
    rows += [row(Outcome.RETRIED, 30.0, Category.TIMEOUT), row(Outcome.FAILED, 500.0, Category.SERVER_ERROR)]
    rows += [row(Outcome.ANSWERED, 9.0, model=None), row(Outcome.ANSWERED, 500.0, Category.OVERLOADED)]
    assert learn_latencies(memory, rows) == 22
    known = memory.read([key("t", "m", "l"), key("t", None, "l"), "else"])
    assert set(known) == {"t\nm", "t\nl"}
    assert p99_s(known["t\nm"]) == pytest.approx(2.0, rel=0.2)
    assert known["t\nm"].hanging_since == NOW_S + 30.0
    assert (known["t\nl"].slowest_s, known["t\nl"].hanging_since) == (9.0, 0.0)
    assert 0 < redis_client.ttl("rlw:latencies") <= 30 * 86_400


# ── what a person says ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 86_401, True, "9"])
def test_nonsense_is_refused(seconds: Any) -> None:
    """Of a call and of a task, when the call is made."""
    settings = read_settings({})
    with pytest.raises(BadInput, match="timeout_s"):
        plan(Kind(), (), {}, settings, Said(timeout_s=seconds), now=NOW_S)
    with pytest.raises(BadInput, match="timeout_s"):
        plan(Kind(timeout_s=seconds), (), {}, settings, now=NOW_S)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", "86401"])
def test_settings_that_cannot_be_are_refused(text: str) -> None:
    """With the name and the fix."""
    with pytest.raises(ConfigurationError, match=r"MAISD_TIMEOUT_SECONDS=.*above 0"):
        read_settings({"MAISD_TIMEOUT_SECONDS": text})
    with pytest.raises(ConfigurationError, match=r"lane 'a': timeout_s=.*above 0"):
        read_settings({"MAISD_LANES": f'{{"a": {{"timeout_s": "{text}"}}}}'})


def test_call_then_task_then_lane_then_all() -> None:
    """The nearest word holds."""
    settings = read_settings({"MAISD_TIMEOUT_SECONDS": "40", "MAISD_LANES": '{"a": {"timeout_s": 30}, "b": {}}'})
    assert [timeout_told_s(settings, lane) for lane in ("a", "b", "c")] == [30.0, 40.0, 40.0]
    assert timeout_told_s(read_settings({}), "a") is None
    assert plan(Kind(timeout_s=20), (), {}, settings, now=NOW_S).timeout_s == 20.0
    assert plan(Kind(timeout_s=20), (), {}, settings, Said(timeout_s=10), now=NOW_S).timeout_s == 10.0
    assert plan(Kind(), (), {}, settings, now=NOW_S).timeout_s is None


# ── at a server ──────────────────────────────────────────────────────────────────────────────────────────────────────


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.fixture
def dead() -> Iterator[Callable[..., Dead]]:
    made: list[Dead] = []

    def make(head: bytes = b"", drip: bytes | None = None) -> Dead:
        made.append(Dead(head, drip))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        pytest.param(b"", None, id="never answers"),
        pytest.param(HEAD, b"x-more: 1\r\n", id="headers without end"),
        pytest.param(HEAD + b"content-length: 100000\r\n\r\n", None, id="silent after the headers"),
        pytest.param(HEAD + b"content-length: 100000\r\n\r\n", b" ", id="a body that drips"),
    ],
)
def test_no_answer_outlives_its_attempt(dead: Callable[..., Dead], head: bytes, drip: bytes | None) -> None:
    """What never ends is ended when the attempt is over, and counts as a time-out."""
    to = openai.endpoint({"OPENAI_BASE_URL": dead(head, drip).url, "OPENAI_API_KEY": "k"})
    began = time.monotonic()
    with within(Timeouts(connect_s=0.3, first_byte_s=0.3, whole_s=0.3)), pytest.raises(httpx.TimeoutException):
        openai.request(to, "/chat/completions", {})
    assert 0.25 <= time.monotonic() - began < 5.0


def test_a_second_request_has_what_the_first_left(dead: Callable[..., Dead]) -> None:
    """The bound is the attempt's, not the request's; a function of one's own can ask for what is left."""
    to = openai.endpoint({"OPENAI_BASE_URL": dead().url, "OPENAI_API_KEY": "k"})
    assert timeout_s() == 600.0
    with within(Timeouts(connect_s=0.2, first_byte_s=0.2, whole_s=0.2)):
        assert 0.0 < timeout_s() <= 0.2
        for _ in range(2):
            with pytest.raises(httpx.TimeoutException):
                openai.request(to, "/chat/completions", {})
        assert timeout_s() == 0.001
    assert timeout_s() == 600.0


def test_a_call_in_process_is_bounded_alike() -> None:
    """Without any lane the caller's own word holds; the function asks for it."""
    app_free = Services(read_settings({"MAISD_TIMEOUT_SECONDS": "50", "RATE_LIMIT_DELAY": "0"}))
    limiter = AdvancedRateLimiter(app_free)
    assert round(limiter.make_rate_limited_call(timeout_s)) == 50
    assert round(limiter.make_rate_limited_call(timeout_s, timeout_s=20)) == 20
    with pytest.raises(BadInput, match="timeout_s"):
        limiter.make_rate_limited_call(timeout_s, timeout_s=0)
