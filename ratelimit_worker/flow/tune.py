"""How do lanes learn? The tuner: takes what was seen of all lanes, runs the law on it in order, writes set-points.

One writer at a time, under a lease; state lives in the lanes' hashes, so a new holder goes on where the last one was.
Modes by hand (flow/pin.py) write the same set-points by the same `decide`, and leave what the law remembers alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2s
from itertools import islice
from typing import Literal, NamedTuple

import msgspec
from msgspec import structs

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.lane import (
    SHUT_US,
    WALK_FIELDS,
    Anchor,
    Fields,
    LaneState,
    Memory,
    Pacing,
    SetPoints,
    Units,
    encode_levels,
)
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow import observe
from ratelimit_worker.policy import flight, modes, pace
from ratelimit_worker.policy.modes import ALL, Answer, Hold, ModeState, Move, Pin, Rates, Thresholds
from ratelimit_worker.policy.pace import Paces
from ratelimit_worker.policy.siblings import Siblings, Standing
from ratelimit_worker.ports import Lanes, LaneSeen, LaneView, ModeLog, Pins

log = logging.getLogger(__name__)

TUNE_EVERY_S = 0.1  #: about ten times a second (control law); a refusal wakes the tuner at once
LEASE_S = 2.0
BUSY_S = 5.0  #: a lane is looked at each turn for so long after the last answer
VISIT_EVERY_S = 1.0  #: pinned lanes are looked at so often though nothing is seen of them
MOST_LOOKED_AT = 100  #: lanes that a turn looks at though nothing was seen of them, so that it stays short
WALK_EVERY_S = 60.0  #: while all lanes are pinned, all are looked at so often, some at a time
MANY_LANES = 100  #: with more, a pin of all is told once, not of each lane in which nothing waits
MOST_TRIES = 8  #: at writing what follows from a lane, while a person sets its limits again and again
MOST_UNTOLD = 1_000  #: mode changes kept while the outbox takes none
MOST_UNTOLD_GATE_S = 15.0  #: a refusal without Retry-After shuts the gate for so long at most (learn.lua)
_US = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a person has set of the law."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    rates: Rates = field(default_factory=Rates)


def rules_of(settings: Settings) -> Rules:
    """The rules that the settings say."""
    literal = settings.escalation_policy == "literal"
    thresholds = Thresholds(
        reduced_rate=settings.reduced_error_rate_threshold,
        reduced_count=settings.reduced_error_count_threshold,
        emergency_rate=settings.emergency_error_rate_threshold,
        emergency_count=settings.emergency_error_count_threshold,
        literal=literal,
        refusals_count=literal,
        escalates=settings.enable_auto_escalation and settings.enable_advanced_rate_limiting,
    )
    rates = Rates(
        normal=settings.calls_per_minute,
        reduced=settings.reduced_calls_per_minute,
        emergency=settings.emergency_calls_per_minute,
    )
    return Rules(thresholds=thresholds, rates=rates)


class Law(msgspec.Struct):
    """All that the law remembers of one lane's pace, as `Memory.law` keeps it; `Memory.health` is a ModeState."""

    pace: pace.PaceState
    flight: flight.FlightState = flight.FlightState()


