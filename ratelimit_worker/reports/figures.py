"""Figures of attempts: of a lane, a function, a context, a tenant, a model, or all together.

Pure: cells of the roll-ups in, figures out. docs/operations.md says what each figure means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct, field

from ratelimit_worker.calls import Category, Outcome
from ratelimit_worker.contracts.rollup import MINUTE_S, Cell, CellKey, Series
from ratelimit_worker.contracts.sums import Spent
from ratelimit_worker.policy import rollup, trend
from ratelimit_worker.policy.findings import findings, of_latency
from ratelimit_worker.policy.histogram import Histogram, quantiles
from ratelimit_worker.policy.trend import Finding, Trend
from ratelimit_worker.reports import reuse
from ratelimit_worker.reports.money import spent_of_cell
from ratelimit_worker.reports.outcomes import why_snoozed
from ratelimit_worker.reports.reuse import ReuseFigures

#: Most groups of a kind (lanes, functions, …) with figures of their own; the rest is added up under `rollup.OTHERS`.
MOST_GROUPS = 1_000


class Spread(Struct, frozen=True):
    """Median and 95th percentile, seconds, within 1 %; None: there are no values."""

    p50_s: float | None = None
    p95_s: float | None = None


class Figures(Struct, frozen=True, kw_only=True):
    """Figures of a window, or of one group in it."""

    calls: int  #: ended: answered or failed for good
    answered: int  #: calls
    failed: int  #: calls
    attempts: int  #: requests to the provider
    retried: int  #: attempts that failed and were followed by another
    snoozed: int  #: attempts that were sent back to wait and cost no try
    refused: int  #: attempts that met a 429, whatever their outcome
    error_rate: float  #: failed attempts (retried + failed) ÷ attempts that were not snoozed, 0 to 1
    met_failure: int  #: ended calls of which at least one attempt failed
    recovered: int  #: of these, answered in the end
    retry_success_rate: float | None  #: recovered ÷ met_failure; None: no attempt failed
    backoff_s: float  #: sum of the waits between a failed attempt and the next one of the same call, seconds
    categories: Mapping[str, int]  #: attempts that were not answered, by category
    input_tokens: int
    output_tokens: int
    latency_mean_s: float | None  #: of answered attempts
    latency: Spread  #: of answered attempts
    waited: Spread  #: of all attempts: from acceptance, or from the attempt before, to the start
    trend: Trend  #: of the latency, at the end of the window
    snoozed_by: Mapping[str, int] = field(default_factory=dict)  #: the snoozed ones by reason (`outcomes.Snoozed`)
    #: The trend of each figure, with its values: "latency" (s), "latency_per_token" (s), "tokens_per_s",
    #: "errors" (share), "cost" (dollars a call)
    trends: Mapping[str, Finding] = field(default_factory=dict)
    reuse: ReuseFigures = reuse.NONE  #: calls that got an answer without a request, and what that saved
    cached_input_tokens: int = 0  #: part of the input: read from the provider's cache
    cache_write_tokens: int = 0  #: part of the input: written to it
    reasoning_tokens: int = 0  #: part of the output


class Point(Struct, frozen=True, kw_only=True):
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
    reuse: ReuseFigures | None = None  #: None: nothing was counted
    cost_nanousd: int = 0  #: of all attempts, and of those that were lost with their workers; billionths of a dollar
    wasted_nanousd: int = 0  #: part of the cost: for attempts that were not answered
    cached_saving_nanousd: int = 0  #: the provider's discount for cached input
    estimated_nanousd: int = 0  #: part of the cost: not stated by anybody
    unpriced_attempts: int = 0  #: attempts that used tokens without a known price, which the cost leaves out


class Group(Struct, frozen=True, kw_only=True):
    """One lane, function, context, tenant or model."""

    name: str
    figures: Figures
    timeline: tuple[Point, ...] = ()  #: only for lanes


#: What attempts are grouped by; fields of `contracts.rollup.Series`, in their order.
KINDS = ("lane", "task", "context", "tenant", "model")
_NOTHING = Cell()
K = TypeVar("K")


class Tally:
    """Adds up the cells of a window.

    Args:
        starts: Beginnings of its slices, seconds since the epoch, oldest first; all but the first are multiples of
            `slice_s`.
        judged_from_s: Beginning of the `trend.LOOK_BACK_MIN` minutes from which trends are judged, seconds since the
            epoch; a whole minute.
    """

    def __init__(self, starts: Sequence[float], slice_s: float, judged_from_s: int = 0) -> None:
        self._starts, self._slice_s = starts, slice_s
        self._series: dict[Series, Cell] = {}
        self._lanes: dict[str, dict[int, Cell]] = {}  # lane → number of the slice → its sum
        self._minutes: dict[Series, dict[int, list[Cell]]] = {}  # for the trends: series → number of the minute
        self._minutes_from = judged_from_s
        self._judged: dict[frozenset[Series], dict[str, Finding]] = {}

    def add(self, key: CellKey, cell: Cell) -> None:
        """Add a cell of the window."""
        at_s, series = key
        number = int(at_s // self._slice_s - self._starts[0] // self._slice_s)
        rollup.merge_window(_of(self._series, series), cell)
        lane = self._lanes.get(series.lane)
        if lane is None:
            lane = self._lanes[series.lane] = {}
        rollup.merge_slice(_of(lane, number), cell)

    def judge(self, key: CellKey, cell: Cell) -> None:
        """Add a cell of a minute from which trends are judged; it must not change afterwards."""
        at_s, series = key
        number = (at_s - self._minutes_from) // MINUTE_S
        self._minutes.setdefault(series, {}).setdefault(number, []).append(cell)

    def total(self) -> Figures:
        """Figures of everything that was added."""
        return _figures(rollup.total(self._series.values()), self._findings(self._minutes))

    def spent(self) -> Iterator[Spent]:
        """Costs of each series: one item for answered attempts, one for the others."""
        for series, cell in self._series.items():
            yield from spent_of_cell(series, cell)

    def timeline(self) -> tuple[Point, ...]:
        """Everything that was added, by slice."""
        slices: dict[int, Cell] = {}
        for lane in self._lanes.values():
            for number, cell in lane.items():
                rollup.merge_slice(_of(slices, number), cell)
        return self._points(slices)

    def groups(self, kind: str) -> tuple[Group, ...]:
        """Figures by one of `KINDS`; most attempts first."""
        place, cells, members = KINDS.index(kind), dict[str, Cell](), dict[str, list[Series]]()
        for series, cell in self._series.items():
            if kind == "model" and not cell.outcomes:
                continue  # calls that took no attempt have no model
            name = series[place]
            if name not in cells and len(cells) >= MOST_GROUPS:
                name = rollup.OTHERS
            rollup.merge_window(_of(cells, name), cell)
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
        """The trends of these series together; kept, since a lane often has the same series as its model."""
        whose = frozenset(members)
        found = self._judged.get(whose)
        if found is None:
            minutes: list[list[Cell]] = [[] for _ in range(trend.LOOK_BACK_MIN)]
            for series in whose & self._minutes.keys():
                for number, cells in self._minutes[series].items():
                    if 0 <= number < len(minutes):
                        minutes[number] += cells
            found = self._judged[whose] = findings([rollup.judged_together(cells) for cells in minutes])
        return found


def _of(cells: dict[K, Cell], key: K) -> Cell:
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = Cell()
    return cell


def _categories(cell: Cell) -> dict[str, int]:
    """Attempts that were not answered, by category; most first."""
    found: dict[str, int] = {}
    for name, attempts in cell.outcomes.items():
        outcome, _, category = name.partition(":")
        if category and outcome != Outcome.ANSWERED:
            found[category] = found.get(category, 0) + attempts
    return _most_first(found)


def _snoozed_by(cell: Cell) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, attempts in cell.outcomes.items():
        outcome, _, category = name.partition(":")
        if outcome == Outcome.SNOOZED:
            why = why_snoozed(Category(category) if category else None).value
            found[why] = found.get(why, 0) + attempts
    return _most_first(found)


def _error_rate(by: Mapping[Outcome, int]) -> float:
    judged = sum(by.values()) - by[Outcome.SNOOZED]
    return (by[Outcome.RETRIED] + by[Outcome.FAILED]) / judged if judged else 0.0


def _figures(cell: Cell, found: Mapping[str, Finding]) -> Figures:
    shared = _shared(cell)
    answered, met = shared["answered"], cell.recovered + shared["failed"]
    return Figures(
        **shared,
        met_failure=met,
        retry_success_rate=cell.recovered / met if met else None,
        latency_mean_s=cell.latency_s / answered if answered else None,
        waited=spread(cell.waited),
        trend=of_latency(found).trend,
        trends=dict(found),
        reuse=reuse.figures(cell.reuse),
        cached_input_tokens=cell.cached_input_tokens,
        cache_write_tokens=cell.cache_write_tokens,
        reasoning_tokens=cell.reasoning_tokens,
    )


def _point(at_s: float, cell: Cell) -> Point:
    shared = _shared(cell)
    return Point(
        **shared,
        at_s=at_s,
        latency_s=cell.latency_s / shared["answered"] if shared["answered"] else None,
        cost_nanousd=rollup.spent_nanousd(cell),
        wasted_nanousd=rollup.wasted_nanousd(cell),
        cached_saving_nanousd=cell.saved_nanousd,
        estimated_nanousd=cell.estimated_nanousd + cell.lost_nanousd,
        unpriced_attempts=cell.unpriced,
        reuse=reuse.figures(cell.reuse) if cell.reuse else None,
    )


def _shared(cell: Cell) -> dict[str, Any]:
    """The figures that a window and a slice of it have in common."""
    by = rollup.outcomes(cell)
    return {
        "calls": by[Outcome.ANSWERED] + by[Outcome.FAILED],
        "answered": by[Outcome.ANSWERED],
        "failed": by[Outcome.FAILED],
        "attempts": sum(by.values()),
        "retried": by[Outcome.RETRIED],
        "snoozed": by[Outcome.SNOOZED],
        "refused": cell.refused,
        "error_rate": _error_rate(by),
        "recovered": cell.recovered,
        "backoff_s": cell.backoff_s,
        "categories": _categories(cell),
        "snoozed_by": _snoozed_by(cell),
        "input_tokens": cell.input_tokens,
        "output_tokens": cell.output_tokens,
        "latency": spread(cell.latency),
    }


def spread(counts: Histogram) -> Spread:
    """Median and 95th percentile of a histogram."""
    return Spread(*quantiles(counts, 0.50, 0.95))


def _most_first(categories: Mapping[str, int]) -> dict[str, int]:
    found = {name: number for name, number in categories.items() if number}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
