"""Ten thousand lanes by accident: they are refused in time, forgotten when idle, and cost the others nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from msgspec.structs import replace

from ratelimit_worker.calls import LaneLimits, Mode
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.call import US
from ratelimit_worker.contracts.lane import MOST_LANES, Write
from ratelimit_worker.errors import LanesFull
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.limit import Change, at_start, set_limits
from ratelimit_worker.flow.lane.pin import auto, lane_fields, pin
from ratelimit_worker.flow.lane.tune import BATCH, MANY_LANES, MOST_BATCHES, MOST_LOOKED_AT
from ratelimit_worker.policy.modes import ALL, Pin
from ratelimit_worker.reports.doctor import Code, judge_number
from ratelimit_worker.reports.live import cluster_state
from ratelimit_worker.reports.tables import lanes_table, status_table
from ratelimit_worker.stores import keys, live
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.pins import Pins
from tests.builders import entry
from tests.lua.test_pin import PACED, Stage

pytestmark = pytest.mark.server

MANY = 1_000
DAY_S = 86_400.0


@pytest.fixture
def stage(redis_client: redis.Redis) -> Stage:
    made = Stage(redis_client)
    made.worker()
    return made


def make(stage: Stage, number: int, **more: Any) -> None:
    """So many idle lanes, as their first calls have left them."""
    flat: list[Any] = [part for pair in {**limit_fields(LaneLimits()), **more}.items() for part in pair]
    stage.lanes.run.each("establish", [(f"user-{n}", *flat) for n in range(number)])
    stage.client.delete(keys.SEEN)


def turns(stage: Stage, number: int) -> None:
    for _ in range(number):
        stage.advance(0.1)
        stage.tune()


def commands(client: redis.Redis) -> int:
    """Commands that the server has run, those of scripts included."""
    return sum(int(told["calls"]) for name, told in client.info("commandstats").items() if name != "cmdstat_info")


# ── how many there may be ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_lane_beyond_the_bound_is_refused(stage: Stage) -> None:
    """The error names lane and setting, and nothing is stored; known lanes and configured ones go on."""
    settings = read_settings({"MAISD_MAX_LANES": "3", "MAISD_LANES": '{"told": {"rpm": 60}}'})

    def send(ref: str, lane: str) -> None:
        stage.lanes.enqueue(entry(ref, lane=lane, lane_fields=lambda: lane_fields(stage.control, settings, lane)))

    for n in range(3):
        send(f"first-{n}", f"user-{n}")
    before = set(stage.client.scan_iter())
    with pytest.raises(LanesFull, match="'user-3' is new, and there are MAISD_MAX_LANES lanes already") as refused:
        send("refused", "user-3")
    assert "\n" not in str(refused.value)
    assert set(stage.client.scan_iter()) - before <= {b"rlw:counters"}
    assert stage.lanes.counters()["refused_lanes"] == 1
    send("again", "user-0")
    send("configured", "told")
    assert stage.lanes.names() == ["told", "user-0", "user-1", "user-2"]
    assert stage.lanes.fields("told")["configured"] == b"1"
    assert MOST_LANES not in stage.lanes.fields("user-0")


def test_no_bound_and_the_default() -> None:
    """0 is no bound; 10,000 where nobody says it."""
    assert read_settings({}).max_lanes == 10_000
    assert read_settings({"MAISD_MAX_LANES": "0"}).max_lanes == 0


def test_doctor_says_when_there_are_nearly_too_many() -> None:
    """And how many lanes it has not looked at."""
    assert list(judge_number(50, 0, 10_000)) == []
    (near,) = judge_number(9_000, 0, 10_000)
    assert (near.code, "9,000 of at most 10,000 (MAISD_MAX_LANES)" in near.says) == (Code.FINE, True)
    full, unseen = judge_number(10_000, 9_800, 10_000)
    assert full.code == Code.FAILED
    assert unseen.says.startswith("9,800 of 10,000 lanes")
    assert [found.says for found in judge_number(50_000, 0, 0)] == []


# ── how long they stay ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_lane_goes_after_a_day_and_comes_back_with_a_call(stage: Stage) -> None:
    """Its keys too; whoever remembers it makes it anew."""
    stage.put(1, "user-0", LaneLimits())
    stage.pump()
    stage.work()
    stage.live(60)
    stage.client.delete(keys.SEEN)
    stage.advance(DAY_S - 4_000)
    stage.lanes.sweep(30)
    stage.lanes.sweep(30)
    assert stage.lanes.names() == ["user-0"]
    stage.advance(8_000)
    for _ in range(4):
        stage.advance(10)
        stage.lanes.sweep(30)
    assert stage.lanes.names() == []
    assert not list(stage.client.scan_iter("*user-0*"))
    stage.beat("w")
    stage.put(1, "user-0", LaneLimits())
    stage.pump()
    assert stage.work() == 1


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        ("configured", {"configured": 1}),
        ("a rate was told", {"rpm": 60}),
        ("a bound was told", {"cap": 3}),
        ("a quota or parents", {"bounds": '{"rpd": 5}'}),
        ("it is a parent", {"shared": 1}),
        ("no pace was told", {"unlimited": 1}),
        ("halted", {"mode": "HALT"}),
        ("it has learned", {"c1": 100}),
    ],
)
def test_what_somebody_said_or_a_lane_has_learned_stays(stage: Stage, why: str, fields: Any) -> None:
    """For 30 days, as before; a neighbour without it goes."""
    make(stage, 2)
    stage.client.hset("rlw:lane:user-1", mapping=fields)
    stage.advance(DAY_S + 4_000)
    for _ in range(4):
        stage.advance(10)
        stage.lanes.sweep(30)
    assert stage.lanes.names() == ["user-1"], why


def test_waiting_calls_and_pins_keep_a_lane(stage: Stage) -> None:
    """However long nothing has moved in it."""
    make(stage, 3, p1=0)
    stage.lanes.enqueue(entry("waits", lane="user-0", deadline_in_s=10 * DAY_S))
    pin(stage.control, Mode.HALT, lane="user-1", who="me", now=stage.now)
    stage.client.zadd(keys.LANES, {f"user-{n}": stage.now_us for n in range(3)})
    stage.client.hset("rlw:lane:user-1", "mode", "NORMAL")
    stage.advance(DAY_S + 4_000)
    for _ in range(4):
        stage.advance(10)
        stage.lanes.sweep(30)
    assert stage.lanes.names() == ["user-0", "user-1"]


def test_limits_set_marks_a_lane_as_configured(stage: Stage) -> None:
    """Whatever it sets."""
    make(stage, 1)
    set_limits(stage.control, "user-0", Change(adaptive=True, rpm=0), LaneLimits(), {})
    assert stage.lanes.fields("user-0")["configured"] == b"1"


def test_all_lanes_go_in_turn_though_others_go_before_them(stage: Stage) -> None:
    """The audit goes by rank, which moves when lanes go."""
    make(stage, MANY)
    stage.advance(DAY_S + 4_000)
    for _ in range(2 * MANY // 200 + 4):
        stage.advance(10)
        stage.lanes.sweep(30)
    assert stage.lanes.names() == []


# ── what they cost ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("pinned", [False, True])
def test_duties_cost_the_same_beside_idle_lanes(stage: Stage, pinned: bool) -> None:
    """Tuner, pump, sweep and beat run no command more for a thousand lanes in which nothing happens."""

    def cost() -> int:
        if pinned:
            pin(stage.control, Mode.REDUCED, who="me", now=stage.now)
            stage.told()
        turns(stage, 3 * MANY // MOST_LOOKED_AT)  # the walk that brings the pin to them, or a new holder's first
        for _ in range(8):
            stage.lanes.sweep(30)
        before = commands(stage.client)
        for _ in range(10):
            stage.put(1, "busy")
            turns(stage, 1)
            stage.beat("w")
            stage.pump()
            stage.work()
        return commands(stage.client) - before

    few = cost()
    if pinned:
        auto(stage.control, who="me", now=stage.now)
    make(stage, MANY)
    turns(stage, 3)
    assert cost() <= few * 1.2


@pytest.mark.long
def test_a_turn_looks_at_some_of_very_many(stage: Stage) -> None:
    """A thousand new lanes at once are looked at in turn, not all ten times a second."""
    make(stage, MANY)
    stage.client.sadd(keys.SEEN, *(f"user-{n}" for n in range(MANY)))
    looked: set[str] = set()
    take = stage.lanes.take

    def counted(*args: Any, **more: Any) -> Any:
        taken = take(*args, **more)
        assert taken is not None
        names = [view.lane for view in taken[1]]
        assert len(names) <= MOST_LOOKED_AT * 2 + 50
        looked.update(names)
        return taken

    stage.lanes.take = counted  # type: ignore[method-assign]
    turns(stage, 60)
    assert len(looked) == MANY


def with_news(stage: Stage, lanes: list[str]) -> None:
    """Each of these lanes was answered."""
    with stage.client.pipeline() as pipe:
        for lane in lanes:
            pipe.hset(keys.lane(lane), "goods", 1)
        pipe.sadd(keys.SEEN, *lanes)
        pipe.execute()


def test_all_news_of_a_turn_is_read_and_written_in_batches(stage: Stage) -> None:
    """400 lanes with news: all are looked at in one turn, by some scripts for many lanes each."""
    make(stage, 400)
    with_news(stage, [f"user-{n}" for n in range(400)])
    stage.advance(0.1)
    stage.client.config_resetstat()
    assert stage.tuner.turn("tuner") == 400
    assert not stage.tuner.behind
    scripts = int(stage.client.info("commandstats")["cmdstat_fcall"]["calls"])
    assert scripts <= 2 * 400 // BATCH + 4
    assert all(stage.lanes.state(f"user-{n}").memory.law for n in range(400))


def test_a_refused_lane_is_looked_at_before_all_others(stage: Stage) -> None:
    """Of more lanes with news than a turn takes, the one that needs it is in the first batch; the others come next."""
    many = BATCH * MOST_BATCHES + 100
    make(stage, many)
    with_news(stage, [f"user-{n}" for n in range(many)])
    stage.put(1, "refused")
    tag, begun = stage.begin()
    assert begun.state == "go"
    stage.settle(tag, lane="refused", verdict="refused", gate_s=1.0)
    assert stage.client.smembers(keys.URGENT) == {b"refused"}
    taken: list[list[str]] = []
    take = stage.lanes.take

    def noted(*args: Any, **more: Any) -> Any:
        found = take(*args, **more)
        assert found is not None
        taken.append([view.lane for view in found.lanes])
        return found

    stage.lanes.take = noted  # type: ignore[method-assign]
    stage.tune()
    assert taken[0][0] == "refused"
    assert stage.tuner.behind
    stage.tune()
    assert not stage.tuner.behind
    assert {lane for some in taken for lane in some} >= {f"user-{n}" for n in range(many)}


def test_one_lane_that_cannot_be_written_keeps_no_other_from_it(stage: Stage) -> None:
    """The error is raised when all the others are written."""
    make(stage, 3)
    stage.client.delete(keys.lane("user-1"))
    stage.client.set(keys.lane("user-1"), "not a hash")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        stage.lanes.set_points_of({f"user-{n}": Write(0, {"p1": 7.0}) for n in range(3)})
    stage.client.delete(keys.lane("user-1"))
    assert [stage.lanes.fields(f"user-{n}")["p1"] for n in (0, 2)] == [b"7.0", b"7.0"]


def test_what_the_law_remembers_is_written_without_a_look_at_the_calls(stage: Stage) -> None:
    """Where no set-point changes nothing is reckoned or released: two commands; a lane that has gone stays away."""
    make(stage, 1)
    stage.client.config_resetstat()
    stage.lanes.set_points_of({"user-0": Write(0, {"law": b"x", "health": ""})})
    stats = stage.client.info("commandstats")
    assert sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("hmget", "hset")) == 1
    assert stage.lanes.fields("user-0")["law"] == b"x"


@pytest.mark.parametrize(
    ("find", "page", "first", "count"),
    [
        ("", 0, "a-halted", 4),
        ("", 1, "user-1", 4),
        ("", 99, "user-5", 2),
        ("USER-", 0, "user-0", 4),
        ("none", 0, "", 0),
    ],
)
def test_pages_of_lanes_have_the_troubled_and_the_busy_first(
    stage: Stage, find: str, page: int, first: str, count: int
) -> None:
    """Fours of ten lanes; a part of a name in any letters; beyond the last page is the last."""
    make(stage, 7)
    stage.put(1, "busy", limits=LaneLimits())
    make_one = [part for pair in limit_fields(LaneLimits()).items() for part in pair]
    stage.lanes.run("establish", ("a-halted", *make_one))
    stage.lanes.run("establish", ("z-pinned", *make_one))
    stage.client.hset(keys.lane("a-halted"), "mode", "HALT")
    pin(stage.control, Mode.NORMAL, lane="z-pinned", who="me", now=stage.now)
    now = Live(stage.client, time_us=stage.now_us).now(most=4, find=find, page=page)
    names = [lane.lane for lane in now.lanes]
    assert len(names) == count
    assert names[:1] == ([first] if first else [])
    if not find and page == 0:
        assert names == ["a-halted", "z-pinned", "busy", "user-0"]
    assert sum(now.modes.values()) == {"": 10, "USER-": 7, "none": 0}[find]


def test_status_and_lanes_show_a_bounded_number(stage: Stage) -> None:
    """The strict, the pinned, the working and the recent; how many are not shown is said, all counted by mode."""
    make(stage, MANY)
    stage.client.hset("rlw:lane:user-7", "mode", "HALT")
    pin(stage.control, Mode.REDUCED, lane="user-8", who="me", now=stage.now)
    stage.put(3, "busy")
    now = Live(stage.client, time_us=stage.now_us).now()
    shown = {lane.lane for lane in now.lanes}
    assert len(shown) == live.MOST_LANES
    assert {"user-7", "user-8", "busy"} <= shown
    assert now.left_out == MANY + 1 - live.MOST_LANES
    assert now.modes == {"HALT": 1, "REDUCED": 1, "NORMAL": MANY - 1}
    state = cluster_state(now, None)
    for text in (status_table(state), lanes_table(state)):
        assert "901 lanes more, used less of late (of all: 1 HALT, 999 NORMAL, 1 REDUCED); --find" in text
        assert text.count("user-") <= live.MOST_LANES + 2
    assert len(Live(stage.client, time_us=stage.now_us).now(most=None).lanes) == MANY + 1
    assert [lane.lane for lane in Live(stage.client).now(["user-9"]).lanes] == ["user-9"]


def commands_of(stage: Stage, look: Callable[[], object]) -> int:
    """How many commands the server runs for a look, those of its scripts too."""
    before = commands(stage.client)
    look()
    return commands(stage.client) - before


@pytest.mark.parametrize("page", [0, 2, 99])
def test_lanes_that_are_ranked_some_at_a_time_are_in_the_order_of_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """The server leaves out what comes after those that it has named already; the page is the same."""
    make(stage, 300)
    for number in range(0, 300, 7):
        stage.client.hset(keys.lane(f"user-{number}"), "mode", ("REDUCED", "HALT")[number % 2])
    stage.put(2, "busy")
    stage.put(2, "émoji-🦜")
    looks = Live(stage.client, time_us=stage.now_us)
    whole = looks.now(most=20, page=page)
    monkeypatch.setattr(live, "_RANKED", 10)
    parts = looks.now(most=20, page=page)
    assert [lane.lane for lane in parts.lanes] == [lane.lane for lane in whole.lanes]
    assert (parts.modes, parts.skipped) == (whole.modes, whole.skipped)


def test_who_looks_again_and_again_keeps_the_order_of_very_many_lanes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look asks of the lanes that it shows alone, and shows how they stand; a change looks anew."""
    monkeypatch.setattr(live, "MANY_LANES", 99)
    make(stage, 200)
    looks = Live(stage.client, time_us=stage.now_us, order_for_s=3_600.0)
    first = commands_of(stage, lambda: looks.now(most=5))
    stage.client.hset(keys.lane("user-0"), "mode", "HALT")
    stage.client.hset(keys.lane("user-9"), "mode", "HALT")
    again = commands_of(stage, lambda: looks.now(most=5))
    assert first - again >= 2 * 200, "no lane is ranked"
    seen = looks.now(most=5)
    assert [lane.lane for lane in seen.lanes][:2] == ["user-0", "user-1"]
    assert seen.lanes[0].state.mode is Mode.HALT, "how it stands is read at each look"
    looks.forget_order()
    assert [lane.lane for lane in looks.now(most=5).lanes][:2] == ["user-0", "user-9"]


