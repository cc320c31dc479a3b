"""What follows from the observations of a lane? Pure: state, pins and rules in; set-points and memory out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum

import msgspec
from msgspec import Struct, field, structs

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.lane import (
    SHUT_US,
    Anchor,
    Fields,
    LaneState,
    Memory,
    Pacing,
    SetPoints,
    Units,
    encode_levels,
)
from ratelimit_worker.flow.call import observe
from ratelimit_worker.flow.lane.events import began, ended, moved
from ratelimit_worker.flow.lane.health import health_of
from ratelimit_worker.policy import flight, modes, pace
from ratelimit_worker.policy.modes import ALL, Answer, Hold, ModeState, Move, Pin, Rates, Thresholds
from ratelimit_worker.policy.pace import Paces
from ratelimit_worker.policy.siblings import Standing
from ratelimit_worker.ports import LaneView

log = logging.getLogger(__name__)

MOST_UNTOLD_GATE_S = 15.0  #: longest time for which a refusal without Retry-After closes the gate (learn.lua)
GAP_JITTER = 1.2  #: a probe's gap is at most so many times as long as it was set (bucket.lua)
_US = 1e6


class Rules(Struct, frozen=True, kw_only=True):
    """The rules of the law, as a person has set them."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    rates: Rates = field(default_factory=Rates)


def rules_of(settings: Settings) -> Rules:
    """The rules by the settings."""
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
    """What the law remembers of one lane's pace, stored in `Memory.law`; its ModeState is in `Memory.health`."""

    pace: pace.PaceState
    flight: flight.FlightState = flight.FlightState()


_encode = msgspec.msgpack.Encoder().encode
_decode_law = msgspec.msgpack.Decoder(Law).decode


class Decision(Struct, frozen=True, kw_only=True):
    """What follows for a lane."""

    set_points: Fields  #: changed set-points
    memory: Fields  #: changed memory of the law, and levels; only the tuner writes these
    after: LaneState  #: the lane after this, except for the levels
    anchors: Mapping[str, Anchor]  #: of the levels, by dimension
    changes: Sequence[ModeChange]
    standing: Standing  #: figures of the lane that other lanes of its provider need
    mode: Mode = Mode.NORMAL  #: the mode that holds now
    pinned: bool = False


def decide(
    view: LaneView, now: float, rules: Rules, pins: Mapping[str, Pin], shares: Mapping[str, float] | None = None
) -> Decision:
    """What follows for a lane from its observations and the pins.

    Args:
        now: Seconds, Redis clock.
        shares: The lane's shares of budgets that it shares with others, by dimension (`policy.siblings`); None:
            unchanged.
    """
    state = view.state
    limits = state.told.limits
    kind = _Kind.of(limits)
    learned = _learn(view, now, limits, rules.thresholds, shares)
    health = learned.health
    rates = structs.replace(rules.rates, normal=limits.rpm) if limits.rpm else rules.rates
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
    FIXED = "fixed"  #: a person has set it
    UNBOUND = "unbound"  #: it has none, but modes apply

    @staticmethod
    def of(limits: LaneLimits) -> _Kind:
        if limits.unlimited:
            return _Kind.UNBOUND
        return _Kind.ADAPTIVE if limits.adaptive or limits.shared else _Kind.FIXED


class _Learned(Struct, frozen=True, kw_only=True):
    pace: pace.PaceState
    flight: flight.FlightState
    health: ModeState
    moves: Sequence[Move]
    refused: bool  #: there was a refusal among the observations
    crowded_until: float  #: if all refusals were for too many calls at once: until when they closed the gate; else 0
    ramp: int  #: most calls out at once while the pace is not known, or only refusals come; 0: no bound


def _learn(
    view: LaneView, now: float, limits: LaneLimits, thresholds: Thresholds, shares: Mapping[str, float] | None
) -> _Learned:
    """Run the law on all observations since the last look."""
    kind = _Kind.of(limits)
    if kind is _Kind.FIXED:
        thresholds = structs.replace(thresholds, refusals_count=True)
    adaptive = kind is _Kind.ADAPTIVE
    law = _law(view.state.memory, limits, view.lane)
    health = health_of(view.state.memory, view.lane)
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
    for seen in _observations(view):
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
    if kind is _Kind.UNBOUND and view.state.points.unpaced:  # no mode holds it back
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


