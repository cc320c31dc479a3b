"""Modes by hand, and the law's, in lanes on the real server, on the test's time: what goes out, and what is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import redis
from sqlalchemy import Engine

from ratelimit_worker.calls import Category, Failure, LaneLimits, Mode, ModeChange
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.call import US, Place
from ratelimit_worker.contracts.lane import SHUT_US
from ratelimit_worker.contracts.lesson import Lesson, Settlement, Verdict
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.duty.record import record_once
from ratelimit_worker.flow.lane import pin as pin_module
from ratelimit_worker.flow.lane.decide import Rules, rules_of
from ratelimit_worker.flow.lane.pin import FROM_SETTING, at_start, auto, lane_fields, pin
from ratelimit_worker.flow.lane.tune import ControlPlane, Tuner
from ratelimit_worker.policy.modes import ALL, Rates, Thresholds
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import entry
from tests.lua.cluster import Cluster

pytestmark = pytest.mark.server

PACED = LaneLimits(rpm=600)
FREE = LaneLimits(unlimited=True)
FIXED = LaneLimits(adaptive=False, rpm=60)
FAILURE = Failure(category=Category.SERVER_ERROR, cause="HTTP 500", status=500)


@dataclass
class Stage(Cluster):
    """Lanes with a control plane and a tuner, all on the test's clock."""

    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        super().__post_init__()
        stage = self

        class OnOurClock(Pins):
            def now(self) -> float:
                return stage.now

        self.outbox = Outbox(self.client, claim_idle_ms=3_600_000)
        self.control = ControlPlane(
            lanes=self.lanes, pins=OnOurClock(self.client), mode_log=self.outbox, rules=self.rules
        )
        self.tuner = Tuner(self.control)

    @property
    def now(self) -> float:
        return self.now_us / US

    def put(self, count: int, lane: str = "gpt", limits: LaneLimits = PACED) -> None:
        """So many more calls in a lane."""
        for _ in range(count):
            number = self.client.incr("test:number")
            self.lanes.enqueue(entry(f"c{number}", lane=lane, lane_fields=limit_fields(limits)))

    def tune(self) -> None:
        assert self.tuner.turn("tuner") is not None

    def sent(self, seconds: float, step: float = 0.5, verdict: Verdict = "good") -> int:
        """Time passes, workers work, the tuner tunes → calls that began."""
        began = 0
        for _ in range(round(seconds / step)):
            self.advance(step)
            self.beat("w")
            self.pump()
            began += self.work(verdict)
            self.tune()
        return began

    def work(self, verdict: Verdict = "good", most: int = 1_000) -> int:
        """Workers run what is ready now, each call at once → calls that began."""
        began = 0
        for _ in range(min(most, self.lying())):
            tag, begun = self.begin()
            if begun.state != "go":
                self.drop(tag)
                continue
            began += 1
            lane = self.packed(tag.rpartition(".")[0])[Place.LANE - 1]
            failure = None if verdict == "good" else FAILURE
            lesson = Lesson(verdict=verdict, at_s=self.now, ticket=begun.ticket, failure=failure)
            self.drop(tag)
            if verdict == "good":
                self.lanes.settle(Settlement(tag=tag, lane=lane, answer=b"a", lesson=lesson))
                self.lanes.free([tag])
            else:
                self.lanes.back(tag, lane, lesson, after_s=0, tries=0)
        return began

    def mode(self, lane: str = "gpt") -> Mode:
        return self.lanes.state(lane).mode

    def told(self) -> list[ModeChange]:
        """Mode changes in the outbox, oldest first."""
        found = self.outbox.read(1_000)
        self.outbox.commit([entry_id for entry_id, _ in found])
        return [change for _, change in found if isinstance(change, ModeChange)]


@pytest.fixture
def stage(redis_client: redis.Redis) -> Stage:
    made = Stage(redis_client)
    made.worker(slots=8)
    return made


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


