"""The tuner: takes the observations of all lanes, runs the law on them in order, and writes set-points.

There is one tuner at a time, under a lease. Its state is in the lanes' hashes, so the next holder goes on where the
last one stopped. Pins (flow/lane/pin.py) write the same set-points by the same `decide`, but not the law's memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.contracts.lane import WALK_FIELDS, Write
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.lane.attention import Attention
from ratelimit_worker.flow.lane.decide import Decision, Rules, changes_with_time, decide
from ratelimit_worker.flow.lane.events import ended_everywhere, tell
from ratelimit_worker.policy import modes
from ratelimit_worker.policy.modes import ALL, Pin
from ratelimit_worker.policy.siblings import Siblings
from ratelimit_worker.ports import Lanes, LaneSeen, LaneView, ModeLog, Pins

log = logging.getLogger(__name__)

TUNE_EVERY_S = 0.1  #: about ten turns a second; a refusal wakes it at once
LEASE_S = 2.0
BATCH = 50  #: most lanes that one script reads, or one writes, so that the server can serve others in between
MOST_BATCHES = 10  #: most batches of lanes with news in a turn
#: Most looks in a turn, and how many of them are always for lanes that time alone may change; lanes with news come
#: first.
LOOKS, LEAST_BY_TIME = 60, 6
VISIT_EVERY_S = 1.0  #: how often pinned lanes are looked at without news
MOST_LOOKED_AT = 200  #: most lanes in a turn for a walk over all lanes, or over those not in NORMAL
WALK_EVERY_S = 60.0  #: how often all lanes are walked over while all are pinned
MANY_LANES = 100  #: with more lanes, a pin of all is recorded once, and not for each idle lane
MOST_TRIES = 8  #: most attempts to write a lane's set-points while a person keeps changing its limits or mode
MOST_UNTOLD = 1_000  #: mode changes kept while the outbox accepts none


class ControlPlane(Struct, frozen=True, kw_only=True):
    """The stores and rules that are needed to steer lanes."""

    lanes: Lanes
    pins: Pins
    mode_log: ModeLog
    rules: Rules = field(default_factory=Rules)


class _Everywhere(NamedTuple):
    """The pin of all lanes ("": none), and whether it still holds."""

    pin: str
    lives: bool


class Tuner:
    """The tuner, a duty of one worker. Errors of Redis are passed on; the next turn completes what was left undone."""

    def __init__(self, control: ControlPlane) -> None:
        self.control = control
        self._visited_at = float("-inf")
        self._pins: Mapping[str, Pin] | None = None  #: None: this is its first turn
        self._to_visit: dict[str, None] = {}  #: lanes with a pin of their own that are to be looked at, in this order
        self._next_own = 0  #: if there are many of them, where the next second begins
        self._walk: Iterator[Sequence[LaneSeen]] | None = None  #: the walk over all lanes, some in each turn
        self._walking: _Everywhere | None = None  #: the pin that this walk brings to the lanes
        self._walked: _Everywhere | None = None  #: the pin that every lane has; None: this is its first turn
        self._walked_at = float("-inf")
        self._many = False  #: whether there are more than MANY_LANES
        self._attention = Attention()  #: lanes that time alone may change
        self._news = 0  #: lanes with news in the last turn
        self.behind = False  #: there is news of more lanes than the last turn could look at
        self._ailing: dict[str, None] = {}  #: lanes whose mode may end by time alone, in the order of looking
        self._ailing_at, self._turned_at = float("-inf"), 0.0  #: when they were looked at, and the last turn was
        self._untold: deque[ModeChange] = deque(maxlen=MOST_UNTOLD)
        self._siblings = Siblings.none()

    def turn(self, owner: str) -> int | None:
        """Look at the lanes with news → how many; None: another holds the duty."""
        self.behind = False
        also = {*self._attention.next(max(LEAST_BY_TIME, LOOKS - self._news), self._turned_at), *self._ailing_due()}
        views: list[LaneView] = []
        pins: Mapping[str, Pin] = {}
        self._news, now = 0, self._turned_at
        for _ in range(MOST_BATCHES):
            taken = self.control.lanes.take(owner, LEASE_S, BATCH, also=also)
            if taken is None:
                self._pins, self._walk, self._walked, self._ailing, self._to_visit = None, None, None, {}, {}
                self._attention = Attention()
                return None
            now, also = taken.now_s, set()
            self._turned_at = now
            pins = self.control.pins.read()  # after the lanes: see `_visit`
            views += self._learn(taken.lanes, pins, now)
            self.behind = taken.more
            if not taken.more:
                break
        self._visit(self._due(pins, now), now)
        self._walk_on(pins, now)
        while views and (newer := self.control.pins.read()) != pins:
            # What was pinned while we wrote: older versions give the lane no new revision, so we may have overwritten
            # it. Other lanes come in the next turn.
            pins = newer
            self._visit({view.lane for view in views}, self.control.pins.now())
        self._give_back(pins, now)
        self._tell()
        return len(views)

    def _learn(self, taken: Iterable[LaneView], pins: Mapping[str, Pin], now: float) -> list[LaneView]:
        """Run the law on some lanes and write what follows → those lanes."""
        views = []
        for view in taken:
            news = bool(view.seen or view.goods)
            self._news += news
            if not changes_with_time(view.state):
                self._attention.forget(view.lane)
            else:
                self._attention.note(view.lane, view.state, now, news=news, idle=view.lane in self._ailing)
            if news or changes_with_time(view.state):
                views.append(view)
        rules, shares = self.control.rules, self._siblings.shares
        decisions = [(view, decide(view, now, rules, pins, shares(view.lane))) for view in views]
        self._write_all(decisions, now)
        self._siblings = self._siblings.note([decision.standing for _, decision in decisions], now)
        return views

    def _ailing_due(self) -> Iterable[str]:
        """Lanes whose mode may end although nothing is sent; looked at once in a while."""
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
        """Lanes that must be looked at without news, since pins begin and end there. First those whose pin has changed
        or ended; then all others, or some each second if there are many."""
        changed = _changed(self._pins or {}, pins)
        changed |= {name for name, pin in pins.items() if not modes.lives(pin, now)}
        again = now - self._visited_at >= VISIT_EVERY_S
        if not (changed or again or self._to_visit or self._pins is None):
            return ()
        everywhere = ALL in pins and (again or ALL in changed)
        self._pins = pins
        self._to_visit |= dict.fromkeys(changed - {ALL})
        if again:
            self._visited_at = now
            own = [name for name in pins if name != ALL]
            first = self._next_own if self._next_own < len(own) else 0
            self._to_visit |= dict.fromkeys(own[first : first + MOST_LOOKED_AT])
            self._next_own = first + MOST_LOOKED_AT
        some = list(islice(self._to_visit, MOST_LOOKED_AT))
        for name in some:
            del self._to_visit[name]
        return {*some, *self.control.lanes.working()} if everywhere else some

    def _walk_on(self, pins: Mapping[str, Pin], now: float) -> None:
        """The next lanes of the walk that brings a pin of all lanes, or its end, to idle lanes.

        A walk is also made in a holder's first turn, and now and then while all lanes are pinned, to complete what
        others left undone.
        """
        pin = pins.get(ALL)
        wanted = _Everywhere(pin.id, modes.lives(pin, now)) if pin is not None else _Everywhere("", False)
        again = pin is not None and abs(now - self._walked_at) >= WALK_EVERY_S
        if self._walk is None and wanted == self._walked and not again:
            return
        if self._walk is None or wanted != self._walking:
            self._many = self.control.lanes.count() > MANY_LANES
            self._walk, self._walking = self.control.lanes.survey(WALK_FIELDS, MOST_LOOKED_AT), wanted
        walk, self._walk = self._walk, None  # after an error the next turn begins a new walk
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
        self._visit(undone, now, idle=True)
        self._walk = walk

    def _visit(self, lanes: Iterable[str], now: float, *, idle: bool = False) -> None:
        """Apply the pins to these lanes.

        The pins are read after the lanes. Otherwise a lane that is pinned in between would seem to have a pin that is
        gone, and would be given back.
        """
        names = list(lanes)
        for first in range(0, len(names), BATCH):
            some: list[tuple[LaneView, Decision]] = []
            states = self.control.lanes.states(names[first : first + BATCH])
            pins = self.control.pins.read()
            for lane, state in states.items():
                self._note_ailing(lane, state.mode, state.pinned)
                if not state.pinned and modes.governing(pins.get(lane), pins.get(ALL), now) is None:
                    continue
                view = LaneView(lane=lane, state=state, seen=())
                decision = decide(view, now, self.control.rules, pins)
                if idle and self._many and lane not in pins:  # this was recorded once for all lanes
                    decision = replace(decision, changes=())
                some.append((view, decision))
            self._write_all(some, now)

    def _write_all(self, decisions: Sequence[tuple[LaneView, Decision]], now: float) -> None:
        """Write decisions; if a person has set limits or a mode since a lane was read, decide again."""
        told: set[str] = set()
        for _ in range(MOST_TRIES):
            writes: dict[str, Write] = {}
            for view, decision in decisions:
                self._note_ailing(view.lane, decision.mode, decision.pinned)
                self._untold.extend(change for change in decision.changes if change.id not in told)
                told |= {change.id for change in decision.changes}
                if fields := {**decision.set_points, **decision.memory}:
                    writes[view.lane] = Write(view.state.revision, fields)
            self._tell()  # first, so that a tuner that is killed in between records a change twice rather than never
            changed = {*self.control.lanes.set_points_of(writes)}
            if not changed:
                return
            views = [
                replace(view, state=self.control.lanes.state(view.lane))
                for view, _ in decisions
                if view.lane in changed
            ]
            pins = self.control.pins.read()
            decisions = [(view, decide(view, now, self.control.rules, pins)) for view in views]

    def _give_back(self, pins: Mapping[str, Pin], now: float) -> None:
        """Delete pins that had ended when this turn looked at their lanes, and exemptions from a pin that is gone."""
        everywhere = pins.get(ALL)
        idle = everywhere is None or not modes.lives(everywhere, now)
        done = {name: pin for name, pin in pins.items() if not modes.lives(pin, now) or (pin.mode is None and idle)}
        if ALL in done and self._walked != _Everywhere(done[ALL].id, False):
            del done[ALL]  # some lanes have not been given back yet
        done = {name: pin for name, pin in done.items() if name not in self._to_visit}
        if done:
            self._tell_end(done.get(ALL), now)
            self.control.pins.drop(done)

    def _tell_end(self, everywhere: Pin | None, now: float) -> None:
        """Record once that a pin of all lanes has ended by itself, if it is not recorded for each of them."""
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


def _changed(before: Mapping[str, Pin], after: Mapping[str, Pin]) -> set[str]:
    """Lanes whose pin has come, gone or changed."""
    if before is after:
        return set()
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}
