"""What does each of the five switches turn off, in process and for `.delay()`, and does the rest go on?

| switch off | for `.delay()` | in process |
|---|---|---|
| ADVANCED_RATE_LIMITING | one call per RATE_LIMIT_DELAY and lane, no escalation | one per RATE_LIMIT_DELAY, no Redis |
| INTELLIGENT_CACHING | answers are kept for duplicates only | the same |
| REQUEST_DEDUPLICATION | nobody waits for the answer of another | the same |
| SMART_RETRIES | Celery's own `autoretry_for` only | what fails is raised at once |
| AUTO_ESCALATION | modes by hand only | the same |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from ratelimit_worker import wiring
from ratelimit_worker.calls import LaneLimits, Mode
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.errors import InvalidRequest, ServerError
from ratelimit_worker.flow.call.enqueue import lane_fields, limit_fields
from ratelimit_worker.flow.lane import limit, pin
from ratelimit_worker.flow.lane.decide import rules_of
from ratelimit_worker.flow.lane.limit import Change, set_limits
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.wiring import Services, services
from tests import shared_functions as shared
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet
from tests.inprocess.test_inprocess import Clock, Refused
from tests.inprocess.test_inprocess_cache import SharingPlace
from tests.lua.test_pin import Stage
from tests.shared_functions import said

ADVANCED = "MAISD_ENABLE_ADVANCED_RATE_LIMITING"
CACHING = "MAISD_ENABLE_INTELLIGENT_CACHING"
DEDUPLICATION = "MAISD_ENABLE_REQUEST_DEDUPLICATION"
RETRIES = "MAISD_ENABLE_SMART_RETRIES"
ESCALATION = "MAISD_ENABLE_AUTO_ESCALATION"

WAIT_S = 120
LANES = '{"free": {"unlimited": true}, "sick": {"unlimited": true}}'


def off(name: str, **env: str) -> Any:
    """A fleet with one switch off."""
    return fleet(**{"MAISD_LANES": LANES, "MAISD_DEDUP_WINDOW_SECONDS": "0", name: "false", **env})


def runs(made: Fleet, what: str) -> int:
    """How often the task `shared` ran with this."""
    return [said for _, said in made.stamps("shared")].count(repr(what))


def mode(lane: str) -> Mode:
    """As the lane's hash says it, once the tuner has looked at all that was seen."""
    wait_for(lambda: not services().redis.exists(f"rlw:seen:{lane}", "rlw:seen"), what="the tuner has looked")
    return services().lanes.state(lane).mode


# ── for .delay() ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
def test_advanced_off_for_delay() -> None:
    """Each lane starts a call per delay, whatever it had before, and stays NORMAL; cache and retries go on."""
    with off(ADVANCED, RATE_LIMIT_DELAY="0.25") as made:
        tasks = made.agent()
        wiring.use(read_settings())
        services().lanes.set_points("known", limit_fields(LaneLimits(unlimited=True)))
        services().redis.zadd("rlw:lanes", {"known": 1})
        made.worker("w")
        lanes, sent_at = ("known", "new", "free"), time.time()
        results = [tasks.stamp.apply_async((lane,), lane=lane) for lane in lanes for _ in range(6)]
        for result in results:
            result.get(timeout=WAIT_S)
        starts = {lane: sorted(at for at, what in made.stamps() if what == lane) for lane in lanes}
        for began in starts.values():  # a busy worker starts them later, and never sooner
            assert all(at >= sent_at + (n - 1) * 0.25 - 0.05 for n, at in enumerate(began)), (sent_at, began)
        last = min(began[-1] for began in starts.values())
        assert all(began[1] < last for began in starts.values()), "lanes wait for themselves alone"

        failing = [tasks.sick.apply_async((99, "gone"), deadline_s=4.0) for _ in range(12)]
        wait_for(lambda: len(made.stamps("gone")) >= 12, what="twelve sick answers")
        assert mode("sick") is Mode.NORMAL
        for result in failing:
            result.revoke()

        assert tasks.sick.apply_async((1, "retried"), lane="new").get(timeout=WAIT_S) == 1
        assert tasks.shared.delay("kept").get(timeout=WAIT_S) == tasks.shared.delay("kept").get(timeout=WAIT_S)
        assert runs(made, "kept") == 1


