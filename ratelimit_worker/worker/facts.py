"""On which figures do the rules of alerts decide? The present state in Redis, and the last minutes in the database."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.rollup import MINUTE_S
from ratelimit_worker.errors import WorkerLostRepeatedly
from ratelimit_worker.policy.alert_rules import (
    POISON_MIN,
    Function,
    LaneStanding,
    Minute,
    Recorded,
    Standing,
    TaskUnknown,
)
from ratelimit_worker.policy.modes import ALL, lives
from ratelimit_worker.policy.trend import LOOK_BACK_MIN
from ratelimit_worker.reports.live import LaneState, cluster_state
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.queries import Queries

MOST_LANES = 500  #: most lanes in one look, which takes the server a tenth of a second


class RedisFacts(Struct, frozen=True):
    """The figures in Redis. Raises `StoreUnavailable` if it is away."""

    live: Live
    lanes: Lanes
    outbox: Outbox

    def standing(self, also: Iterable[str]) -> Standing:
        """The present state of these lanes, and of lanes with calls; `*` is not a lane."""
        names = sorted(set(also) - {ALL})
        working = set(self.lanes.working(MOST_LANES)) - set(names)
        names += sorted(working)[: max(0, MOST_LANES - len(names))]
        now = self.live.now(names)
        state, everywhere = cluster_state(now, None), now.pins.get(ALL)
        return Standing(
            at_s=now.at_s,
            lanes=[_lane(one) for one in state.lanes],
            unknown=[TaskUnknown(queue=one.queue, task=one.task, calls=one.calls) for one in state.unknown],
            everywhere=everywhere.mode if everywhere is not None and lives(everywhere, now.at_s) else None,
            outbox=self.outbox.backlog(),
            outbox_age_s=self.outbox.age_s(now.at_s),
            set_aside=state.counters.get("malformed", 0),
            budgets=now.budgets,
        )


def _lane(lane: LaneState) -> LaneStanding:
    return LaneStanding(
        lane=lane.lane,
        mode=lane.mode,
        for_quota=lane.mode is Mode.HALT and lane.halted == "quota",
        used_up=lane.used_up,
        waiting=lane.waiting,
        oldest_age_s=lane.oldest_age_s,
        queues=lane.queues,
        workers=lane.workers,
    )


def recorded(queries: Queries, now_s: float) -> Recorded:
    """The figures in the tracking database, for the minutes up to the last whole one.

    Args:
        now_s: Seconds since the epoch.
    Raises:
        StoreUnavailable: it is away.
        ConfigurationError: it is newer than this version.
    """
    until_s = now_s // MINUTE_S * MINUTE_S
    since_s, of_late_s = until_s - LOOK_BACK_MIN * MINUTE_S, until_s - POISON_MIN * MINUTE_S
    lanes: dict[str, list[Minute]] = {}
    functions: dict[tuple[str, str], Function] = {}
    for (at_s, series), cell in queries.cells(since_s, until_s, MINUTE_S):
        minutes = lanes.get(series.lane)
        if minutes is None:
            minutes = lanes[series.lane] = [Minute() for _ in range(LOOK_BACK_MIN)]
        minutes[int((at_s - since_s) // MINUTE_S)].add(cell.latency, cell.outcomes)
        if at_s >= of_late_s:
            functions.setdefault((series.lane, series.task), Function()).add(cell.outcomes)
    if any(one.without_attempt for one in functions.values()):
        for (lane, task), calls in queries.ended_by(WorkerLostRepeatedly.__name__, of_late_s, until_s).items():
            functions.setdefault((lane, task), Function()).killed += calls
    return Recorded(lanes=lanes, functions=functions)
