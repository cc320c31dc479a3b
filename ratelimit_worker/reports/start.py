"""When does a waiting call start? A forecast from its bars, its place and the coming paces of its lane. Pure.

The budget is in the lane's hash: a call starts when each bucket has filled by the cost of the call and of all calls
before it. If a pin ends before that, the tuner's own decision function says what the lane may send from then on. At a
parent, a lane takes its turn among the lanes that wait there. There is no forecast during an outage, or while a new
lane does not know its pace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, inf

from msgspec import Struct, structs

from ratelimit_worker.calls import DIMENSIONS, Mode
from ratelimit_worker.contracts.call import US
from ratelimit_worker.contracts.lane import MANY, RETRIES_PER_S, RETRY_SHARE, SHUT_US, LaneState
from ratelimit_worker.flow.lane.decide import Rules, decide
from ratelimit_worker.policy import day
from ratelimit_worker.policy.modes import ALL, Pin, governing
from ratelimit_worker.ports import Bar, BarKind, LaneView
from ratelimit_worker.reports.mode import mode_now
from ratelimit_worker.stores.live import CallNow, LaneNow

DAY_S = 86_400.0
Cost = Sequence[float]  #: in the order of `DIMENSIONS`
_MOST_PINS = 3  #: how many pins are considered that end one after the other before the call starts
_NEVER = frozenset(
    {BarKind.NEWER, BarKind.SUSPECT, BarKind.CLAIM, BarKind.PROBES, BarKind.RAMP, BarKind.TASK}
)  #: bars whose end cannot be known
SURE_S = 1.0  #: a forecast is shown only if a pace that is not known yet can change it by at most so many seconds


class Ahead(Struct, frozen=True, kw_only=True):
    """How many calls go before a call, what they cost, and what it costs itself."""

    calls: float
    mean: Cost  #: mean cost of each of them
    own: Cost

    def less(self, calls: float) -> Ahead:
        """The same after this many of the calls before it have left."""
        return structs.replace(self, calls=max(0.0, self.calls - calls))

    def times(self, share: float) -> Ahead:
        """The same if `share` calls leave in the time of each of them (itself, and those of other lanes)."""
        return structs.replace(self, calls=self.calls * share)


class _Bucket(Struct, frozen=True):
    """One dimension, at the moment `Budget.gate_s`."""

    pace: float
    level: float
    depth: float
    guard: float


class Budget(Struct, frozen=True):
    """What a lane may send from a moment on, according to its hash, if nothing changes."""

    gate_s: float  #: seconds since the epoch; nothing leaves before: now, or when its gate opens; inf: never
    gap_s: float  #: least time between two starts
    buckets: Mapping[int, _Bucket]  #: by number of the dimension, from 0

    @classmethod
    def of(cls, lane: LaneState, at_s: float) -> Budget:
        """The budget of a lane in its present state, from `at_s` on."""
        points = lane.points
        gate_s = inf if points.gate_us >= SHUT_US else max(at_s, points.gate_us / US)
        opens_us = min(gate_s, at_s + DAY_S) * US
        buckets = {}
        for i, dimension in enumerate(DIMENSIONS):
            one = None if points.unpaced else points.paces.get(dimension)
            if one is not None:
                buckets[i] = _Bucket(one.pace, lane.level(dimension, opens_us), one.depth, one.guard)
        gap_s = points.gap_us / US if points.at_once > 0 else 0.0
        return cls(gate_s=gate_s, gap_s=gap_s, buckets=buckets)

    def when_s(self, ahead: Ahead) -> float:
        """When the budget releases the call, seconds since the epoch; inf: never."""
        if self.gate_s == inf:
            return inf
        when_s = self.gate_s + ahead.calls * self.gap_s
        for i, bucket in self.buckets.items():
            need = min(ahead.own[i], bucket.depth - bucket.guard) + bucket.guard
            short = ahead.calls * ahead.mean[i] + need - bucket.level
            if short > 1e-9:
                when_s = max(when_s, self.gate_s + short / bucket.pace if bucket.pace > 0 else inf)
        return when_s

    def each_s(self, mean: Cost) -> float:
        """Seconds from one call to the next when many wait; inf: its gate is shut, or its pace is 0."""
        many = 1e6
        first_s, last_s = (self.when_s(Ahead(calls=calls, mean=mean, own=mean)) for calls in (0.0, many))
        return inf if last_s == inf else (last_s - first_s) / many

    def gone_by(self, ahead: Ahead, until_s: float) -> float:
        """How many of the calls before it have left by `until_s` (seconds since the epoch)."""
        first_s, each_s = self.when_s(structs.replace(ahead, calls=0.0, own=ahead.mean)), self.each_s(ahead.mean)
        if first_s > until_s:
            return 0.0
        return ahead.calls if each_s <= 0 else min(ahead.calls, floor((until_s - first_s) / each_s) + 1)


class Forecast(Struct, frozen=True, kw_only=True):
    """Everything that a forecast needs.

    Args:
        at_s: Now, seconds since the epoch.
        parents: The lane's parents, by name.
        pins: All pins that are in force, by lane.
        rules: Settings of the law.
        latency_s: Recent mean of an answered attempt; None: not known.
        slots: Slots that the lane's calls may use.
    """

    at_s: float
    lane: LaneNow
    parents: Mapping[str, LaneNow]
    pins: Mapping[str, Pin]
    rules: Rules
    latency_s: float | None
    slots: int

    def starts_in_s(self, call: CallNow) -> float | None:
        """Seconds from now until the call starts; None: it cannot be known."""
        bars = call.bars
        if bars is None or not self._knowable(bars):
            return None
        own = call.record.cost
        mean = self.lane.cost or own
        due_s = max((bar.until_s or self.at_s for bar in bars if bar.kind is BarKind.DUE), default=self.at_s)
        place = call.place
        if place is None:  # it gets a place when it is due: a retry before the waiting calls, others after them
            place = 0 if call.record.number else self.lane.waiting
        ahead = Ahead(calls=place, mean=mean, own=own)
        starts_s = self._admitted_s(self.lane, ahead, 1.0)
        if mode_now(self.lane.state).ramping and starts_s - self._admitted_s(self._grown(), ahead, 1.0) > SURE_S:
            return None
        for bar in bars:
            if bar.kind is BarKind.RETRIES:
                starts_s = min(starts_s, self._budgeted_s(ahead, bar.number / 1e4))
        held = {bar.detail for bar in bars if bar.kind is BarKind.PARENT}
        for name, parent in self.parents.items():
            lanes = parent.row + (0 if name in held else 1)  # `row` counts this lane if it waits for that parent
            starts_s = max(starts_s, self._admitted_s(parent, ahead, max(1, lanes)))
        room_s = self._room_s(bars, place)
        if starts_s == inf or room_s is None:
            return None
        return max(due_s, starts_s, room_s) - self.at_s

    def _knowable(self, bars: Sequence[Bar]) -> bool:
        mode = mode_now(self.lane.state, self.lane.pin)
        if mode.away or 0 < self.lane.state.points.probes < MANY or (mode.mode is Mode.HALT and not mode.pinned):
            return False
        for bar in bars:
            innermost = bar.parent or bar
            if innermost.kind in _NEVER:
                return False
            if bar.kind is BarKind.SLOTS and not bar.number:
                return False
        return True

    def _grown(self) -> LaneNow:
        """The lane once its pace of requests is known: as if requests were no limit."""
        points = self.lane.state.points
        tokens = {name: one for name, one in points.paces.items() if name != "requests"}
        return structs.replace(
            self.lane, state=structs.replace(self.lane.state, points=structs.replace(points, paces=tokens))
        )

    def _admitted_s(self, lane: LaneNow, ahead: Ahead, share: float) -> float:
        """When a lane's budget releases the call, seconds since the epoch, with the pins that end before; inf: never.

        Args:
            share: Calls that leave for each of this lane's, including that one: more than 1 at a parent.
        """
        state, at_s = lane.state, self.at_s
        for _ in range(_MOST_PINS):
            budget = Budget.of(state, at_s)
            when_s = max(budget.when_s(ahead.times(share)), self._quota_s(lane, budget, ahead))
            pin = governing(self.pins.get(lane.lane), self.pins.get(ALL), at_s)
            if pin is None or pin.until is None or when_s <= pin.until:
                return when_s
            gone = budget.gone_by(ahead.times(share), pin.until)
            state = self._after(lane.lane, state, budget, ahead, gone, pin.until)
            ahead, at_s = ahead.less(gone / share), pin.until
        budget = Budget.of(state, at_s)
        return max(budget.when_s(ahead.times(share)), self._quota_s(lane, budget, ahead))

    def _after(self, lane: str, state: LaneState, budget: Budget, ahead: Ahead, gone: float, at_s: float) -> LaneState:
        """The lane's state when the pin has ended, as the tuner will write it."""
        level = dict(state.levels.level)
        for i, bucket in budget.buckets.items():
            earned = bucket.level + bucket.pace * max(0.0, at_s - budget.gate_s) - gone * ahead.mean[i]
            level[DIMENSIONS[i]] = min(bucket.depth, earned)
        state = structs.replace(state, levels=structs.replace(state.levels, at_us=at_s * US, level=level))
        decision = decide(LaneView(lane=lane, state=state, seen=()), at_s, self.rules, self.pins)
        sent, turned_back = state.levels.sent, state.levels.turned_back
        for i, dimension in enumerate(DIMENSIONS):  # with an anchor, the level follows from all that was sent
            anchor = decision.anchors.get(dimension)
            if anchor is not None:
                level[dimension] = anchor.units - (sent[i] + gone * ahead.mean[i]) + turned_back[i]
        return structs.replace(decision.after, levels=structs.replace(state.levels, level=level))

    def _quota_s(self, lane: LaneNow, budget: Budget, ahead: Ahead) -> float:
        """When the lane's daily quotas allow the call: now, or on a later day after the calls before it."""
        told, when_s = lane.state.told, self.at_s
        limits, zone = told.limits, told.day_steps
        for i, (what, quota) in enumerate((("requests", limits.rpd), ("tokens", limits.tpd))):
            before = lane.used_today.get(what, 0.0) + ahead.calls * ahead.mean[i]
            wanted = before + min(ahead.own[i], quota or 0.0)
            if quota and wanted > quota + 1e-9:
                days = int((wanted - 1e-9) // quota)
                that_day = max(0.0, before - days * quota) / max(1e-9, ahead.mean[i])
                after_s = that_day * budget.each_s(ahead.mean) if that_day else 0.0
                when_s = max(when_s, day.end_s(zone, day.number(zone, self.at_s) + days - 1) + after_s)
        return when_s

    def _budgeted_s(self, ahead: Ahead, left: float) -> float:
        """When the retry budget lets the call go before the others, seconds since the epoch."""
        pace = Budget.of(self.lane.state, self.at_s)
        requests = pace.buckets[0].pace if 0 in pace.buckets else 0.0
        return self.at_s + max(0.0, 1.0 - left) / (RETRY_SHARE * requests + RETRIES_PER_S)

    def _room_s(self, bars: Sequence[Bar], place: int) -> float | None:
        """When a place for it is free: a limited number of calls run at once, each for the recent mean latency.

        Seconds since the epoch; None: all places are taken, and the latency is not known.
        """
        room_s = self.at_s
        caps = [float(cap) for cap in (self.lane.state.told.limits.concurrency,) if cap]
        flight = float(self.lane.state.points.flight)
        bounds = [*caps, *([flight] if flight else []), *([float(self.slots)] if self.slots else [])]
        full = {BarKind.CONCURRENCY, BarKind.FLIGHT, BarKind.SLOTS} & {bar.kind for bar in bars}
        full |= {bar.parent.kind for bar in bars if bar.parent is not None} & {BarKind.CONCURRENCY, BarKind.FLIGHT}
        if self.latency_s is None:
            return None if full else room_s
        for most in bounds:
            out = self.lane.ready + self.lane.running
            ended = place + max(out, most if full else 0) - most + 1  # calls that must end before it starts
            room_s = max(room_s, self.at_s + max(0.0, ended) * self.latency_s / most)
        return room_s