@pytest.mark.worker
@pytest.mark.parametrize(("name", "joined", "kept"), [(CACHING, True, False), (DEDUPLICATION, False, True)])
def test_sharing_off_for_delay(name: str, joined: bool, kept: bool) -> None:
    """What the switch names no longer happens, and the other goes on; so do retries."""
    with off(name) as made:
        made.worker("w")
        tasks = made.agent()
        services().lanes.set_points("shut", {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})
        both = [tasks.shared.apply_async(("x",), lane="shut") for _ in range(2)]
        services().lanes.set_points("shut", {"p1": 1000, "d1": 1000, "l1": 1000})
        for result in both:
            result.get(timeout=WAIT_S)
        assert runs(made, "x") == (1 if joined else 2)
        before = runs(made, "x")
        tasks.shared.apply_async(("x",), lane="shut").get(timeout=WAIT_S)
        assert runs(made, "x") == before + (0 if kept else 1)
        assert tasks.sick.delay(1).get(timeout=WAIT_S) == 1


@pytest.mark.worker
def test_retries_off_for_delay() -> None:
    """The first failure is final, also while the provider is known to be away; `autoretry_for` and the cache go on."""
    with off(RETRIES) as made:
        made.worker("w")
        tasks = made.agent()
        for number in range(8):
            with pytest.raises(ServerError):
                tasks.sick.delay(99, f"sick {number}").get(timeout=WAIT_S)
            assert len(made.stamps(f"sick {number}")) == 1
        assert mode("sick") is not Mode.NORMAL, "the lane learns all the same"
        assert tasks.auto.delay(2).get(timeout=WAIT_S) == 2
        assert len(made.stamps("auto")) == 3
        assert tasks.shared.delay("kept").get(timeout=WAIT_S) == tasks.shared.delay("kept").get(timeout=WAIT_S)


@pytest.mark.worker
def test_escalation_off_for_delay() -> None:
    """Twelve sick answers and no mode; retries go on, and so do modes by hand."""
    with off(ESCALATION) as made:
        made.worker("w")
        tasks = made.agent()
        failing = [tasks.sick.delay(99, "gone") for _ in range(12)]
        wait_for(lambda: len(made.stamps("gone")) >= 12, what="twelve sick answers")
        assert mode("sick") is Mode.NORMAL
        wait_for(lambda: len(made.stamps("gone")) >= 13, what="one is tried again")
        for result in failing:
            result.revoke()
        assert tasks.sick.delay(1, "retried").get(timeout=WAIT_S) == 1
        pin.pin(services().control, Mode.EMERGENCY, lane="sick", who="ada")
        assert mode("sick") is Mode.EMERGENCY


# ── in process ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def without(request: pytest.FixtureRequest) -> Iterator[SharingPlace]:
    """A broker without workers, and this process's limiter with the switch of the parameter off."""
    with off(request.param) as made:
        place = SharingPlace(made)
        yield place
        place.limiter.close()


def in_process(name: str) -> Callable[[Any], Any]:
    """The test runs in a place where this is off."""
    return pytest.mark.parametrize("without", [name], indirect=True, ids=[name.removeprefix("MAISD_ENABLE_")])


@pytest.mark.server
def test_advanced_off_in_process() -> None:
    """The delay, then the call, once, for functions and coroutines alike; nothing of it touches Redis."""
    with off(ADVANCED, RATE_LIMIT_DELAY="0.5") as made:
        clock = Clock()

        async def sleep(seconds: float) -> None:
            clock.sleep(seconds)

        limiter = AdvancedRateLimiter(wiring.use(read_settings()), clock=clock, sleep=clock.sleep, sleep_async=sleep)
        assert limiter.make_rate_limited_call(shared.ask, args=("f",)) == ["f", 1]
        assert limiter.make_rate_limited_call(shared.ask, args=("f",)) == ["f", 2]
        assert asyncio.run(limiter.make_rate_limited_call(shared.ask_async, args=("c",))) == ["c", 1]
        with pytest.raises(InvalidRequest):
            limiter.make_rate_limited_call(shared.refused, args=("r",))
        assert clock.slept == [0.5] * 4
        assert not limiter.is_enabled()
        assert made.valkey.client.keys("rlw:*") == []


@pytest.mark.server
@in_process(CACHING)
def test_caching_off_in_process(without: SharingPlace) -> None:
    """A call after the answer is made again; one that comes before it joins; retries go on."""
    assert [without.call(shared.ask, "again")[1] for _ in range(2)] == [1, 2]
    joined = without.together(shared.ask, "joined", 0.5)
    assert [call.result() for call in joined] == [["joined", 1]] * 2
    assert without.call(fails_first(1)) == "at last"


@pytest.mark.server
@in_process(DEDUPLICATION)
def test_deduplication_off_in_process(without: SharingPlace) -> None:
    """Two at once are two; a kept answer stands for a third; retries go on."""
    for call in without.together(shared.ask, "at once", 0.5):
        call.result()
    assert len(said("at once")) == 2
    without.call(shared.ask, "at once", 0.5)
    assert len(said("at once")) == 2
    assert without.counter("joined") == 0
    assert without.call(fails_first(1)) == "at last"