# ── by hand ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("limits", [PACED, FREE, FIXED, LaneLimits()])
def test_emergency_holds_for_the_next_permit(stage: Stage, limits: LaneLimits) -> None:
    """With 100 calls waiting and no tuner anywhere: at most 11 in 60 s, whatever lay ready; after `auto` all go on."""
    stage.put(120, limits=limits)
    assert stage.work(most=2) > 0
    (change,) = pin(stage.control, Mode.EMERGENCY, who="ada", reason="the bill", now=stage.now)
    assert (change.lane, change.from_mode, change.to_mode) == ("gpt", Mode.NORMAL, Mode.EMERGENCY)
    began = 0
    for _ in range(120):
        began += stage.work()
        stage.advance(0.5)
        stage.beat("w")
        stage.pump()
    assert 9 <= began <= 11
    assert stage.lanes.size("q") > 100 - 11
    auto(stage.control, who="bob", now=stage.now)
    assert stage.work() > 0, "at once, without a tuner"
    stage.sent(200.0)
    assert stage.lanes.size("q") == 0
    assert stage.lanes.fields("gpt").get("unlimited") == (b"1" if limits.unlimited else b"0")


@pytest.mark.parametrize("limits", [PACED, FREE, FIXED])
def test_halt_sends_nothing_and_loses_nothing(stage: Stage, limits: LaneLimits) -> None:
    """Not even what was released before; the calls are there when it ends by itself."""
    stage.put(50, limits=limits)
    pin(stage.control, Mode.HALT, for_s=600, who="ada", now=stage.now)
    assert stage.sent(590.0, step=10.0) == 0
    assert stage.lanes.size("q") == 50
    assert stage.lanes.fields("gpt")["gate"] == str(SHUT_US).encode()
    assert stage.sent(120.0) == 50
    assert [(change.to_mode, change.who, change.cause) for change in stage.told()] == [
        (Mode.HALT, "ada", "all lanes were pinned"),
        (Mode.NORMAL, "law", "the pin of ada has ended"),
    ]
    assert stage.control.pins.read() == {}


@pytest.mark.long
@pytest.mark.parametrize(("limits", "fast", "slow"), [(PACED, 600, 300), (FIXED, 60, 30)])
def test_reduced_is_half_the_pace(stage: Stage, limits: LaneLimits, fast: int, slow: int) -> None:
    """Per minute; and back."""
    stage.put(1_500, limits=limits)
    assert stage.sent(60.0, step=0.1) == pytest.approx(fast, rel=0.05)
    pin(stage.control, Mode.REDUCED, lane="gpt", who="ada", now=stage.now)
    assert stage.sent(60.0, step=0.1) == pytest.approx(slow, rel=0.05)
    auto(stage.control, lane="gpt", who="ada", now=stage.now)
    assert stage.sent(60.0, step=0.1) == pytest.approx(fast, rel=0.05)


@pytest.mark.long
def test_reduced_of_a_lane_without_pace(stage: Stage) -> None:
    """Half of what it sent at last."""
    stage.put(1, limits=FREE)
    for _ in range(200):
        stage.put(2, limits=FREE)
        stage.sent(0.1, step=0.1)
    pin(stage.control, Mode.REDUCED, who="ada", now=stage.now)
    stage.put(2_000, limits=FREE)
    assert stage.sent(30.0, step=0.02) == pytest.approx(300, rel=0.1)
    auto(stage.control, who="ada", now=stage.now)
    assert stage.sent(10.0, step=0.02) > 1_000


def test_one_lane_or_all(stage: Stage) -> None:
    """`--lane` touches one; a pin of all reaches lanes that come later; one can be given back before the others."""
    stage.put(1, lane="a")
    stage.put(1, lane="b")
    pin(stage.control, Mode.HALT, lane="a", who="ada", now=stage.now)
    assert (stage.mode("a"), stage.mode("b")) == (Mode.HALT, Mode.NORMAL)
    stage.advance(1.0)
    pin(stage.control, Mode.EMERGENCY, who="ada", now=stage.now)
    assert (stage.mode("a"), stage.mode("b")) == (Mode.EMERGENCY, Mode.EMERGENCY)
    stage.put(1, lane="later")
    stage.tune()
    assert stage.mode("later") is Mode.EMERGENCY
    stage.advance(1.0)
    auto(stage.control, lane="b", who="bob", now=stage.now)
    stage.tune()
    assert [stage.mode(lane) for lane in ("a", "b", "later")] == [Mode.EMERGENCY, Mode.NORMAL, Mode.EMERGENCY]
    stage.advance(1.0)
    auto(stage.control, who="bob", now=stage.now)
    stage.tune()
    assert [stage.mode(lane) for lane in ("a", "b", "later")] == [Mode.NORMAL] * 3
    assert stage.control.pins.read() == {}