_encode = msgspec.msgpack.Encoder().encode
_decode_law = msgspec.msgpack.Decoder(Law).decode
_decode_health = msgspec.msgpack.Decoder(ModeState).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows from what was seen of a lane."""

    set_points: Fields  #: of its hash, that change
    memory: Fields  #: the same, for the law itself and for the levels: the tuner's alone to write
    after: LaneState  #: as it will be, but for the levels
    anchors: Mapping[str, Anchor]  #: of these, by dimension
    changes: Sequence[ModeChange]
    standing: Standing  #: how the lane stands, as other lanes of its provider need to know
    mode: Mode = Mode.NORMAL  #: that holds now
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """All that it takes to steer lanes."""

    lanes: Lanes
    pins: Pins
    mode_log: ModeLog
    rules: Rules = field(default_factory=Rules)


class _Everywhere(NamedTuple):
    """What holds in all lanes: the pin of all ("": none), and whether it lives."""

    pin: str
    lives: bool


class Tuner:
    """The duty of one worker. Errors of Redis go on as they are; the next turn makes good what was left undone."""

    def __init__(self, control: ControlPlane) -> None:
        self.control = control
        self._visited_at = float("-inf")
        self._pins: Mapping[str, Pin] | None = None  #: None: this is its first turn
        self._walk: Iterator[Sequence[LaneSeen]] | None = None  #: over all lanes, some a turn
        self._walking: _Everywhere | None = None  #: what that walk brings to the lanes
        self._walked: _Everywhere | None = None  #: what every lane has; None: this is its first turn
        self._walked_at = float("-inf")
        self._many = False  #: whether there are so many lanes that not each is told of
        self._busy: dict[str, float] = {}  #: lanes of which something was seen of late → when, seconds
        self._ailing: dict[str, None] = {}  #: lanes whose mode ends by time alone; the next to look at first
        self._ailing_at, self._turned_at = float("-inf"), 0.0  #: when they were looked at, and the last turn was
        self._untold: deque[ModeChange] = deque(maxlen=MOST_UNTOLD)
        self._siblings = Siblings.none()

    def turn(self, owner: str) -> int | None:
        """Look at every lane of which something was seen → how many, or None: another holds the duty."""
        busy = list(islice(self._busy, MOST_LOOKED_AT))
        taken = self.control.lanes.take(owner, LEASE_S, also={*busy, *self._ailing_due()})
        if taken is None:
            self._pins, self._walk, self._walked, self._busy, self._ailing = None, None, None, {}, {}
            return None
        now, taken_views = taken
        self._turned_at = now
        views = [view for view in taken_views if view.seen or view.goods or _changes_with_time(view.state)]
        self._note_busy(views, busy, now)
        pins = self.control.pins.read()
        decisions = [
            (view, decide(view, now, self.control.rules, pins, self._siblings.shares(view.lane))) for view in views
        ]
        for view, decision in decisions:
            self._write(view, decision, pins, now)
        self._siblings = self._siblings.note([decision.standing for _, decision in decisions], now)
        self._visit(self._due(pins, now), pins, now)
        self._walk_on(pins, now)
        while views and (newer := self.control.pins.read()) != pins:
            # Somebody pinned a mode while we wrote, and we may have overwritten it.
            pins = newer
            self._visit({*(view.lane for view in views), *self._pinned(pins)}, pins, self.control.pins.now())
        self._give_back(pins, now)
        self._tell()
        return len(views)

    def _note_busy(self, views: Iterable[LaneView], looked_at: Iterable[str], now: float) -> None:
        """Lanes in use are looked at each turn, where time alone changes them; of very many, some each turn."""
        before, ailing = self._busy, self._ailing
        self._busy = dict(before)
        for lane in looked_at:
            del self._busy[lane]
        for view in views:
            self._busy.pop(view.lane, None)
            old = float("-inf") if view.lane in ailing else now  # a lane that is looked at for its mode alone is idle
            since = now if view.seen or view.goods else before.get(view.lane, old)
            if now - since <= BUSY_S and _changes_with_time(view.state):
                self._busy[view.lane] = since

    def _ailing_due(self) -> Iterable[str]:
        """Lanes that come back though nothing is sent, once in a while."""
        if abs(self._turned_at - self._ailing_at) < VISIT_EVERY_S:
            return ()
        self._ailing_at = self._turned_at
        some = list(islice(self._ailing, MOST_LOOKED_AT))
        for lane in some:  # of very many, the others come next
            self._ailing[lane] = self._ailing.pop(lane)
        return some

    def _note_ailing(self, lane: str, mode: Mode, pinned: bool) -> None:
        if mode in modes.QUIET_S and not pinned:
            self._ailing.setdefault(lane)
        else:
            self._ailing.pop(lane, None)

    def _due(self, pins: Mapping[str, Pin], now: float) -> Iterable[str]:
        """Lanes that must be looked at though nothing was seen of them: pins begin and end there."""
        ended = any(not modes.lives(pin, now) for pin in pins.values())
        if ended or pins != self._pins or now - self._visited_at >= VISIT_EVERY_S:
            self._pins, self._visited_at = pins, now
            return self._pinned(pins)
        return ()

    def _pinned(self, pins: Mapping[str, Pin]) -> Iterable[str]:
        """Lanes with a pin of their own; where all are pinned, those in which something waits or runs."""
        own = [name for name in pins if name != ALL]
        return {*own, *self.control.lanes.working()} if ALL in pins else own

    def _walk_on(self, pins: Mapping[str, Pin], now: float) -> None:
        """Some lanes more of the walk that brings a pin of all lanes, or its end, to those that are idle.

        It is made at a holder's first turn, too, and now and then while all are pinned: what others left undone.
        """
        pin = pins.get(ALL)
        wanted = _Everywhere(pin.id, modes.lives(pin, now)) if pin is not None else _Everywhere("", False)
        again = pin is not None and abs(now - self._walked_at) >= WALK_EVERY_S
        if self._walk is None and wanted == self._walked and not again:
            return
        if self._walk is None or wanted != self._walking:
            self._many = self.control.lanes.count() > MANY_LANES
            self._walk, self._walking = self.control.lanes.survey(WALK_FIELDS, MOST_LOOKED_AT), wanted
        walk, self._walk = self._walk, None  # an error on the way ends it, and the next turn begins anew
        some = next(walk, None)
        if some is None:
            self._walked, self._walked_at = wanted, now
            return
        undone = []
        for seen in some:
            self._note_ailing(seen.lane, seen.state.mode, seen.state.pinned)
            governs = modes.governing(pins.get(seen.lane), pins.get(ALL), now)
            if seen.state.there and seen.state.points.pin != (governs.id if governs is not None else ""):
                undone.append(seen.lane)
        self._visit(undone, pins, now, idle=True)
        self._walk = walk

    def _visit(self, lanes: Iterable[str], pins: Mapping[str, Pin], now: float, *, idle: bool = False) -> None:
        for lane in lanes:
            view = LaneView(lane=lane, state=self.control.lanes.state(lane), seen=())
            self._note_ailing(lane, view.state.mode, view.state.pinned)
            if view.state.pinned or modes.governing(pins.get(lane), pins.get(ALL), now) is not None:
                decision = decide(view, now, self.control.rules, pins)
                if idle and self._many and view.lane not in pins:  # it was told of all lanes together
                    decision = replace(decision, changes=())
                self._write(view, decision, pins, now)

    def _write(self, view: LaneView, decision: Decision, pins: Mapping[str, Pin], now: float) -> None:
        """Write a decision; where a person has set limits since the lane was read, what follows from these."""
        told: set[str] = set()
        for _ in range(MOST_TRIES):
            self._note_ailing(view.lane, decision.mode, decision.pinned)
            if changes := [change for change in decision.changes if change.id not in told]:
                # Told first: a tuner that is killed between may tell a change twice, and loses none.
                told |= {change.id for change in changes}
                self._untold.extend(changes)
                self._tell()
            fields = {**decision.set_points, **decision.memory}
            if not fields or self.control.lanes.set_points(view.lane, fields, view.state.revision) is not None:
                return
            view = replace(view, state=self.control.lanes.state(view.lane))
            decision = decide(view, now, self.control.rules, pins)

    def _give_back(self, pins: Mapping[str, Pin], now: float) -> None:
        """Pins that had ended when this turn looked at their lanes are done with, and exemptions from none."""
        everywhere = pins.get(ALL)
        idle = everywhere is None or not modes.lives(everywhere, now)
        done = {name: pin for name, pin in pins.items() if not modes.lives(pin, now) or (pin.mode is None and idle)}
        if ALL in done and self._walked != _Everywhere(done[ALL].id, False):
            del done[ALL]  # some lanes have not been given back yet
        if done:
            self._tell_end(done.get(ALL), now)
            self.control.pins.drop(done)

    def _tell_end(self, everywhere: Pin | None, now: float) -> None:
        """That a pin of all lanes has ended by itself, where not each of them was told of."""
        if everywhere is not None and self._many and not everywhere.ended_by:
            self._untold.append(ended_everywhere(everywhere, now))

    def _tell(self) -> None:
        while self._untold:
            try:
                tell(self.control.mode_log, self._untold[0])
            except StoreUnavailable as error:
                log.warning("mode.untold", extra={"changes": len(self._untold), "error": str(error)})
                return
            self._untold.popleft()


def tell(mode_log: ModeLog, change: ModeChange) -> None:
    """Put a mode change on its way to the history, and into the log.

    Raises:
        StoreUnavailable: the outbox takes none; nothing was told.
    """
    mode_log.append_mode_change(change)
    log.log(
        logging.INFO if change.to_mode is Mode.NORMAL else logging.WARNING,
        "mode.changed",
        extra={
            "lane": change.lane,
            "from_mode": change.from_mode.value,
            "to_mode": change.to_mode.value,
            "cause": change.cause,
            "numbers": dict(change.numbers),
            "who": change.who,
            "reason": change.reason,
            "until": change.until,
        },
    )


# ── the decision ───────────────────────────────────────────────────────────────────────────────────────────────────


def decide(
    view: LaneView, now: float, rules: Rules, pins: Mapping[str, Pin], shares: Mapping[str, float] | None = None
) -> Decision:
    """What follows from what was seen of a lane, and from the pins.

    Args:
        now: Seconds, Redis clock.
        shares: Of budgets that the lane shares with others, by dimension (`policy.siblings`); None: as it was.
    """
    state = view.state
    limits = state.told.limits
    kind = _Kind.of(limits)
    learned = _learn(view, now, limits, rules.thresholds, shares)
    health = learned.health
    rates = replace(rules.rates, normal=limits.rpm) if limits.rpm else rules.rates
    pin = modes.governing(pins.get(view.lane), pins.get(ALL), now)
    held = modes.hold(health, pin, now, rates=rates, adaptive=kind is not _Kind.FIXED, paced=kind is not _Kind.UNBOUND)
    bounds = (held.probes, learned.ramp, flight.bound(learned.flight))
    gate_us = _gate(state.points, pin, held, learned, now)
    points = structs.replace(
        state.points,
        mode=_mode(pin, health),
        pin=pin.id if pin is not None else "",
        escalates=rules.thresholds.escalates and (pin is None or pin.mode is not Mode.NORMAL),
        at_once=min((bound for bound in bounds if bound), default=0),
        probes=bounds[0],
        ramp=bounds[1],
        flight=bounds[2],
        gap_us=round(held.gap_s * _US),
        sick_share=round(modes.sick_share(health, now), 2),
        gate_us=state.points.gate_us if gate_us is None else gate_us,
    )
    law = state.memory.law
    anchors: Mapping[str, Anchor] = {}
    levels: Fields = {}
    if state.limited:
        points, levels = _unbinding(points, kind, held)
        paces, learned_law = _paces(learned, kind, held, limits, rates, now, state.levels.turned_back)
        points = _paced(points, paces, limits)
        law, anchors = law if learned_law is None else learned_law, paces.anchors if paces is not None else {}
        if held.pause_s and _begins(state.points, pin):
            levels = {**levels, **encode_levels(emptied="requests")}
    memory = Memory(law=law, health=_encode(health) if health != ModeState() or state.memory.health else b"")
    return Decision(
        set_points={**points.encode_changes(state.points), **levels},
        memory={**memory.encode_changes(state.memory), **encode_levels(anchors)},
        after=structs.replace(state, points=points, memory=memory),
        anchors=anchors,
        changes=_changes(view, now, pin, learned, pins, rules),
        standing=Standing(lane=view.lane, at=now, dimensions=pace.counted(learned.pace, now, state.levels.sent)),
        mode=_mode(pin, health),
        pinned=pin is not None,
    )


class _Kind(Enum):
    ADAPTIVE = "adaptive"  #: the law finds its pace
    FIXED = "fixed"  #: a person has
    UNBOUND = "unbound"  #: it has none, but modes hold

    @staticmethod
    def of(limits: LaneLimits) -> _Kind:
        if limits.unlimited:
            return _Kind.UNBOUND
        return _Kind.ADAPTIVE if limits.adaptive or limits.shared else _Kind.FIXED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    pace: pace.PaceState
    flight: flight.FlightState
    health: ModeState
    moves: Sequence[Move]
    refused: bool  #: a refusal was among what was seen
    crowded_until: float  #: the gate that these have shut at most, if each was for calls at once; 0: not each
    ramp: int  #: calls out at once while the pace is not known yet or nothing but refusals come; 0: no bound


def _learn(
    view: LaneView, now: float, limits: LaneLimits, thresholds: Thresholds, shares: Mapping[str, float] | None
) -> _Learned:
    """The law, run on all that was seen since the last look."""
    kind = _Kind.of(limits)
    if kind is _Kind.FIXED:
        thresholds = replace(thresholds, refusals_count=True)
    adaptive = kind is _Kind.ADAPTIVE
    law = _law(view.state.memory, limits, view.lane)
    health = _health(view.state.memory, view.lane)
    state, out = law.pace, law.flight
    if shares is not None:
        state = pace.with_shares(state, shares)
    moves: list[Move] = []
    refusals = crowds = 0
    crowded_until = 0.0
    if (given_back := view.state.memory.given_back) is not None:
        health, move = modes.release(health, given_back.at_s, given_back.who)
        moves += [move] if move is not None else []
    if thresholds.escalates:
        health = modes.count_good(health, now, view.goods)
    if adaptive:
        state = pace.count_answers(state, view.goods)
        out = flight.answered(out, now, view.goods, view.took_s) if view.goods else out
    for raw in view.seen:
        try:
            seen = observe.decode(raw)
        except msgspec.MsgspecError:
            log.warning("observation.unreadable", extra={"lane": view.lane})
            continue
        refusals += seen.refused
        if adaptive:
            out, crowded = flight.observe(out, seen)
            if crowded:
                crowds += 1
                crowded_until = max(crowded_until, seen.at + (seen.retry_after_s or MOST_UNTOLD_GATE_S) + 1.0)
            state = pace.observe(state, seen, limits, crowded)
        health, move = modes.observe(health, _answer(seen, thresholds), thresholds)
        moves += [move] if move is not None else []
    health, move = modes.quiet(modes.step(health, now), now, view.out)
    moves += [move] if move is not None else []
    sent = view.state.levels.sent
    if adaptive:
        gate = view.state.points.gate_us / _US
        if view.out is not None:
            out = flight.step(
                out, now, view.out, pace.calls_per_s(state), well=gate <= now and health.mode is Mode.NORMAL
            )
        if flight.guessed(out) and not flight.guessed(law.flight):
            state = pace.unlearned(state, limits, now)
        state = pace.step(state, now, sent, limits, gate, careful=health.mode is not Mode.NORMAL)
    if kind is _Kind.UNBOUND and view.state.points.unpaced:  # else a mode holds it back
        health = modes.measure(health, now, sent[0])
    if not thresholds.escalates:
        health = ModeState(rate=health.rate, rate_at=health.rate_at, rate_sent=health.rate_sent)
    ramp = pace.ramp(state) if adaptive else 0
    return _Learned(
        pace=state,
        flight=out,
        health=health,
        moves=moves,
        refused=refusals > 0,
        crowded_until=crowded_until if refusals == crowds else 0.0,
        ramp=ramp,
    )


def _answer(seen: pace.Observation, thresholds: Thresholds) -> Answer:
    """What the mode looks at in an observation."""
    return Answer(
        at=seen.at,
        sent_at=seen.ticket.sent_at,
        sick=seen.sick or (seen.refused and thresholds.refusals_count),
        good=seen.good,
        quota=seen.quota,
        barred=seen.barred,
        older=seen.older,
        witness=seen.witness,
    )


def halted_by(lane: LaneState) -> Literal["", "key", "quota"]:
    """For what the law has halted a lane: a key that nobody accepts, or a quota that is used up."""
    if lane.mode is not Mode.HALT or lane.pinned or not lane.memory.health:
        return ""
    return "key" if _health(lane.memory, "").barred else "quota"


def _changes_with_time(lane: LaneState) -> bool:
    """Whether a lane has probes, pauses or trials that end by themselves."""
    return _Kind.of(lane.told.limits) is _Kind.ADAPTIVE or lane.mode is not Mode.NORMAL


def _mode(pin: Pin | None, health: ModeState) -> Mode:
    return pin.mode if pin is not None and pin.mode is not None else health.mode


def _paces(
    learned: _Learned,
    kind: _Kind,
    held: Hold,
    limits: LaneLimits,
    rates: Rates,
    now: float,
    turned_back: Units,
) -> tuple[Paces | None, bytes | None]:
    """What law, person and mode allow (None: it stays), and what the law remembers of it, packed (None: nothing)."""
    match kind:
        case _Kind.ADAPTIVE:
            state, written = pace.set_points(learned.pace, now, turned_back)
            if held.share != 1.0:
                shared = {name: structs.replace(one, pace=one.pace * held.share) for name, one in written.paces.items()}
                written = written._replace(paces=shared)
            requests = written.paces.get("requests")
            if held.rpm is not None and (requests is None or requests.pace > held.rpm / 60):
                written = written._replace(paces={**written.paces, "requests": Pacing(held.rpm / 60)})
            return written, _encode(Law(state, learned.flight))
        case _Kind.FIXED:
            return pace.set_points(pace.initial(replace(limits, rpm=held.rpm or rates.normal)), now)[1], None
        case _Kind.UNBOUND if held.rpm is not None:
            return pace.set_points(pace.initial(LaneLimits(rpm=held.rpm)), now)[1], None
        case _:
            return None, None


def _paced(points: SetPoints, written: Paces | None, limits: LaneLimits) -> SetPoints:
    """With these paces; those of other dimensions stay, but for what nobody has told of a lane that is shared."""
    before = points.paces
    if limits.shared:
        before = {name: one for name, one in before.items() if name != "requests"}
    if written is None:
        return points if before is points.paces else structs.replace(points, paces=before)
    return structs.replace(points, paces={**before, **written.paces}, headers_govern=written.headers_govern)


def _unbinding(points: SetPoints, kind: _Kind, held: Hold) -> tuple[SetPoints, Fields]:
    """A mode that binds sets aside that a lane is unlimited, and its end gives it back → with the levels that go."""
    if kind is not _Kind.UNBOUND or not (held.binds or points.set_aside):
        return points, {}
    others = {name: one for name, one in points.paces.items() if name != "requests"}
    if held.binds:
        return structs.replace(points, unpaced=False, set_aside=True, paces=others), {}
    return structs.replace(points, unpaced=True, set_aside=False, paces=others), encode_levels(filled="requests")


def _gate(points: SetPoints, pin: Pin | None, held: Hold, learned: _Learned, now: float) -> int | None:
    """The gate to be written, µs since the epoch; None: it stays.

    Gates are the refusals' too. One that a mode has set lies at most its gap ahead, or is the shut lane's; what goes
    further is a refusal's and stays.
    """
    gate, gap_before = points.gate_us, points.gap_us
    gap, now_us = round(held.gap_s * _US), round(now * _US)
    if held.shut:
        return None if gate == SHUT_US else SHUT_US
    if held.pause_s and _begins(points, pin):
        return max(now_us + round(held.pause_s * _US), 0 if gate == SHUT_US else gate)
    if gate == SHUT_US:
        return 0
    moved = [move.to_mode for move in learned.moves]
    if pin is None and Mode.HALT in moved and learned.health.mode is Mode.HALT:
        return max(now_us + gap, gate)  # no probe at once: nobody has paid yet
    if now_us < gate <= learned.crowded_until * _US and not held.gap_s:
        return 0  # the bound on calls at once keeps them, and a place is free as soon as one ends
    if gap < gap_before and not learned.refused and now_us < gate <= now_us + gap_before:
        return 0  # a probe was answered, or the lane is free again
    return None


def _begins(points: SetPoints, pin: Pin | None) -> bool:
    """Whether the pin takes hold in the lane just now."""
    return pin is not None and points.pin != pin.id


def _law(memory: Memory, limits: LaneLimits, lane: str) -> Law:
    if memory.law:
        try:
            return _decode_law(memory.law)
        except msgspec.MsgspecError:
            log.warning("law.unreadable", extra={"lane": lane})
    return Law(pace.initial(limits))


def _health(memory: Memory, lane: str) -> ModeState:
    if memory.health:
        try:
            return _decode_health(memory.health)
        except msgspec.MsgspecError:
            log.warning("health.unreadable", extra={"lane": lane})
    return ModeState()


# ── what is told of it ─────────────────────────────────────────────────────────────────────────────────────────────


def _changes(
    view: LaneView,
    now: float,
    pin: Pin | None,
    learned: _Learned,
    pins: Mapping[str, Pin],
    rules: Rules,
) -> list[ModeChange]:
    """The transitions of the mode that holds: while a lane is pinned, the law's own are not."""
    before, held = view.state.mode, view.state.points.pin
    after = _mode(pin, learned.health)
    if (pin.id if pin is not None else "") != held:
        return [
            began(view.lane, before, pin, now) if pin is not None else _ended(view.lane, before, after, held, pins, now)
        ]
    if pin is not None:
        return []
    if learned.moves:
        return [_moved(view.lane, move) for move in learned.moves]
    if before is after:
        return []
    cause = "escalation is switched off" if not rules.thresholds.escalates else "what the law remembered is gone"
    return [_moved(view.lane, Move(from_mode=before, to_mode=after, at=now, cause=cause))]


