"""What did a lane do over a time, and what is its state? All that a dashboard draws, for one lane or all together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.contracts.lane_sample import LaneMinute
from ratelimit_worker.contracts.rollup import ALL as EVERY_SERIES
from ratelimit_worker.contracts.rollup import Only
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.policy.modes import ALL as EVERY_LANE
from ratelimit_worker.reports.bars import sentences
from ratelimit_worker.reports.figures import KINDS, Figures, Group, Point, Tally
from ratelimit_worker.reports.live import LaneState
from ratelimit_worker.reports.money import NOTHING, Spend, Spender, money
from ratelimit_worker.reports.stats import DAY_S, HOUR_S, MINUTE_S, Sources, slices, status

#: Name → length of the period, length of a slice of its chart, and how old its figures may be; seconds.
PERIODS = {
    "15m": (15 * MINUTE_S, MINUTE_S, 5.0),
    "1h": (HOUR_S, MINUTE_S, 10.0),
    "24h": (DAY_S, 15 * MINUTE_S, 60.0),
    "7d": (7 * DAY_S, 2 * HOUR_S, 300.0),
}
MOST_ROWS = 100  #: rows of a table; most attempts first
MOST_CHANGES = 50  #: mode changes that are listed; the newest
_MOST_PAUSE_S = 15.0  #: longest pause between two observations that are drawn as one line
_NARROWEST = 0.01  #: least width of a new mode, as a share of the period, so that it can be seen


class Period(Struct, frozen=True):
    """A lane, and a period up to now."""

    lane: str | None  #: None: all lanes together
    name: str = "1h"  #: key of `PERIODS`

    @property
    def length_s(self) -> float:
        """Length of the period, seconds."""
        return PERIODS[self.name][0]

    @property
    def slice_s(self) -> float:
        """Length of a slice of the chart, seconds."""
        hours = self.lane is None and self.name == "24h"  # a day of all lanes has too many rows by the minute
        return HOUR_S if hours else PERIODS[self.name][1]

    @property
    def fresh_s(self) -> float:
        """How old its figures may be, seconds."""
        return PERIODS[self.name][2]


class Slice(Struct, frozen=True, kw_only=True):
    """A slice of the chart; rates are per minute."""

    at_s: float  #: its beginning, seconds since the epoch
    for_s: float
    used: float  #: attempts that ended
    refused: float  #: of these, 429s
    allowed: float | None = None  #: requests that might be sent; None: not bound, or not recorded
    waiting: int | None = None  #: most calls that waited; None: not recorded
    mode: Mode | None = None  #: the strictest mode; None: not recorded


class Stretch(Struct, frozen=True, kw_only=True):
    """A time in which a lane was in one mode."""

    mode: Mode
    from_s: float  #: seconds since the epoch
    until_s: float


class Row(Struct, frozen=True, kw_only=True):
    """A function, context, tenant or model."""

    name: str
    figures: Figures
    spend: Spend = NOTHING


class Dashboard(Struct, frozen=True, kw_only=True):
    """Everything that a dashboard shows."""

    period: Period
    since_s: float  #: seconds since the epoch
    until_s: float
    chart: tuple[Slice, ...]
    stretches: tuple[Stretch, ...]
    total: Figures
    spend: Spend  #: what all of it cost
    tables: Mapping[str, tuple[Row, ...]]  #: by "task", "context", "tenant", "model"
    changes: tuple[ModeChange, ...]  #: the newest first
    now: LaneState | None = None  #: the lane's state; None: it is for all lanes, the lane is unknown, or Redis is away
    at_s: float = 0.0  #: time of that state by Redis' clock, seconds since the epoch
    missing: tuple[str, ...] = ()  #: what could not be read, one sentence each
    looks: tuple[Slice, ...] = ()  #: recent states of the lane, each from one reading of this page, oldest first

    @property
    def standing(self) -> tuple[Slice, ...]:
        """The chart's slices for what was allowed and waited; its recent end as fine as `looks` are."""
        return finer(self.chart, self.looks)


def done_in_s(lane: LaneState) -> float | None:
    """About how long all waiting calls take at the lane's present pace, seconds; None: none waits, or not known."""
    waiting, allowed = lane.waiting + lane.due_later, lane.allowed_per_min
    return waiting / allowed * 60.0 + max(0.0, lane.gate_s) if waiting and allowed else None