def test_a_lane_can_be_pinned_before_its_first_call(stage: Stage) -> None:
    """It is shut when the call comes, and has the pace that was configured when it is given back."""
    pin(stage.control, Mode.HALT, lane="new", who="ada", now=stage.now)
    stage.tune()
    stage.put(20, lane="new", limits=LaneLimits(rpm=60))
    assert stage.sent(5.0) == 0
    auto(stage.control, lane="new", who="ada", now=stage.now)
    assert stage.sent(10.0, step=0.1) in (10, 11)


@pytest.mark.parametrize("lane", [{"unlimited": True}, {"rpm": 600}])
def test_a_lane_that_comes_while_all_are_pinned(stage: Stage, lane: dict[str, Any]) -> None:
    """Its first call finds the mode there, with no tuner anywhere; it is told once, whoever calls first."""
    pin(stage.control, Mode.EMERGENCY, who="ada")
    settings = read_settings({"MAISD_LANES": msgspec.json.encode({"new": lane}).decode()})
    for number in range(20):
        fields = lane_fields(stage.control, settings, "new")  # as from a process of its own each
        stage.lanes.enqueue(entry(f"c{number}", lane="new", lane_fields=fields))
    stage.pump()
    assert stage.work() == 0
    began = 0
    for _ in range(60):
        stage.advance(1)
        stage.beat("w")
        stage.pump()
        began += stage.work()
    assert 8 <= began <= 11
    assert stage.lanes.state("new").mode is Mode.EMERGENCY
    told = [row for _, row in stage.outbox.read(100) if isinstance(row, ModeChange) and row.lane == "new"]
    assert [(change.to_mode, change.who) for change in told] == [(Mode.EMERGENCY, "ada")]
    auto(stage.control, who="ada")
    stage.tune()
    assert stage.sent(10) == 20 - began


def test_limits_that_are_set_meanwhile_do_not_undo_a_pin(stage: Stage) -> None:
    """A person gives a pinned lane another pace: the pin holds, and after it the new pace."""
    stage.put(300, limits=FREE)
    pin(stage.control, Mode.EMERGENCY, who="ada", now=stage.now)
    stage.sent(6.0)
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=120)))
    assert stage.sent(30.0) in (4, 5, 6)
    auto(stage.control, who="ada", now=stage.now)
    assert stage.sent(30.0, step=0.1) in range(58, 64)


def test_a_pin_wins_over_the_law_which_goes_on_watching(stage: Stage) -> None:
    """Pinned NORMAL: ten sick answers move nothing and no probes hold the lane back; given back, it is EMERGENCY."""
    stage.put(40)
    pin(stage.control, Mode.NORMAL, who="ada", now=stage.now)
    assert stage.lanes.fields("gpt")["escalates"] == b"0"
    assert stage.sent(3.0, step=0.1, verdict="sick") >= 20
    assert stage.mode() is Mode.NORMAL
    auto(stage.control, who="ada", now=stage.now)
    assert stage.mode() is Mode.EMERGENCY
    assert [steps(change) for change in stage.told()] == ["NORMAL NORMAL", "NORMAL EMERGENCY"]


def test_a_pin_against_a_tuner_that_knows_nothing_of_it_yet(stage: Stage) -> None:
    """The tuner decided before the pin and writes after it: it sees that, and makes it good in the same turn."""
    stage.put(30, limits=PACED)
    stage.work("sick")
    stage.tune()
    write = stage.tuner._write_all

    def pinned_in_between(decisions: Any, *now: Any) -> None:
        stage.tuner._write_all = write  # type: ignore[method-assign]
        pin(stage.control, Mode.REDUCED, who="ada", now=stage.now)
        write(decisions, *now)
        stage.lanes.set_points("gpt", {"p1": 10.0, "width": 0})  # what a stale decision could say at worst

    stage.tuner._write_all = pinned_in_between  # type: ignore[method-assign,assignment]
    stage.advance(1.0)
    stage.pump()
    stage.work("sick")
    stage.tune()
    assert float(stage.lanes.fields("gpt")["p1"]) == 5.0
    assert stage.mode() is Mode.REDUCED