def _observations(view: LaneView) -> Iterator[pace.Observation]:
    """The observations since the last look; those that cannot be read (a newer version's) are left out."""
    for raw in view.seen:
        try:
            yield observe.decode(raw)
        except msgspec.MsgspecError:
            log.warning("observation.unreadable", extra={"lane": view.lane})


def _answer(seen: pace.Observation, thresholds: Thresholds) -> Answer:
    """The part of an observation that the mode depends on."""
    return Answer(
        at=seen.at,
        sent_at=seen.ticket.sent_at,
        seq=seen.ticket.seq,
        sick=seen.sick or (seen.refused and thresholds.refusals_count),
        good=seen.good,
        quota=seen.quota,
        barred=seen.barred,
        older=seen.older,
        witness=seen.witness,
    )


def changes_with_time(lane: LaneState) -> bool:
    """Whether a lane has probes, pauses or trials that end by time alone."""
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
    """Paces by law, person and mode (None: unchanged), and the law's memory of them, packed (None: none)."""
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
    """Set-points with these paces. Those of other dimensions stay, except in a parent, where limits that no person has
    set are removed."""
    before = points.paces
    if limits.shared:
        before = {name: one for name, one in before.items() if name != "requests"}
    if written is None:
        return points if before is points.paces else structs.replace(points, paces=before)
    return structs.replace(points, paces={**before, **written.paces}, headers_govern=written.headers_govern)


def _unbinding(points: SetPoints, kind: _Kind, held: Hold) -> tuple[SetPoints, Fields]:
    """While a mode holds it back, a lane is not unlimited; afterwards it is again → set-points, levels to forget."""
    if kind is not _Kind.UNBOUND or not (held.binds or points.unpaced_again):
        return points, {}
    others = {name: one for name, one in points.paces.items() if name != "requests"}
    if held.binds:
        return structs.replace(points, unpaced=False, unpaced_again=True, paces=others), {}
    return structs.replace(points, unpaced=True, unpaced_again=False, paces=others), encode_levels(filled="requests")


def _gate(points: SetPoints, pin: Pin | None, held: Hold, learned: _Learned, now: float) -> int | None:
    """The gate to be written, µs since the epoch; None: it stays.

    Refusals close the gate as well. A gate that a mode has set ends within the mode's gap, or is that of a shut lane;
    one that ends later is a refusal's, and stays.
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
        return max(now_us + gap, gate)  # the first probe after a gap: nobody will have paid at once
    if now_us < gate <= learned.crowded_until * _US and not held.gap_s:
        return 0  # the bound on calls at once holds them back, and the next may go as soon as one ends
    if gap < gap_before and not learned.refused and now_us < gate <= now_us + GAP_JITTER * gap_before:
        return 0  # a probe was answered, or the lane is free again
    return None


def _begins(points: SetPoints, pin: Pin | None) -> bool:
    """Whether the pin takes effect in the lane just now."""
    return pin is not None and points.pin != pin.id


def _law(memory: Memory, limits: LaneLimits, lane: str) -> Law:
    if memory.law:
        try:
            return _decode_law(memory.law)
        except msgspec.MsgspecError:
            log.warning("law.unreadable", extra={"lane": lane})
    return Law(pace.initial(limits))


def _changes(
    view: LaneView,
    now: float,
    pin: Pin | None,
    learned: _Learned,
    pins: Mapping[str, Pin],
    rules: Rules,
) -> list[ModeChange]:
    """The changes of the lane's mode; while it is pinned, changes by the law are not among them."""
    before, held = view.state.mode, view.state.points.pin
    after = _mode(pin, learned.health)
    if (pin.id if pin is not None else "") != held:
        return [
            began(view.lane, before, pin, now) if pin is not None else ended(view.lane, before, after, held, pins, now)
        ]
    if pin is not None:
        return []
    if learned.moves:
        return [moved(view.lane, move) for move in learned.moves]
    if before is after:
        return []
    cause = "escalation is switched off" if not rules.thresholds.escalates else "what the law remembered is gone"
    return [moved(view.lane, Move(from_mode=before, to_mode=after, at=now, cause=cause))]