def dashboard(sources: Sources, period: Period, now_s: float) -> Dashboard:
    """What happened in a period, from the tracking database.

    Raises:
        StoreUnavailable: The database is away or locked.
    """
    since_s, slice_s = (now_s - period.length_s) // period.slice_s * period.slice_s, period.slice_s
    only = EVERY_SERIES if period.lane is None else Only(lane=period.lane)
    tally = Tally([start_s for start_s, _ in slices(since_s, now_s, slice_s)], slice_s)
    for key, cell in sources.queries.cells(since_s, now_s, slice_s, only=only):
        tally.add(key, cell)
    spent = money(tally.spent())
    if period.lane is None:
        chart = of_points(tally.timeline(), slice_s, now_s)
    else:
        chart = of_minutes(sources.queries.lane_minutes(period.lane, since_s, now_s), since_s, slice_s, now_s)
    changes = [
        change
        for change in reversed(sources.modes(since_s, now_s + 1.0))
        if period.lane is None or change.lane in {period.lane, EVERY_LANE}
    ]
    return Dashboard(
        period=period,
        since_s=since_s,
        until_s=now_s,
        chart=tuple(chart),
        stretches=(),
        total=tally.total(),
        spend=spent.total,
        tables={kind: rows(tally.groups(kind), spent.by(kind)) for kind in KINDS if kind != "lane"},
        changes=tuple(changes[:MOST_CHANGES]),
    )


def with_now(past: Dashboard, sources: Sources) -> Dashboard:
    """The dashboard with the lane's present state: the chart extends to now, with the mode of now."""
    assert past.period.lane is not None
    try:
        state, missing = status(sources, only=[past.period.lane])
    except StoreUnavailable as error:
        return replace(past, missing=(*past.missing, f"How the lane stands is unknown: {error}"))
    now = next(iter(state.lanes), None)
    if now is None:
        return replace(past, missing=(*past.missing, *missing))
    latest = Slice(
        at_s=state.at_s,
        for_s=0.0,
        used=float(now.used_per_min or 0),
        refused=float(now.refused_last_min or 0),
        allowed=now.allowed_per_min,
        waiting=now.waiting + now.due_later,
    )
    return replace(
        past,
        until_s=max(past.until_s, state.at_s),
        chart=(*past.chart, latest),
        stretches=stretches(past.changes, past.since_s, max(past.until_s, state.at_s), now.mode, _seen(past.chart)),
        now=now,
        at_s=state.at_s,
        missing=(*past.missing, *missing),
    )