def began(lane: str, before: Mode, pin: Pin, now: float) -> ModeChange:
    """The event of a pin that takes hold in a lane; the same id whoever tells it."""
    return ModeChange(
        id=_digest("pinned", pin.id, lane),
        lane=lane,
        from_mode=before,
        to_mode=pin.mode or before,
        at=now,
        cause="all lanes were pinned" if pin.everywhere else "the lane was pinned",
        who=pin.who,
        reason=pin.reason,
        until=pin.until,
    )


def ended_everywhere(pin: Pin, now: float) -> ModeChange:
    """The event of a pin of all lanes that holds no more, for all of them."""
    return _ended(ALL, pin.mode or Mode.NORMAL, Mode.NORMAL, pin.id, {ALL: pin}, now)


def _ended(lane: str, before: Mode, after: Mode, held: str, pins: Mapping[str, Pin], now: float) -> ModeChange:
    """The event of a pin that holds no more."""
    entries = [pin for pin in (pins.get(lane), pins.get(ALL)) if pin is not None]
    ended = next((pin for pin in entries if pin.id == held), None)
    own = pins.get(lane)
    if own is not None and own.mode is None and modes.lives(own, now):
        who, reason, cause = own.who, own.reason, "the lane was given back to the law"
    elif ended is not None and ended.ended_by:
        who, reason, cause = ended.ended_by, ended.reason, "the lane was given back to the law"
    else:
        who, reason = "law", ""
        cause = f"the pin of {ended.who} has ended" if ended is not None else "the pin has ended"
    return ModeChange(
        id=_digest("ended", held, lane, str(own.id) if own is not None and own.mode is None else ""),
        lane=lane,
        from_mode=before,
        to_mode=after,
        at=now,
        cause=cause,
        who=who,
        reason=reason,
    )


def _moved(lane: str, move: Move) -> ModeChange:
    return ModeChange(
        id=_digest("moved", lane, repr(move.at), move.from_mode, move.to_mode),
        lane=lane,
        from_mode=move.from_mode,
        to_mode=move.to_mode,
        at=move.at,
        cause=move.cause,
        numbers=move.numbers,
        who=move.who,
    )


def _digest(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return blake2s(text, digest_size=16).hexdigest()