def test_a_lane_that_is_pinned_after_the_tuner_has_read_the_pins(stage: Stage) -> None:
    """A worker begins to tune just when a person halts a new lane: no call of it goes out, and the mode stays."""
    read = stage.control.pins.read

    def pinned_afterwards() -> Any:
        stage.control.pins.read = read  # type: ignore[method-assign]
        pins = read()
        pin(stage.control, Mode.HALT, lane="new", who="ada", now=stage.now)
        stage.put(20, lane="new")
        return pins

    stage.control.pins.read = pinned_afterwards  # type: ignore[method-assign]
    stage.tune()
    assert stage.mode("new") is Mode.HALT
    assert stage.sent(1.0) == 0
    assert [steps(change) for change in stage.told()] == ["NORMAL HALT"]


@pytest.mark.parametrize("where", ["gpt", None], ids=["one", "all"])
def test_a_pin_between_a_tuner_s_decision_and_its_writing(stage: Stage, where: str | None) -> None:
    """The tuner has decided that a lane in EMERGENCY opens again; a person halts it before that is written."""
    stage.put(40)
    stage.sent(3.0, step=0.1, verdict="sick")
    assert stage.mode() is Mode.EMERGENCY
    write = stage.lanes.set_points_of
    after: list[tuple[Mode, int]] = []

    def pinned_before(changes: Any) -> Any:
        opens = any("mode" in change.fields for change in changes.values())
        if opens:
            pin(stage.control, Mode.HALT, lane=where, who="ada", now=stage.now)
        held = write(changes)
        if opens:
            after.append((stage.mode(), stage.lying()))
        return held

    stage.lanes.set_points_of = pinned_before  # type: ignore[method-assign]
    for _ in range(200):
        stage.advance(0.5)
        stage.beat("w")
        stage.pump()
        stage.work()
        stage.tune()
        if after:
            break
    stage.lanes.set_points_of = write  # type: ignore[method-assign]
    assert after[0] == (Mode.HALT, 0)
    assert stage.mode() is Mode.HALT
    assert stage.sent(5.0) == 0


def hook(owner: Any, name: str, first: Callable[[], Any]) -> None:
    """Something else happens once, just before the owner's next call of this method."""
    method = getattr(owner, name)

    def later(*given: Any, **named: Any) -> Any:
        setattr(owner, name, method)
        first()
        return method(*given, **named)

    setattr(owner, name, later)


@pytest.mark.parametrize("idle", [False, True], ids=["busy", "idle"])
@pytest.mark.parametrize("step", ["state", "survey", "tell", "set_points_of"])
def test_two_commands_that_pin_a_lane_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, step: str, idle: bool
) -> None:
    """Another person halts all lanes while a command for EMERGENCY is under way: the later one holds, at once."""
    stage.put(20)
    if idle:  # as with very many lanes: most are set in batches
        monkeypatch.setattr(pin_module, "MANY_LANES", 0)
        stage.sent(3.0)
        stage.put(5)
    hook(stage.control.lanes, step, lambda: pin(stage.control, Mode.HALT, who="bob", now=stage.now))
    pin(stage.control, Mode.EMERGENCY, who="ada", now=stage.now)
    assert stage.mode() is Mode.HALT
    assert stage.work() == 0
    (held,) = stage.control.pins.read().values()
    assert stage.lanes.state("gpt").points.pin == held.id


@pytest.mark.parametrize("step", ["state", "tell", "survey"])
def test_a_lane_that_is_given_back_while_a_command_pins_it(stage: Stage, step: str) -> None:
    """The pin is gone when the command comes to the lane: it does not bring it back, and nobody has to look again."""
    stage.put(20)
    hook(stage.control.lanes, step, lambda: auto(stage.control, who="bob", now=stage.now))
    pin(stage.control, Mode.HALT, who="ada", now=stage.now)
    assert stage.control.pins.read() == {}
    assert stage.mode() is Mode.NORMAL
    assert stage.work() > 0


