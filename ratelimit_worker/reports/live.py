"""The state of each lane now: its set-points, its queue and its mode, in words and units for people.

Pure: what Redis holds goes in, frozen states come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from ratelimit_worker.calls import LaneLimits, Mode
from ratelimit_worker.contracts import lane as contract
from ratelimit_worker.contracts.alert import Alert
from ratelimit_worker.contracts.call import US
from ratelimit_worker.contracts.sums import Recent
from ratelimit_worker.policy.budget import Standing
from ratelimit_worker.ports import Bar
from ratelimit_worker.reports.bars import held_by
from ratelimit_worker.reports.mode import ModeNow, mode_now
from ratelimit_worker.stores.desks import PREFIX
from ratelimit_worker.stores.live import LaneNow, Now, UnknownTask, WorkerNow
from ratelimit_worker.stores.overdue import OverdueCall


class Level(Struct, frozen=True, kw_only=True):
    """One dimension of a lane's budget."""

    pace_per_min: float  #: units a minute that may go now
    level: float  #: units in the bucket: may go at once, now; below 0: must be earned first
    depth: float  #: most units that the bucket can hold
    learned_per_min: float | None  #: the provider's limit according to its headers; None: they do not say


class LaneState(Struct, frozen=True, kw_only=True):
    """The state of one lane."""

    lane: str
    mode: Mode
    pinned: bool  #: whether a person has set the mode
    away: bool  #: whether the provider is away, according to the law: only probes are sent
    limits: LaneLimits  #: what a person has set
    used_today: Mapping[str, float]  #: "requests" and "tokens" of its day, if a daily quota is set
    levels: Mapping[str, Level]  #: by dimension; a dimension that is not bound is missing
    at_once_learned: int | None  #: calls that may be out at once, learned from the provider; None: no bound was learned
    gap_s: float  #: least time between two starts; 0: none
    gate_s: float  #: seconds until the gate opens; 0: it is open; inf: it does not open by itself
    waiting: int  #: calls that wait for a permit
    due_later: int  #: calls that wait for a time (backoff, countdown)
    ready: int  #: calls that are released and not begun by a worker
    running: int  #: calls
    reserved_tokens: int  #: by calls that are ready or running
    oldest_age_s: float | None  #: since the oldest of the waiting calls was accepted; None: none waits
    queues: tuple[str, ...]  #: on which its calls wait
    workers: int  #: that take calls from one of these queues (all workers, if none of its calls wait)
    slots: int  #: of those workers
    sick_row: int  #: sick answers in a row
    sent: int  #: requests since the lane was made
    used_per_min: int | None  #: attempts that ended in the last minute; None: the database is away
    refused_last_min: int | None  #: of these, 429s
    pinned_until_s: float | None = None  #: when the pin ends, seconds since the epoch; None: no pin, or it has no end
    halted: str = ""  #: why the law has set HALT: "key" or "quota"; "": it has not
    ramping: bool = False  #: whether the pace is not known yet, and the ramp grows
    #: What holds its next call back; empty: nothing, or no call waits; None: the server's script could not run
    bars: tuple[Bar, ...] | None = ()
    row: int = 0  #: lanes that wait for their turn at it, if it is a parent

    @property
    def mode_now(self) -> ModeNow:
        """The mode with its notes; all commands and pages show it by `str`."""
        return ModeNow(
            mode=self.mode,
            pinned=self.pinned,
            until_s=self.pinned_until_s,
            away=self.away,
            halted=self.halted,
            ramping=self.ramping,
        )

    def held_by(self, at_s: float) -> str:
        """What holds its next call back at `at_s` (seconds since the epoch), in a few words; "": nothing."""
        return held_by(self.bars, at_s)

    @property
    def out(self) -> int:
        """Calls that are released and not freed."""
        return self.ready + self.running

    @property
    def used_up(self) -> tuple[str, ...]:
        """Daily quotas of which nothing is left, in words such as "500 requests a day"."""
        quotas = (("requests", self.limits.rpd), ("tokens", self.limits.tpd))
        return tuple(
            f"{quota:,.0f} {what} a day"
            for what, quota in quotas
            if quota is not None and self.used_today.get(what, 0.0) + 1 > quota
        )

    @property
    def allowed_per_min(self) -> float | None:
        """Requests a minute that may be sent now; None: not bound."""
        if math.isinf(self.gate_s) or self.used_up:
            return 0.0
        bounds = [60.0 / self.gap_s] if self.gap_s > 0 else []
        if "requests" in self.levels:
            bounds.append(self.levels["requests"].pace_per_min)
        return min(bounds, default=None)


class QueueState(Struct, frozen=True, kw_only=True):
    """Who takes calls from a queue."""

    queue: str
    workers: int
    slots: int  #: a worker of several queues counts in each