def of_minutes(minutes: Iterable[LaneMinute], since_s: float, slice_s: float, until_s: float) -> list[Slice]:
    """A lane's minutes as slices of a chart; the last slice is left out while it is not over."""
    by_slice: dict[float, list[LaneMinute]] = {}
    for minute in minutes:
        by_slice.setdefault(minute.at_s // slice_s * slice_s, []).append(minute)
    made = []
    for start_s, end_s in slices(since_s, until_s, slice_s):
        some = by_slice.get(start_s // slice_s * slice_s, [])
        looked = [minute.sample for minute in some if minute.sample is not None]
        allowed = [one.allowed_per_min for one in looked if one.allowed_per_min is not None]
        per_min = 60.0 / max(end_s - start_s, 1.0)
        if end_s - start_s < slice_s and end_s >= until_s:
            continue  # too short for a rate; the present state is drawn in its place
        made.append(
            Slice(
                at_s=start_s,
                for_s=end_s - start_s,
                used=sum(minute.attempts for minute in some) * per_min,
                refused=sum(minute.refused for minute in some) * per_min,
                allowed=sum(allowed) / len(allowed) if allowed else None,
                waiting=max((one.waiting for one in looked), default=None),
                mode=max((one.mode for one in looked), key=tuple(Mode).index, default=None),
            )
        )
    return made


def of_points(points: Sequence[Point], slice_s: float, until_s: float) -> list[Slice]:
    """All lanes' attempts as slices of a chart."""
    return [
        Slice(
            at_s=point.at_s,
            for_s=min(slice_s, until_s - point.at_s),
            used=point.attempts * 60.0 / slice_s,
            refused=point.refused * 60.0 / slice_s,
        )
        for point in points
        if point.at_s + slice_s <= until_s
    ]


def _seen(chart: Sequence[Slice]) -> Mode | None:
    """The mode that was recorded last; None: none was."""
    return next((one.mode for one in reversed(chart) if one.mode is not None), None)


def finer(chart: tuple[Slice, ...], looks: Sequence[Slice]) -> tuple[Slice, ...]:
    """The slices of a chart, with its end replaced by the latest `looks` that followed each other without a pause.

    Each of these lasts until the next one.
    """
    run: list[Slice] = []
    for look in reversed(looks):
        if run and run[-1].at_s - look.at_s > _MOST_PAUSE_S:
            break
        run.append(look)
    if not run:
        return chart
    run.reverse()
    first_s = run[0].at_s
    before = [replace(one, for_s=min(one.for_s, first_s - one.at_s)) for one in chart if one.at_s < first_s]
    ends = [*(look.at_s for look in run[1:]), run[-1].at_s]
    return (*before, *(replace(look, for_s=end_s - look.at_s) for look, end_s in zip(run, ends, strict=True)))


def stretches(
    changes: Sequence[ModeChange], since_s: float, until_s: float, now: Mode, seen: Mode | None = None
) -> tuple[Stretch, ...]:
    """The modes in which a lane was, oldest first.

    Args:
        changes: Changes of the lane, newest first.
        now: Its present mode, which also reveals a change that is not recorded yet.
        seen: Its mode about a minute ago, used if no change is recorded.
    """
    if not changes and seen is not None and seen is not now:
        begun_s = until_s - _NARROWEST * (until_s - since_s)
        return Stretch(mode=seen, from_s=since_s, until_s=begun_s), Stretch(mode=now, from_s=begun_s, until_s=until_s)
    made: list[Stretch] = []
    end_s, mode = until_s, now
    for change in changes:
        if change.to_mode is not mode:  # a later change is not recorded yet
            begun_s = max(change.at, until_s - _NARROWEST * (until_s - since_s))
            made.append(Stretch(mode=mode, from_s=begun_s, until_s=end_s))
            end_s, mode = begun_s, change.to_mode
        made.append(Stretch(mode=mode, from_s=max(since_s, change.at), until_s=end_s))
        end_s, mode = change.at, change.from_mode
    if end_s > since_s:
        made.append(Stretch(mode=mode, from_s=since_s, until_s=end_s))
    return tuple(reversed([one for one in made if one.until_s > one.from_s]))


def rows(groups: Sequence[Group], spenders: Sequence[Spender]) -> tuple[Row, ...]:
    """The groups with their costs, most attempts first, at most `MOST_ROWS`."""
    costs = {one.name: one.spend for one in spenders}
    return tuple(
        Row(name=group.name, figures=group.figures, spend=costs.get(group.name, NOTHING))
        for group in groups[:MOST_ROWS]
    )


def headroom(lane: LaneState) -> tuple[tuple[str, float, str], ...]:
    """How much of each budget is left: its name, a share from 0 to 1, and words."""
    left = [
        (
            f"{what.replace('_', ' ')} a minute",
            min(1.0, max(0.0, level.level / level.depth)) if level.depth > 0 else 0.0,
            f"{max(0.0, level.level):,.0f} of {level.depth:,.0f} at once, {level.pace_per_min:,.0f} a minute",
        )
        for what, level in lane.levels.items()
    ]
    for what, quota in (("requests", lane.limits.rpd), ("tokens", lane.limits.tpd)):
        if quota is not None:
            used = lane.used_today.get(what, 0.0)
            left.append((f"{what} today", min(1.0, max(0.0, 1 - used / quota)), f"{used:,.0f} of {quota:,.0f} used"))
    if lane.slots:
        free = max(0, lane.slots - lane.out)
        left.append(("slots", free / lane.slots, f"{lane.out:,} of {lane.slots:,} taken by this lane"))
    return tuple(left)


def held_by(lane: LaneState, at_s: float) -> tuple[str, ...]:
    """What holds the lane's next call back, one sentence each."""
    paces = {what: level.pace_per_min for what, level in lane.levels.items()}
    return sentences(lane.bars or (), at_s, paces=paces, parents={}, tried=False, pin_ends_s=lane.pinned_until_s)