def test_what_a_quicker_tuner_did_is_told_all_the_same(stage: Stage) -> None:
    """The tuner sees a pin, its end and a lane that is given back before the command goes on: one change, told once."""

    def before_the_tuner(write: Callable[..., Any]) -> Callable[..., Any]:
        busy = False

        def written_and_seen(*written: Any) -> Any:
            nonlocal busy
            done = write(*written)
            if not busy:
                busy = True
                stage.tune()
                busy = False
            return done

        return written_and_seen

    stage.put(10)
    stage.sent(0.5)
    stage.control.pins.write = before_the_tuner(stage.control.pins.write)  # type: ignore[method-assign]
    pinned = pin(stage.control, Mode.EMERGENCY, lane="gpt", who="ada", now=stage.now)
    assert [(steps(change), change.who) for change in pinned] == [("NORMAL EMERGENCY", "ada")]
    given_back = auto(stage.control, lane="gpt", who="bob", now=stage.now)
    assert [(steps(change), change.who) for change in given_back] == [("EMERGENCY NORMAL", "bob")]
    stage.put(1, lane="broke")
    stage.pump()
    stage.work("quota")
    stage.tune()
    assert stage.mode("broke") is Mode.HALT
    written = stage.lanes.set_points
    stage.lanes.set_points = before_the_tuner(written)  # type: ignore[method-assign]
    resumed = auto(stage.control, who="bob", now=stage.now)
    stage.lanes.set_points = written  # type: ignore[method-assign]
    assert [(steps(change), change.lane, change.who) for change in resumed] == [("HALT NORMAL", "broke", "bob")]
    assert stage.mode("broke") is Mode.NORMAL
    told = stage.told()
    assert {change.id for change in (*pinned, *given_back, *resumed)} < {change.id for change in told}
    assert len({change.id for change in told}) == 4, "the three, and the law's HALT"


def test_what_a_crash_leaves_undone_the_tuner_does(stage: Stage) -> None:
    """The pin was written down and no lane touched; later its end was, and no lane given back."""
    stage.put(10)
    written = stage.lanes.tell
    stage.lanes.tell = lambda *_: True  # type: ignore[method-assign]
    pin(stage.control, Mode.HALT, who="ada", now=stage.now)
    stage.lanes.tell = written  # type: ignore[method-assign]
    assert stage.mode() is Mode.NORMAL
    stage.tune()
    assert stage.mode() is Mode.HALT
    assert len({change.id for change in stage.told()}) == 1  # told twice, to be recorded once


@pytest.mark.parametrize(
    "wrong", [{"for_s": 0}, {"for_s": float("nan")}, {"lane": ""}, {"reason": "r" * 501}, {"who": "w" * 501}]
)
def test_what_cannot_be_pinned(stage: Stage, wrong: dict[str, Any]) -> None:
    """One clear error, and nothing happens."""
    with pytest.raises(BadInput):
        pin(stage.control, Mode.HALT, **{"who": "ada", **wrong})
    assert stage.control.pins.read() == {}


def test_emergency_by_setting(stage: Stage) -> None:
    """Once for the whole cluster, and not again while it holds; where no lane is known, for those to come."""
    assert at_start(stage.control, emergency=False) == []
    (change,) = at_start(stage.control, emergency=True)
    assert (change.lane, change.who) == (ALL, FROM_SETTING)
    assert at_start(stage.control, emergency=True) == []
    stage.put(5)
    stage.tune()
    assert stage.mode() is Mode.EMERGENCY


def test_the_rules_come_from_the_settings() -> None:
    """Thresholds, fixed rates, the literal policy and the switch."""
    rules = rules_of(
        read_settings(
            {
                "MAISD_REDUCED_ERROR_COUNT_THRESHOLD": "3",
                "MAISD_EMERGENCY_ERROR_RATE_THRESHOLD": "50",
                "MAISD_EMERGENCY_CALLS_PER_MINUTE": "5",
                "MAISD_ESCALATION_POLICY": "literal",
                "MAISD_ENABLE_AUTO_ESCALATION": "false",
            }
        )
    )
    assert rules.rates == Rates(emergency=5.0)
    assert rules.thresholds == Thresholds(
        reduced_count=3, emergency_rate=50.0, literal=True, refusals_count=True, escalates=False
    )


# ── the law, in the lane ───────────────────────────────────────────────────────────────────────────────────────────


def steps(change: ModeChange) -> str:
    """From and to, in a word."""
    return f"{change.from_mode.value} {change.to_mode.value}"


