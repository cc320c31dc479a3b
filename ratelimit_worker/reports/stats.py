"""What happened, and how do things stand? One function feeds command line, analytics, Flower and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.config import NO_REDIS
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.policy.trend import LOOK_BACK_MIN
from ratelimit_worker.reports.figures import Figures, Group, Point, Tally
from ratelimit_worker.reports.live import ClusterState, cluster_state
from ratelimit_worker.reports.money import Money, money
from ratelimit_worker.reports.words import count, moment
from ratelimit_worker.stores.live import MOST_LANES, Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker

log = logging.getLogger(__name__)

SCHEMA = 2  #: of Stats as JSON; grows with every change that is no addition

MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0
#: Windows by their usual names.
WINDOWS = {"15m": 15 * MINUTE_S, "1h": HOUR_S, "24h": DAY_S}
_SLICES_S = (60.0, 300.0, 900.0, 3_600.0)  #: each fits the next, so that hours can be added up
_MOST_SLICES = 100
MOST_MODE_CHANGES = 1_000  #: of a report; the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where figures come from.

    Args:
        live: None: no Redis is named.
        modes: (from, before; seconds since the epoch) → mode changes in between, oldest first.
        reach: Returns when Redis answers; `StoreUnavailable`: it does not.
    """

    queries: Queries
    live: Live | None
    modes: Callable[[float, float], Sequence[ModeChange]] = lambda since_s, until_s: ()
    reach: Callable[[], None] = lambda: None

    @property
    def server(self) -> Live:
        """The lanes on a Redis that answers.

        Raises:
            ConfigurationError: none is named.
            StoreUnavailable: it is away or frozen.
        """
        if self.live is None:
            raise ConfigurationError(NO_REDIS)
        self.reach()
        return self.live

    @classmethod
    def of(
        cls,
        queries: Queries,
        live: Live | None,
        tracker: Callable[[], Tracker],
        reach: Callable[[], None] = lambda: None,
    ) -> Sources:
        """With the newest mode changes of the tracking database, which is opened when they are asked for."""

        def modes(since_s: float, until_s: float) -> Sequence[ModeChange]:
            newest = tracker().mode_changes(since=since_s, limit=MOST_MODE_CHANGES)
            return [change for change in reversed(newest) if change.at < until_s]

        return cls(queries=queries, live=live, modes=modes, reach=reach)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """All figures of one window. docs/operations.md says what each means."""

    schema: int
    since_s: float  #: seconds since the epoch
    until_s: float
    slice_s: float  #: length of a point of the timelines; the first is shorter where the window begins within one
    total: Figures
    lanes: tuple[Group, ...]
    functions: tuple[Group, ...]
    contexts: tuple[Group, ...]
    tenants: tuple[Group, ...]
    models: tuple[Group, ...]
    timeline: tuple[Point, ...]
    money: Money
    modes: tuple[ModeChange, ...]  #: in the window, oldest first
    cache_hits: int  #: since Redis counts them, not in the window alone
    joined: int  #: calls that got the answer of one in flight; since Redis counts them
    cache_stale: int  #: calls that got an answer past its time, in EMERGENCY or HALT; since Redis counts them
    shed: int  #: calls that failed at once for the same; since Redis counts them
    now: ClusterState | None  #: None: Redis is away
    missing: tuple[str, ...]  #: what could not be read, one sentence each

    def counted(self, number: int) -> str:
        """A number that Redis counts, for people; `-` where it could not be asked."""
        return "-" if self.now is None else count(number)


def status(
    sources: Sources,
    most: int | None = MOST_LANES,
    only: Sequence[str] | None = None,
    *,
    find: str = "",
    page: int = 0,
) -> tuple[ClusterState, tuple[str, ...]]:
    """How the lanes stand, and what could not be read. Needs Redis; without the database the last minute is unknown.

    Args:
        most, only, find, page: As in `Live.now`.
    Raises:
        StoreUnavailable: Redis is away.
        ConfigurationError: No Redis is named.
    """
    live = sources.server
    now, lost = live.now(only, most, find=find, page=page), live.database_lost()
    missing = [] if lost is None else [f"{moment(lost.at_s)}: {lost.what}"]
    try:
        recent = sources.queries.recent(now.at_s - MINUTE_S, now.at_s + 1.0)
    except StoreUnavailable as error:
        return cluster_state(now, None), (*missing, f"the last minute is unknown: {error}")
    return cluster_state(now, recent), tuple(missing)


def stats(sources: Sources, window_s: float, now_s: float) -> Stats:
    """The figures of the last `window_s` seconds.

    Where Redis is away, or none is named, the figures of the database are still told; `missing` says so.

    Args:
        window_s: Above 0.
        now_s: End of the window, seconds since the epoch.
    Raises:
        StoreUnavailable: The database is away or locked.
        ConfigurationError: The database is newer than this version.
        ValueError: `window_s` is not above 0.
    """
    if window_s <= 0:
        raise ValueError(f"window_s must be above 0, got {window_s}")
    since_s, slice_s = now_s - window_s, slice_length_s(window_s)
    tally = Tally([start_s for start_s, _ in slices(since_s, now_s, slice_s)], slice_s)
    for key, cell in sources.queries.cells(since_s, now_s, slice_s):
        tally.add(key, cell)
    judged_from = int(now_s // MINUTE_S - LOOK_BACK_MIN) * int(MINUTE_S)
    tally.judge(judged_from, sources.queries.cells(judged_from, judged_from + LOOK_BACK_MIN * MINUTE_S, MINUTE_S))
    state, missing = None, list[str]()
    try:
        state, unknown = status(sources)
        missing += unknown
    except (StoreUnavailable, ConfigurationError) as error:
        missing.append(f"how the lanes stand is unknown: {error}")
    counters = state.counters if state is not None else {}
    return Stats(
        schema=SCHEMA,
        since_s=since_s,
        until_s=now_s,
        slice_s=slice_s,
        total=tally.total(),
        lanes=tally.groups("lane"),
        functions=tally.groups("task"),
        contexts=tally.groups("context"),
        tenants=tally.groups("tenant"),
        models=tally.groups("model"),
        timeline=tally.timeline(),
        money=money(tally.spent()),
        modes=tuple(sources.modes(since_s, now_s)),
        cache_hits=counters.get("cache_hits", 0),
        joined=counters.get("joined", 0),
        cache_stale=counters.get("cache_stale", 0),
        shed=counters.get("shed", 0),
        now=state,
        missing=tuple(missing),
    )


def slice_length_s(window_s: float) -> float:
    """Length of the slices of a window: the shortest with which it has at most a hundred, and never above an hour."""
    return next((slice_s for slice_s in _SLICES_S if window_s <= _MOST_SLICES * slice_s), _SLICES_S[-1])


def slices(since_s: float, until_s: float, slice_s: float) -> Iterator[tuple[float, float]]:
    """A window cut at whole multiples of `slice_s` since the epoch, so that hours begin on the hour: (from, before)."""
    start_s = since_s
    while start_s < until_s:
        end_s = min(until_s, (start_s // slice_s + 1) * slice_s)
        yield start_s, end_s
        start_s = end_s