@pytest.mark.server
@in_process(RETRIES)
def test_retries_off_in_process(without: SharingPlace) -> None:
    """The first failure is raised as it is, with a note; refusals and a sick provider too. The cache goes on."""

    def busy() -> None:
        raise Refused

    with pytest.raises(Refused) as caught:
        without.call(busy)
    assert "rate_limited" in caught.value.__notes__[0]
    tries: list[int] = []
    for _ in range(8):
        with pytest.raises(ServerError):
            without.call(fails_first(99, tries), lane="sick")
    assert len(tries) == 8
    assert [without.call(shared.ask, "kept", lane="sick", priority="high") for _ in range(2)] == [["kept", 1]] * 2


@pytest.mark.server
@in_process(ESCALATION)
def test_escalation_off_in_process(without: SharingPlace) -> None:
    """Twelve sick answers and no mode: each call has its six tries. Modes by hand and the cache go on."""
    tries: list[int] = []
    for _ in range(2):
        with pytest.raises(ServerError):
            without.call(fails_first(99, tries), lane="sick")
    assert len(tries) == 12
    assert mode("sick") is Mode.NORMAL
    without.limiter.set_mode("emergency", lane="sick")
    assert mode("sick") is Mode.EMERGENCY
    assert [without.call(shared.ask, "kept") for _ in range(2)] == [["kept", 1]] * 2


def fails_first(times: int, tries: list[int] | None = None) -> Callable[[], str]:
    """A provider that is sick so often."""
    made = [] if tries is None else tries
    first = len(made)

    def call() -> str:
        made.append(1)
        if len(made) - first <= times:
            raise ServerError("HTTP 500", 500)
        return "at last"

    return call


# ── lanes that were there before the switch was turned ───────────────────────────────────────────────────────────────


@pytest.mark.server
def test_known_lanes_follow_the_switch(redis_client: redis.Redis) -> None:
    """Off: one call per delay; another delay: that one; on: what they had. A slower rate of a person's stays."""
    stage = Stage(redis_client)
    on = Settings()
    slow, slower = (
        Settings(enable_advanced_rate_limiting=False, rate_limit_delay=delay, sources={}) for delay in (0.5, 2.0)
    )
    told = {
        "free": LaneLimits(unlimited=True),
        "own": LaneLimits(rpm=6, tpm=9000, concurrency=3),
        "fixed": LaneLimits(rpm=600, adaptive=False),
        "learns": LaneLimits(),
    }
    for lane, limits in told.items():
        stage.lanes.set_points(lane, {"schema": 1, **limit_fields(limits)})
        stage.client.zadd("rlw:lanes", {lane: 1})

    def pace(lane: str) -> float | None:
        fields = stage.lanes.fields(lane)
        return None if fields.get("unlimited") == b"1" else float(fields["p1"]) * 60

    def turn(settings: Settings) -> int:
        control = replace(stage.control, rules=rules_of(settings))
        return limit.at_start(control, settings)

    assert turn(on) == 0
    assert turn(slow) == 4
    assert {lane: pace(lane) for lane in told} == {"free": 120, "own": 6, "fixed": 120, "learns": 120}
    assert turn(slow) == 0
    assert turn(slower) == 4
    assert {lane: pace(lane) for lane in told} == {"free": 30, "own": 6, "fixed": 30, "learns": 30}
    assert stage.lanes.fields("own")["escalates"] == b"0"
    set_limits(stage.control, "fixed", Change(concurrency=2), LaneLimits())
    assert turn(on) == 4
    assert {lane: stage.lanes.state(lane).told.limits for lane in told} == told
    assert "escalates" not in stage.lanes.fields("own")
    assert turn(on) == 0


def test_a_new_lane_is_told_with_its_first_call() -> None:
    """Also one that MAISD_LANES frees; without a delay a lane that nobody limits has no pace."""
    made = Settings(
        enable_advanced_rate_limiting=False, rate_limit_delay=0.5, lanes={"free": LaneLimits(unlimited=True)}
    )
    assert lane_fields(made, "free")["p1"] == lane_fields(made, "new")["p1"] == 2.0
    assert lane_fields(made, "free")["adaptive"] == 0
    none = Settings(enable_advanced_rate_limiting=False, rate_limit_delay=0.0)
    assert lane_fields(none, "new")["unlimited"] == 1


def test_services_are_built_from_settings() -> None:
    """The switch that the law needs is in its rules."""
    rules = Services(Settings(enable_advanced_rate_limiting=False), "redis://nowhere").control.rules
    assert not rules.thresholds.escalates