@pytest.mark.long
@pytest.mark.parametrize("limits", [PACED, FREE, LaneLimits()])
def test_a_lane_down_the_ladder_and_back(
    stage: Stage, limits: LaneLimits, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """5 × 500 in an idle lane: REDUCED; 10 in all: EMERGENCY; healthy answers: NORMAL; each with its cause, once."""
    caplog.set_level(logging.INFO, logger="ratelimit_worker.flow.lane")
    stage.put(1, limits=limits)
    seen: list[tuple[int, Mode]] = []
    sick = 0
    while sick < 10:
        sick += stage.sent(0.5, verdict="sick")
        seen.append((sick, stage.mode()))
    assert all(mode is Mode.NORMAL for count, mode in seen if count < 5)
    assert all(mode is Mode.REDUCED for count, mode in seen if 5 <= count < 10)
    assert seen[-1] == (10, Mode.EMERGENCY)
    stage.put(40, limits=limits)
    stage.sent(60.0, step=0.1)
    assert stage.mode() is Mode.NORMAL
    assert stage.lanes.size("q") == 0
    assert stage.lanes.fields("gpt").get("unlimited") == (b"1" if limits.unlimited else b"0")

    tracker = Tracker(engine)
    while record_once(stage.outbox, tracker):
        pass
    history = tracker.mode_changes(lane="gpt")[::-1]
    assert [steps(change) for change in history] == [
        "NORMAL REDUCED",
        "REDUCED EMERGENCY",
        "EMERGENCY REDUCED",
        "REDUCED NORMAL",
    ]
    assert [change.cause for change in history] == [
        "5 sick answers in a row",
        "10 sick answers in a row",
        "5 good answers in a row to probes",
        "0 of 10 answers sick since the last change (0 %)",
    ]
    assert history[0].numbers["sick"] == 5
    assert {change.who for change in history} == {"law"}
    assert tracker.mode_changes(lane="other") == []
    assert len(tracker.mode_changes(since=history[2].at)) == 2
    assert [steps(change) for change in tracker.mode_changes(limit=1)] == ["REDUCED NORMAL"]
    assert [record.message for record in caplog.records] == ["mode.changed"] * 4
    assert vars(caplog.records[0])["lane"] == "gpt"


@pytest.mark.long
def test_a_good_probe_opens_the_gate_of_the_next(stage: Stage) -> None:
    """After an outage of ten minutes probes are 18 s apart; after the first good one the others wait no longer."""
    stage.put(1)
    stage.sent(600.0, verdict="sick")
    assert stage.mode() is Mode.EMERGENCY
    assert float(stage.lanes.fields("gpt")["gap"]) > 15 * US
    stage.put(100)
    for _ in range(400):
        if stage.sent(0.1, step=0.1):
            break
    assert stage.sent(3.0, step=0.1) > 10


def test_a_lane_without_adaptive_pace(stage: Stage) -> None:
    """60, 30 and 10 a minute; refusals are sick answers there."""
    stage.put(100, limits=FIXED)
    rate: dict[Mode, int] = {}
    stage.sent(6.0, step=0.1, verdict="sick")
    for mode, minutes in ((Mode.REDUCED, 12.0), (Mode.EMERGENCY, 30.0)):
        assert stage.mode() is mode
        rate[mode] = round(60 * float(stage.lanes.fields("gpt")["p1"]))
        stage.sent(minutes, step=0.1, verdict="sick")
    assert rate == {Mode.REDUCED: 30, Mode.EMERGENCY: 10}


def test_escalation_off(redis_client: redis.Redis) -> None:
    """Nothing moves by itself; modes by hand do."""
    stage = Stage(redis_client, rules=Rules(thresholds=Thresholds(escalates=False)))
    stage.worker(slots=8)
    stage.put(30)
    assert stage.sent(3.0, step=0.1, verdict="sick") >= 20
    assert stage.mode() is Mode.NORMAL
    assert stage.told() == []
    pin(stage.control, Mode.HALT, who="ada", now=stage.now)
    assert stage.sent(3.0) == 0


# ── what is told ───────────────────────────────────────────────────────────────────────────────────────────────────

CHANGE = ModeChange(
    id="i",
    lane="gpt",
    from_mode=Mode.NORMAL,
    to_mode=Mode.HALT,
    at=1_790_000_000.25,
    cause="the lane was pinned",
    numbers={"sick": 5.0},
    who="ada",
    reason="because",
    until=1_790_000_900.0,
)


def test_a_change_is_recorded_once_and_comes_back_whole(stage: Stage, engine: Engine) -> None:
    """However often it is told; odd values are bent, and old ones go with the cleaning."""
    tracker = Tracker(engine)
    for _ in range(3):
        stage.outbox.append_mode_change(CHANGE)
    assert record_once(stage.outbox, tracker) == 3
    assert tracker.record([CHANGE]) == 0
    assert tracker.mode_changes() == [CHANGE]
    assert stage.outbox.backlog() == 0
    assert tracker.purge(10.0, now_s=CHANGE.at + 5) == 0
    assert tracker.purge(10.0, now_s=CHANGE.at + 20) == 1
    assert tracker.mode_changes() == []


def test_a_recorder_of_version_1_leaves_it_alone(stage: Stage, redis_client: redis.Redis) -> None:
    """It looks into the field `a`, and finds what it takes for a newer version's."""
    stage.outbox.append_mode_change(CHANGE)
    rows: Any = redis_client.xrange("rlw:outbox")
    ((_, values),) = rows
    assert msgspec.msgpack.decode(values[b"a"]) == {"v": 2}


def test_an_outbox_that_takes_nothing_delays_the_history_only(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane changes its mode all the same, and the event follows."""

    def full(_change: ModeChange) -> None:
        raise StoreUnavailable("outbox: OOM")

    monkeypatch.setattr(stage.outbox, "append_mode_change", full)
    stage.put(5)
    stage.sent(3.0, step=0.1, verdict="sick")
    assert stage.mode() is not Mode.NORMAL
    monkeypatch.undo()
    stage.tune()
    assert next(steps(change) for change in stage.told()) == "NORMAL REDUCED"


# ── lanes that nobody uses ─────────────────────────────────────────────────────────────────────────────────────────


def forget_all(stage: Stage) -> None:
    """Nobody wants the calls any more that wait."""
    for number in range(1, int(stage.client.get("test:number") or 0) + 1):
        stage.lanes.revoke(f"c{number}")


@pytest.mark.long
@pytest.mark.parametrize(("sick", "mode", "after_s"), [(5, Mode.REDUCED, 60.0), (10, Mode.EMERGENCY, 360.0)])
def test_a_lane_that_nobody_uses_comes_back(stage: Stage, sick: int, mode: Mode, after_s: float) -> None:
    """By time alone, a step at a time, and also under a new tuner; the history says why."""
    stage.put(20)
    while sum(stage.mode() is one for one in (Mode.REDUCED, Mode.EMERGENCY)) == 0 or stage.mode() is not mode:
        stage.sent(0.5, verdict="sick")
    forget_all(stage)
    began = stage.now
    stage.tuner = Tuner(stage.control)  # another worker takes the duty over
    while stage.mode() is not Mode.NORMAL:
        assert stage.sent(5.0, step=1.0) == 0
        assert stage.now - began < 400
    assert stage.now - began == pytest.approx(after_s, abs=6.0)
    causes = [change.cause for change in stage.told()]
    assert causes[-1] == "no sick answer for 60 s"
    assert (causes[-2] == "no sick answer for 300 s") is (mode is Mode.EMERGENCY)


def test_a_probe_that_is_out_keeps_a_lane_in_emergency(stage: Stage) -> None:
    """A provider that never answers is no provider that is well."""
    stage.put(20)
    while stage.mode() is not Mode.EMERGENCY:
        stage.sent(0.5, verdict="sick")
    while not stage.ready():
        stage.advance(0.5)
        stage.beat("w")
        stage.pump()
    assert stage.begin()[1].state == "go"  # and there it stays
    forget_all(stage)
    for _ in range(40):
        stage.advance(10.0)
        stage.beat("w")
        stage.tune()
    assert stage.mode() is Mode.EMERGENCY


def test_only_lanes_that_are_not_well_are_looked_at_while_idle(stage: Stage) -> None:
    """Of a thousand idle lanes in NORMAL none is read; of one in REDUCED its hash, once a second."""
    stage.put(20)
    stage.put(1, lane="well", limits=LaneLimits())
    stage.sent(1.0, verdict="good")
    stage.put(20, lane="ill")
    while stage.mode("ill") is Mode.NORMAL:
        stage.sent(0.5, verdict="sick")
    forget_all(stage)
    stage.sent(10.0, step=1.0)
    asked: list[set[str]] = []
    take = stage.lanes.take

    def watched(owner: str, lease_s: float, most: int = 50, also: Any = ()) -> Any:
        asked.append(set(also))
        return take(owner, lease_s, most, also)

    stage.lanes.take = watched  # type: ignore[method-assign]
    stage.sent(5.0, step=0.1)
    assert set().union(*asked) == {"ill"}
    assert 4 <= sum("ill" in one for one in asked) <= 6
