"""What happened in a window, and what is the state now? One function for commands, reports, Flower and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.config import NO_REDIS
from ratelimit_worker.contracts.lane_sample import LaneSpan
from ratelimit_worker.contracts.rollup import ALL, NamedSums, Only
from ratelimit_worker.contracts.sums import Recent
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.policy.modes import ALL as EVERY_LANE
from ratelimit_worker.policy.rollup import whole_minute
from ratelimit_worker.policy.trend import LOOK_BACK_MIN
from ratelimit_worker.reports.figures import Figures, Group, Point, Tally
from ratelimit_worker.reports.live import ClusterState, cluster_state
from ratelimit_worker.reports.money import Money, money
from ratelimit_worker.reports.words import count, moment
from ratelimit_worker.stores.live import MOST_LANES, Live

if TYPE_CHECKING:  # `status` needs neither them nor SQLAlchemy, which takes longer to import than all else
    from ratelimit_worker.stores.queries import Queries
    from ratelimit_worker.stores.tracker import Tracker

log = logging.getLogger(__name__)

SCHEMA = 3  #: version of `Stats` as JSON; grows with every change that is no addition

MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0
#: Windows by their usual names.
WINDOWS = {"15m": 15 * MINUTE_S, "1h": HOUR_S, "24h": DAY_S}
_SLICES_S = (60.0, 300.0, 900.0, 3_600.0)  #: each divides the next, so that slices add up to hours
_MOST_SLICES = 100
_HOURS_UP_TO_S = 60 * DAY_S  #: longer windows have slices of a day: two years would have 17,520 hours
MOST_MODE_CHANGES = 1_000  #: mode changes of a report; the newest


def no_modes(since_s: float, until_s: float) -> Sequence[ModeChange]:
    """No mode changes."""
    return ()


class Sources(Struct, frozen=True, kw_only=True):
    """The sources of all figures.

    Args:
        open_queries: Returns the queries of the tracking database, always the same; opens it at the first use.
        live: None: no Redis is configured.
        modes: (from, before; seconds since the epoch) → mode changes in between, oldest first.
        reach: Returns when Redis answers, or raises `StoreUnavailable`.
        short_cut: (from, before) → what each lane did in between, read without `queries`; None: that is not possible.
    """

    open_queries: Callable[[], Queries]
    live: Live | None
    modes: Callable[[float, float], Sequence[ModeChange]] = no_modes
    reach: Callable[[], None] = lambda: None
    short_cut: Callable[[float, float], Mapping[str, Recent] | None] = lambda since_s, until_s: None

    @property
    def queries(self) -> Queries:
        """The tracking database.

        Raises:
            ConfigurationError: its address cannot be used.
            StoreUnavailable: the folder of its file cannot be made.
        """
        return self.open_queries()

    @property
    def server(self) -> Live:
        """The lanes in Redis, after a check that it answers.

        Raises:
            ConfigurationError: no Redis is configured.
            StoreUnavailable: it is away or frozen.
        """
        if self.live is None:
            raise ConfigurationError(NO_REDIS)
        self.reach()
        return self.live

    def recent(self, since_s: float, until_s: float) -> Mapping[str, Recent]:
        """Lane → what it did in a short window.

        Raises:
            StoreUnavailable: the tracking database is away.
            ConfigurationError: it is newer than this version, or its address cannot be used.
        """
        known = self.short_cut(since_s, until_s)
        return self.queries.recent(since_s, until_s) if known is None else known

    @classmethod
    def of(
        cls,
        queries: Queries,
        live: Live | None,
        tracker: Callable[[], Tracker] | None = None,
        reach: Callable[[], None] = lambda: None,
    ) -> Sources:
        """Sources with a database that is open already.

        Args:
            tracker: Gives the mode changes; None: there are none.
        """
        modes = no_modes if tracker is None else modes_of(tracker)
        return cls(open_queries=lambda: queries, live=live, modes=modes, reach=reach)


def modes_of(tracker: Callable[[], Tracker]) -> Callable[[float, float], Sequence[ModeChange]]:
    """The mode changes of a tracking database, which is opened at the first use."""

    def modes(since_s: float, until_s: float) -> Sequence[ModeChange]:
        newest = tracker().mode_changes(since=since_s, limit=MOST_MODE_CHANGES)
        return [change for change in reversed(newest) if change.at < until_s]

    return modes


class Stats(Struct, frozen=True, kw_only=True):
    """All figures of one window. docs/operations.md says what each means."""

    schema: int
    since_s: float  #: seconds since the epoch
    until_s: float
    slice_s: float  #: length of a point of the timelines; the first is shorter if the window begins within a slice
    total: Figures
    lanes: tuple[Group, ...]
    functions: tuple[Group, ...]
    contexts: tuple[Group, ...]
    tenants: tuple[Group, ...]
    models: tuple[Group, ...]
    timeline: tuple[Point, ...]
    money: Money
    modes: tuple[ModeChange, ...]  #: in the window, oldest first
    cache_hits: int  #: calls that got a kept answer; this and the next two are also in `total.reuse`
    joined: int  #: calls that got the answer of a call on its way
    cache_stale: int  #: calls that got a kept answer past its time
    shed: int  #: calls that failed at once since their lane was in EMERGENCY or HALT; all that Redis has counted so far
    now: ClusterState | None  #: None: Redis is away
    missing: tuple[str, ...]  #: what could not be read, one sentence each
    #: What requests were saved by reuse (by hits, by stale answers, by joining), as far as their prices were known;
    #: billionths of a dollar.
    cache_saved_nanousd: int = 0
    stale_saved_nanousd: int = 0
    joined_saved_nanousd: int = 0
    only: Only = ALL  #: whose attempts these are
    spans: tuple[LaneSpan, ...] = ()  #: what lanes were allowed to send, by lane and slice

    @property
    def shared_saving_nanousd(self) -> int:
        """What reuse has saved in all, billionths of a dollar."""
        return self.cache_saved_nanousd + self.stale_saved_nanousd + self.joined_saved_nanousd

    def counted(self, number: int) -> str:
        """A number that Redis counts, in words; `-` if Redis was away."""
        return "-" if self.now is None else count(number)


def status(
    sources: Sources,
    most: int | None = MOST_LANES,
    only: Sequence[str] | None = None,
    *,
    find: str = "",
    page: int = 0,
) -> tuple[ClusterState, tuple[str, ...]]:
    """The state of the lanes, and what could not be read. Needs Redis; without the database the last minute is unknown.

    Args:
        most, only, find, page: As in `Live.now`.
    Raises:
        StoreUnavailable: Redis is away.
        ConfigurationError: No Redis is configured.
    """
    live = sources.server
    now, lost = live.now(only, most, find=find, page=page), live.database_lost()
    alerts = tuple(live.alerts())
    missing = [] if lost is None else [f"{moment(lost.at_s)}: {lost.what}"]
    try:
        recent = sources.recent(now.at_s - MINUTE_S, now.at_s + 1.0)
    except StoreUnavailable as error:
        return replace(cluster_state(now, None), alerts=alerts), (*missing, f"the last minute is unknown: {error}")
    return replace(cluster_state(now, recent), alerts=alerts), tuple(missing)


def fitted(sources: Sources, window_s: float, now_s: float, only: Only = ALL) -> float:
    """The length of the window from its first attempt on, in seconds, at least a minute; `window_s` if it has none.

    Raises: As `stats`.
    """
    first_s = sources.queries.first_s(now_s - window_s, now_s, only)
    return window_s if first_s is None else max(MINUTE_S, now_s - first_s)


def stats(sources: Sources, window_s: float, now_s: float, only: Only = ALL) -> Stats:
    """The figures of the last `window_s` seconds.

    If Redis is away, or none is configured, there are only the database's figures, and `missing` says so.

    Args:
        window_s: Above 0.
        now_s: End of the window, seconds since the epoch.
        only: Whose attempts are counted; counters in Redis are always for all.
    Raises:
        StoreUnavailable: The database is away or locked.
        ConfigurationError: The database is newer than this version.
        ValueError: `window_s` is not above 0.
    """
    if window_s <= 0:
        raise ValueError(f"window_s must be above 0, got {window_s}")
    since_s, slice_s = now_s - window_s, slice_length_s(window_s)
    judged_until = int(now_s // MINUTE_S) * int(MINUTE_S)
    judged_from = judged_until - LOOK_BACK_MIN * int(MINUTE_S)
    tally = Tally([start_s for start_s, _ in slices(since_s, now_s, slice_s)], slice_s, judged_from)
    # From here on, minutes are read for the window already; before, only for the trends.
    both_from = max(judged_from, whole_minute(since_s)) if slice_s < HOUR_S else judged_until
    state, sums, missing = _live(sources, since_s, only)  # first: else sums that move to the database now were missed
    for key, cell in sources.queries.cells(since_s, now_s, slice_s, only=only, sums=sums):
        tally.add(key, cell)
        if both_from <= key.at_s < judged_until:
            tally.judge(key, cell)
    if judged_from < both_from:
        for key, cell in sources.queries.cells(judged_from, min(both_from, judged_until), MINUTE_S, only=only):
            tally.judge(key, cell)
    counters, total = state.counters if state is not None else {}, tally.total()
    used = total.reuse
    return Stats(
        schema=SCHEMA,
        since_s=since_s,
        until_s=now_s,
        slice_s=slice_s,
        total=total,
        lanes=tally.groups("lane"),
        functions=tally.groups("task"),
        contexts=tally.groups("context"),
        tenants=tally.groups("tenant"),
        models=tally.groups("model"),
        timeline=tally.timeline(),
        money=money(tally.spent()),
        modes=tuple(change for change in sources.modes(since_s, now_s) if only.lane in (None, change.lane, EVERY_LANE)),
        cache_hits=used.hits,
        joined=used.joined,
        cache_stale=used.stale,
        shed=counters.get("shed", 0),
        cache_saved_nanousd=used.hits_nanousd,
        stale_saved_nanousd=used.stale_nanousd,
        joined_saved_nanousd=used.joined_nanousd,
        now=state,
        missing=tuple(missing),
        only=only,
        spans=tuple(sources.queries.lane_spans(since_s, now_s, slice_s, only.lane)),
    )


def _live(sources: Sources, since_s: float, only: Only) -> tuple[ClusterState | None, list[NamedSums], list[str]]:
    """From Redis: the state of the lanes, sums that are not in the database yet, and what could not be read."""
    try:
        state, missing = status(sources, only=None if only.lane is None else [only.lane])
        return state, sources.server.reuse(since_s), list(missing)
    except (StoreUnavailable, ConfigurationError) as error:
        return None, [], [f"how the lanes stand is unknown: {error}"]


def slice_length_s(window_s: float) -> float:
    """Length of a window's slices, seconds: the shortest that gives at most a hundred, and an hour at most; beyond 60
    days, a day."""
    if window_s > _HOURS_UP_TO_S:
        return DAY_S
    return next((slice_s for slice_s in _SLICES_S if window_s <= _MOST_SLICES * slice_s), _SLICES_S[-1])


def slices(since_s: float, until_s: float, slice_s: float) -> Iterator[tuple[float, float]]:
    """A window cut at whole multiples of `slice_s` since the epoch, so that hours begin on the hour: (from, before)."""
    start_s = since_s
    while start_s < until_s:
        end_s = min(until_s, (start_s // slice_s + 1) * slice_s)
        yield start_s, end_s
        start_s = end_s
