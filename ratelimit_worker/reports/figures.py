"""What do attempts add up to? The figures of a lane, a function, a context, a tenant, a model or all of them.

Pure: cells of the roll-ups in, figures out. docs/operations.md says what each figure means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ratelimit_worker.calls import Category, Outcome
from ratelimit_worker.contracts.rollup import MINUTE_S, Cell, CellKey, Series
from ratelimit_worker.policy import rollup, trend
from ratelimit_worker.policy.findings import findings, of_latency
from ratelimit_worker.policy.histogram import Histogram, quantiles
from ratelimit_worker.policy.trend import Finding, Trend
from ratelimit_worker.reports.outcomes import why_snoozed
from ratelimit_worker.stores.queries import Spent

#: Lanes, functions or contexts that have figures of their own; what comes beyond is added up under `rollup.OTHERS`.
MOST_GROUPS = 1_000


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile, seconds, within 1 %; None: nothing to tell them from."""

    p50_s: float | None = None
    p95_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All of a window, or of one group in it."""

    calls: int  #: ended: answered or failed for good
    answered: int  #: calls
    failed: int  #: calls
    attempts: int  #: requests to the provider
    retried: int  #: attempts that failed and were followed by another
    snoozed: int  #: attempts that were sent back to wait and cost no try
    refused: int  #: attempts that met a 429, whatever became of them
    error_rate: float  #: failed attempts (retried + failed) ÷ attempts that were not snoozed, 0 to 1
    met_failure: int  #: ended calls of which at least one attempt failed
    recovered: int  #: of these, answered in the end
    retry_success_rate: float | None  #: recovered ÷ met_failure; None: no attempt failed
    backoff_s: float  #: lost between failed attempts and the next one of the same call, all of them together, seconds
    categories: Mapping[str, int]  #: attempts that were not answered, by category
    input_tokens: int
    output_tokens: int
    latency_mean_s: float | None  #: of answered attempts
    latency: Spread  #: the same
    waited: Spread  #: of all attempts, from acceptance or the attempt before to the start
    trend: Trend  #: of the latency, at the end of the window
    snoozed_by: Mapping[str, int] = field(default_factory=dict)  #: the snoozed ones by reason (`outcomes.Snoozed`)
    #: What the trends rest on, by figure: "latency" (s), "latency_per_token" (s), "tokens_per_s", "errors" (share),
    #: "cost" (dollars a call)
    trends: Mapping[str, Finding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One slice of the timeline."""

    at_s: float  #: its start, seconds since the epoch
    calls: int
    answered: int
    failed: int
    attempts: int
    retried: int
    snoozed: int
    refused: int
    error_rate: float
    recovered: int
    backoff_s: float
    categories: Mapping[str, int]
    latency_s: float | None  #: mean of answered attempts
    input_tokens: int
    output_tokens: int
    snoozed_by: Mapping[str, int] = field(default_factory=dict)
    latency: Spread = field(default_factory=Spread)  #: of answered attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One lane, function, context, tenant or model."""

    name: str
    figures: Figures
    timeline: tuple[Point, ...] = ()  #: of lanes only


#: What attempts are grouped by: a name of `contracts.rollup.Series`.
KINDS = ("lane", "task", "context", "tenant", "model")
_NOTHING = Cell()
K = TypeVar("K")