class ClusterState(Struct, frozen=True, kw_only=True):
    """Lanes and workers at one moment."""

    at_s: float  #: seconds since the epoch, Redis clock
    lanes: tuple[LaneState, ...]
    workers: int
    slots: int
    queues: tuple[QueueState, ...]
    counters: Mapping[str, int]
    unknown: tuple[UnknownTask, ...] = ()  #: tasks of waiting calls that no living worker of their queue knows
    overdue: tuple[OverdueCall, ...] = ()  #: calls that were given up while their functions still run in a worker
    left_out: int = 0  #: lanes that match and are not in `lanes`: of very many only the most important are read
    #: Mode → number of lanes in it, of all that match.
    modes: Mapping[str, int] = field(default_factory=dict)
    skipped: int = 0  #: lanes on the pages before this one
    alerts: tuple[Alert, ...] = ()  #: open alerts, newest first
    budgets: tuple[Standing, ...] = ()  #: budgets of money: those of these lanes, and those that are not a lane's


def cluster_state(now: Now, recent: Mapping[str, Recent] | None) -> ClusterState:
    """The state of the cluster.

    Args:
        recent: Lane → what it did in the last minute; None: the database is away.
    """
    workers = _consumers(now.workers)
    queues = sorted({queue for worker in workers for queue in worker.queues})
    return ClusterState(
        at_s=now.at_s,
        lanes=tuple(_lane(lane, now, recent) for lane in now.lanes),
        workers=len(workers),
        slots=_slots(workers),
        queues=tuple(
            QueueState(queue=queue, workers=len(served), slots=_slots(served))
            for queue, served in ((queue, serving(workers, (queue,))) for queue in queues)
        ),
        counters=now.counters,
        unknown=now.unknown,
        overdue=now.overdue,
        left_out=now.left_out,
        modes=dict(now.modes),
        skipped=now.skipped,
        budgets=now.budgets,
    )


def _consumers(workers: Sequence[WorkerNow]) -> list[WorkerNow]:
    """The workers without in-process callers, which send heartbeats too, but run only their own calls."""
    return [worker for worker in workers if not worker.name.startswith(PREFIX)]


def serving(workers: Sequence[WorkerNow], queues: Sequence[str]) -> list[WorkerNow]:
    """The workers that take calls from one of the queues; all of them if no queue is named."""
    return [worker for worker in workers if not queues or set(queues) & set(worker.queues)]


def _lane(lane: LaneNow, now: Now, recent: Mapping[str, Recent] | None) -> LaneState:
    state = lane.state
    workers = serving(now.workers, lane.queues) if lane.queues else _consumers(now.workers)
    did = None if recent is None else recent.get(lane.lane, Recent(0, 0))
    mode = mode_now(state, lane.pin)
    return LaneState(
        lane=lane.lane,
        mode=mode.mode,
        pinned=mode.pinned,
        away=mode.away,
        pinned_until_s=mode.until_s,
        halted=mode.halted,
        ramping=mode.ramping,
        bars=lane.bars,
        row=lane.row,
        limits=state.told.limits,
        used_today=lane.used_today,
        levels=_levels(state, now.at_s),
        at_once_learned=state.points.flight or None,
        gap_s=state.points.gap_us / US if state.points.at_once > 0 else 0.0,
        gate_s=_gate_s(state.points.gate_us, now.at_s),
        waiting=lane.waiting,
        due_later=lane.due_later,
        ready=lane.ready,
        running=lane.running,
        reserved_tokens=lane.reserved_tokens,
        oldest_age_s=None if lane.oldest_s is None else max(0.0, now.at_s - lane.oldest_s),
        queues=lane.queues,
        workers=len(workers),
        slots=_slots(workers),
        sick_row=state.levels.sick_row,
        sent=int(state.levels.sent[0]),
        used_per_min=None if did is None else did.attempts,
        refused_last_min=None if did is None else did.refused,
    )


def _gate_s(gate_us: int, at_s: float) -> float:
    """Seconds until a lane's gate opens; 0: it is open; inf: it does not open by itself."""
    return math.inf if gate_us >= contract.SHUT_US else max(0.0, gate_us / US - at_s)


def _levels(lane: contract.LaneState, at_s: float) -> dict[str, Level]:
    if lane.points.unpaced:
        return {}
    learned = _learned(lane.memory.law)
    return {
        dimension: Level(
            pace_per_min=one.pace * 60,
            level=lane.level(dimension, at_s * US),
            depth=one.depth,
            learned_per_min=learned.get(dimension),
        )
        for dimension, one in lane.points.paces.items()
    }


def _learned(law: bytes) -> dict[str, float]:
    """Units a minute that the provider's headers promise, by dimension; empty if another version wrote the law."""
    try:
        decoded: Any = msgspec.msgpack.decode(law) if law else {}
        known = decoded["pace"]["dimensions"] if law else {}
        return {name: float(of["refill"]) * 60 for name, of in known.items() if of.get("refill") is not None}
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, ValueError):
        return {}  # another version has written it; the rest of the state is shown without it


def _slots(workers: Sequence[WorkerNow]) -> int:
    return sum(worker.slots for worker in workers)