def test_few_lanes_are_ranked_at_each_look(stage: Stage) -> None:
    """That costs little, and a lane that halts comes first at once."""
    make(stage, 20)
    looks = Live(stage.client, time_us=stage.now_us, order_for_s=3_600.0)
    looks.now(most=5)
    stage.client.hset(keys.lane("user-9"), "mode", "HALT")
    assert looks.now(most=5).lanes[0].lane == "user-9"


def test_a_look_is_the_same_over_both_protocols(stage: Stage) -> None:
    """Maps and pairs come as flat lists from a server that is asked in RESP 2."""
    stage.put(3, "busy")
    looks = []
    for protocol in (2, 3):
        pool = stage.client.connection_pool
        options = {**pool.connection_kwargs, "protocol": protocol}
        client = redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **options))
        looks.append(Live(client, time_us=stage.now_us).now())
        client.close()
    assert looks[0].lanes == looks[1].lanes
    assert looks[0].lanes[0].ready + looks[0].lanes[0].waiting == 3


# ── commands over all of them ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_a_pin_of_all_lanes_holds_in_each_and_is_told_once(stage: Stage) -> None:
    """In those with calls at once, in the idle ones some at a time, in later ones from their first call."""
    make(stage, MANY)
    stage.put(1, "busy")
    stage.tune()
    stage.told()
    changes = pin(stage.control, Mode.EMERGENCY, who="me", for_s=60, now=stage.now)
    assert {change.lane for change in changes} == {"busy", *(f"user-{n}" for n in range(MANY))}
    assert all(stage.lanes.state(name).mode is Mode.EMERGENCY for name in stage.lanes.names())
    assert sorted(change.lane for change in stage.told()) == [ALL, "busy"]
    turns(stage, 3)
    assert stage.told() == []
    stage.advance(60)
    turns(stage, 3 * MANY // MOST_LOOKED_AT)
    assert all(stage.lanes.state(name).mode is Mode.NORMAL for name in stage.lanes.names())
    assert stage.control.pins.read() == {}
    ended = stage.told()
    assert (ALL, Mode.EMERGENCY, Mode.NORMAL) in [(told.lane, told.from_mode, told.to_mode) for told in ended]
    assert {told.lane for told in ended} <= {ALL, "busy"}


@pytest.mark.long
def test_very_many_idle_lanes_are_left_to_the_tuner(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command costs what the lanes with calls cost; the others follow some a turn, those the law has halted too."""
    monkeypatch.setattr("ratelimit_worker.flow.lane.pin.MOST_AT_ONCE", MANY // 2)
    monkeypatch.setattr("ratelimit_worker.flow.lane.tune.LEASE_S", 3_600.0)
    make(stage, MANY)
    stage.put(1, "busy")
    stage.tune()
    stage.told()
    stage.client.config_resetstat()
    changes = pin(stage.control, Mode.EMERGENCY, who="me", now=stage.now)
    assert commands(stage.client) < MANY // 4
    assert {change.lane for change in changes} == {"busy"}
    assert stage.mode("busy") is Mode.EMERGENCY
    turns(stage, 2 * MANY // MOST_LOOKED_AT)
    assert all(stage.mode(name) is Mode.EMERGENCY for name in stage.lanes.names())
    assert sorted(change.lane for change in stage.told()) == [ALL, "busy"]
    stage.client.hset(keys.lane("user-5"), mapping={"mode": "HALT", "pin": ""})
    auto(stage.control, who="me", now=stage.now)
    assert stage.mode("busy") is Mode.NORMAL
    assert stage.mode("user-5") is Mode.NORMAL
    assert stage.mode("user-6") is Mode.EMERGENCY
    turns(stage, 2 * MANY // MOST_LOOKED_AT)
    assert all(stage.mode(name) is Mode.NORMAL for name in stage.lanes.names())
    assert sorted(change.lane for change in stage.told()) == [ALL, "busy"]
    assert stage.control.pins.read() == {}


@pytest.mark.long
def test_very_many_pins_of_lanes_of_their_own_cost_little(stage: Stage) -> None:
    """Each comes into force and ends, some a turn; in between some are looked at each second, and calls go first."""
    pinned = 3 * MOST_LOOKED_AT
    make(stage, pinned)
    stage.tune()

    def one(mode: Mode, number: int) -> Pin:
        return Pin(id=f"p{number}", mode=mode, at=stage.now, who="me", until=stage.now + 60.0)

    stage.control.pins.write({f"user-{n}": one(Mode.REDUCED, n) for n in range(pinned)})
    turns(stage, 4)
    assert all(stage.mode(f"user-{n}") is Mode.REDUCED for n in range(pinned))
    turns(stage, 10)
    stage.client.config_resetstat()
    turns(stage, 10)
    assert commands(stage.client) < 5 * MOST_LOOKED_AT  # in a second 200 of the 600
    stage.advance(60.0)
    turns(stage, 5)
    assert all(stage.mode(f"user-{n}") is Mode.NORMAL for n in range(pinned))
    assert stage.control.pins.read() == {}


def test_pins_are_read_again_when_somebody_has_changed_one(stage: Stage) -> None:
    """Of more than a hundred the whole hash only then; what a version before wrote is seen within a second."""
    ours, theirs = Pins(stage.client), Pins(stage.client)
    one = Pin(id="x", mode=Mode.HALT, at=0.0, who="me")
    theirs.write({f"lane-{n}": one for n in range(150)})
    first = ours.read()
    stage.client.config_resetstat()
    assert ours.read() is first
    theirs.drop({"lane-7": one})
    assert set(first) - set(ours.read()) == {"lane-7"}
    theirs.write({"lane-7": replace(one, id="y")})
    assert ours.read()["lane-7"].id == "y"
    theirs.drop({"lane-7": one, "lane-8": one})  # the first was pinned anew
    assert {"lane-7"} == {"lane-7", "lane-8"} & set(ours.read())


def test_what_a_killed_command_left_undone_the_tuner_does(stage: Stage) -> None:
    """The pin is written down first; some lanes a turn, those with calls first."""
    make(stage, MANY)
    stage.put(1, "busy", PACED)
    stage.tune()

    class Killed(Exception):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    written, stage.lanes.tell = stage.lanes.tell, killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        pin(stage.control, Mode.HALT, who="me", now=stage.now)
    stage.lanes.tell = written  # type: ignore[method-assign]
    turns(stage, 2)
    assert stage.mode("busy") is Mode.HALT
    turns(stage, 3 * MANY // MOST_LOOKED_AT)
    assert all(stage.lanes.state(name).mode is Mode.HALT for name in stage.lanes.names())


def test_all_lanes_are_given_back(stage: Stage) -> None:
    """Those that the law has halted too; once told."""
    make(stage, MANY)
    stage.client.hset("rlw:lane:user-5", "mode", "HALT")
    pin(stage.control, Mode.REDUCED, who="me", now=stage.now)
    stage.told()
    auto(stage.control, who="me", now=stage.now)
    turns(stage, 3 * MANY // MOST_LOOKED_AT)
    assert {stage.mode(name) for name in stage.lanes.names()} == {Mode.NORMAL}
    assert [change.lane for change in stage.told()] == [ALL]
    assert stage.control.pins.read() == {}


def test_no_command_holds_the_server_up(stage: Stage) -> None:
    """Each step over all lanes looks at a bounded number of them: no script's work grows with their number."""
    make(stage, MANY)
    slow: list[int] = []
    run = stage.lanes.run

    def seen(name: str, args: Any) -> Any:
        found = type(run).__call__(run, name, args)
        if name == "survey":
            slow.append(len(found) - 1)
        return found

    class Counted:
        each, load, time_us = run.each, run.load, 0

        def __call__(self, name: str, args: Any) -> Any:
            return seen(name, args)

    stage.lanes.run = Counted()  # type: ignore[assignment]
    pin(stage.control, Mode.REDUCED, who="me", now=stage.now)
    at_start(stage.control, read_settings({}))
    assert sum(slow) >= 2 * MANY
    assert max(slow) <= 400


def test_emergency_prints_one_line(stage: Stage, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand lanes; one each with --verbose, and for a lane that is named."""
    monkeypatch.setenv("MAISD_REDIS_URL", f"unix://{redis_server}")
    from ratelimit_worker import wiring

    monkeypatch.setattr(wiring, "_services", None)
    stage.now_us = int(time.time() * US)
    stage.lanes.run.time_us = stage.now_us
    make(stage, MANY_LANES + 50)
    done = CliRunner().invoke(main, ["emergency"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"all lanes: {MANY_LANES + 50} changed ({MANY_LANES + 50} NORMAL -> EMERGENCY)\n"
    assert CliRunner().invoke(main, ["auto", "--lane", "user-3"]).stdout == "user-3: EMERGENCY -> NORMAL\n"
    given_back = CliRunner().invoke(main, ["auto", "--verbose"]).stdout.splitlines()
    assert len(given_back) == MANY_LANES + 49
    assert all(line.endswith(": EMERGENCY -> NORMAL") for line in given_back)