class Tally:
    """Adds up the cells of a window.

    Args:
        starts: Beginnings of its slices, seconds since the epoch, oldest first; all but the first are multiples of
            `slice_s`.
    """

    def __init__(self, starts: Sequence[float], slice_s: float) -> None:
        self._starts, self._slice_s = starts, slice_s
        self._series: dict[Series, Cell] = {}
        self._lanes: dict[str, dict[int, Cell]] = {}  # by number of the slice
        self._minutes: dict[Series, dict[int, Cell]] = {}  # of the trends
        self._minutes_from = 0

    def add(self, key: CellKey, cell: Cell) -> None:
        """Add a cell of the window."""
        at_s, series = key
        number = int(at_s // self._slice_s - self._starts[0] // self._slice_s)
        rollup.merge(_of(self._series, series), cell)
        lane = self._lanes.get(series.lane)
        if lane is None:
            lane = self._lanes[series.lane] = {}
        rollup.merge(_of(lane, number), cell)

    def judge(self, from_s: int, cells: Iterable[tuple[CellKey, Cell]]) -> None:
        """Add the minutes by which trends are judged: `trend.LOOK_BACK_MIN` of them, from then on."""
        self._minutes_from = from_s
        for (at_s, series), cell in cells:
            minutes = self._minutes.get(series)
            if minutes is None:
                minutes = self._minutes[series] = {}
            rollup.merge(_of(minutes, (at_s - from_s) // MINUTE_S), cell)

    def total(self) -> Figures:
        """Figures of all that was added."""
        return _figures(rollup.total(self._series.values()), self._findings(self._minutes))

    def spent(self) -> Iterator[Spent]:
        """What all of it cost, by series: the attempts that were answered, and the others."""
        for series, cell in self._series.items():
            answered = rollup.outcomes(cell)[Outcome.ANSWERED]
            attempts = sum(cell.outcomes.values())
            sums = (cell.estimated_nanousd, cell.saved_nanousd, cell.lost_attempts, cell.lost_nanousd, cell.unpriced)
            yield Spent(*series, Outcome.ANSWERED, answered, cell.cost_nanousd - cell.wasted_nanousd, *sums)
            if attempts > answered:
                yield Spent(*series, Outcome.FAILED, attempts - answered, cell.wasted_nanousd, 0, 0, 0, 0, 0)

    def timeline(self) -> tuple[Point, ...]:
        """All that was added, by slice."""
        slices: dict[int, Cell] = {}
        for lane in self._lanes.values():
            for number, cell in lane.items():
                rollup.merge(_of(slices, number), cell)
        return self._points(slices)

    def groups(self, kind: str) -> tuple[Group, ...]:
        """Figures by one of `KINDS`; most attempts first."""
        place, cells, members = KINDS.index(kind), dict[str, Cell](), dict[str, list[Series]]()
        for series, cell in self._series.items():
            name = series[place]
            if name not in cells and len(cells) >= MOST_GROUPS:
                name = rollup.OTHERS
            rollup.merge(_of(cells, name), cell)
            members.setdefault(name, []).append(series)
        found = [
            Group(
                name=name,
                figures=_figures(cell, self._findings(members[name])),
                timeline=self._points(self._lanes.get(name, {})) if kind == "lane" else (),
            )
            for name, cell in cells.items()
        ]
        return tuple(sorted(found, key=lambda group: (-group.figures.attempts, group.name)))

    def _points(self, slices: Mapping[int, Cell]) -> tuple[Point, ...]:
        return tuple(_point(at_s, slices.get(number, _NOTHING)) for number, at_s in enumerate(self._starts))

    def _findings(self, members: Iterable[Series]) -> dict[str, Finding]:
        """What the trends of these series together rest on."""
        minutes: dict[int, Cell] = {}
        for series in members:
            for number, cell in self._minutes.get(series, {}).items():
                rollup.merge(_of(minutes, number), cell)
        return findings([minutes.get(number, _NOTHING) for number in range(trend.LOOK_BACK_MIN)])


def _of(cells: dict[K, Cell], key: K) -> Cell:
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = Cell()
    return cell


def _categories(cell: Cell) -> dict[str, int]:
    """Attempts that were not answered, by category; most first."""
    found = Counter[str]()
    for name, attempts in cell.outcomes.items():
        outcome, _, category = name.partition(":")
        if category and outcome != Outcome.ANSWERED:
            found[category] += attempts
    return _most_first(found)


def _snoozed_by(cell: Cell) -> dict[str, int]:
    found = Counter[str]()
    for name, attempts in cell.outcomes.items():
        outcome, _, category = name.partition(":")
        if outcome == Outcome.SNOOZED:
            found[why_snoozed(Category(category) if category else None).value] += attempts
    return _most_first(found)


def _error_rate(by: Mapping[Outcome, int]) -> float:
    judged = sum(by.values()) - by[Outcome.SNOOZED]
    return (by[Outcome.RETRIED] + by[Outcome.FAILED]) / judged if judged else 0.0


def _figures(cell: Cell, found: Mapping[str, Finding]) -> Figures:
    by, recovered = rollup.outcomes(cell), cell.recovered
    answered, failed = by[Outcome.ANSWERED], by[Outcome.FAILED]
    return Figures(
        calls=answered + failed,
        answered=answered,
        failed=failed,
        attempts=sum(by.values()),
        retried=by[Outcome.RETRIED],
        snoozed=by[Outcome.SNOOZED],
        refused=cell.refused,
        error_rate=_error_rate(by),
        met_failure=recovered + failed,
        recovered=recovered,
        retry_success_rate=recovered / (recovered + failed) if recovered + failed else None,
        backoff_s=cell.backoff_s,
        categories=_categories(cell),
        input_tokens=cell.input_tokens,
        output_tokens=cell.output_tokens,
        latency_mean_s=cell.latency_s / answered if answered else None,
        latency=spread(cell.latency),
        waited=spread(cell.waited),
        trend=of_latency(found).trend,
        snoozed_by=_snoozed_by(cell),
        trends=dict(found),
    )


def _point(at_s: float, cell: Cell) -> Point:
    by = rollup.outcomes(cell)
    answered, failed = by[Outcome.ANSWERED], by[Outcome.FAILED]
    return Point(
        at_s=at_s,
        calls=answered + failed,
        answered=answered,
        failed=failed,
        attempts=sum(by.values()),
        retried=by[Outcome.RETRIED],
        snoozed=by[Outcome.SNOOZED],
        refused=cell.refused,
        error_rate=_error_rate(by),
        recovered=cell.recovered,
        backoff_s=cell.backoff_s,
        categories=_categories(cell),
        latency_s=cell.latency_s / answered if answered else None,
        input_tokens=cell.input_tokens,
        output_tokens=cell.output_tokens,
        snoozed_by=_snoozed_by(cell),
        latency=spread(cell.latency),
    )


def spread(counts: Histogram) -> Spread:
    """Median and 95th percentile of a histogram."""
    return Spread(*quantiles(counts, 0.50, 0.95))


def _most_first(categories: Mapping[str, int]) -> dict[str, int]:
    found = {name: number for name, number in categories.items() if number}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
