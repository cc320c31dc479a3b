"""What do attempts add up to? The figures of a lane, a function, a context or all of them, from sums and samples.

Pure: rows in, figures out. docs/operations.md says what each figure means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ratelimit_worker.calls import Outcome
from ratelimit_worker.policy.trend import Slice, Trend, latency_trend
from ratelimit_worker.reports.outcomes import why_snoozed
from ratelimit_worker.stores.queries import RARE_SAMPLE, Drawn, Rare, Retried, Sums

#: Lanes, functions or contexts that have figures of their own; what comes beyond is added up under OTHERS.
MOST_GROUPS = 1_000
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile, seconds; None: nothing to tell them from."""

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
    trend: Trend  #: of the latency
    snoozed_by: Mapping[str, int] = field(default_factory=dict)  #: the snoozed ones by reason (`outcomes.Snoozed`)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One lane, function or context."""

    name: str
    figures: Figures
    timeline: tuple[Point, ...] = ()  #: of lanes only


@dataclass(slots=True)
class _Tally:
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    categories: dict[str, int] = field(default_factory=dict)
    snoozed_by: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    latency_s: float = 0.0  #: of answered attempts
    recovered: int = 0
    backoff_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, row: Sums) -> None:
        self.outcomes[row.outcome] += row.attempts
        self.refused += row.refused
        if row.outcome is Outcome.SNOOZED:
            why = why_snoozed(row.category).value
            self.snoozed_by[why] = self.snoozed_by.get(why, 0) + row.attempts
        if row.outcome is Outcome.ANSWERED:
            self.latency_s += row.latency_s
        elif row.category is not None:
            name = row.category.value
            self.categories[name] = self.categories.get(name, 0) + row.attempts
        self.input_tokens += row.input_tokens
        self.output_tokens += row.output_tokens

    def retry(self, row: Retried) -> None:
        self.recovered += row.recovered
        self.backoff_s += row.backoff_s

    @property
    def attempts(self) -> int:
        return sum(self.outcomes.values())

    @property
    def error_rate(self) -> float:
        errors = self.outcomes[Outcome.RETRIED] + self.outcomes[Outcome.FAILED]
        judged = self.attempts - self.outcomes[Outcome.SNOOZED]
        return errors / judged if judged else 0.0

    def point(self, at_s: float) -> Point:
        answered, failed = self.outcomes[Outcome.ANSWERED], self.outcomes[Outcome.FAILED]
        return Point(
            at_s=at_s,
            calls=answered + failed,
            answered=answered,
            failed=failed,
            attempts=self.attempts,
            retried=self.outcomes[Outcome.RETRIED],
            snoozed=self.outcomes[Outcome.SNOOZED],
            refused=self.refused,
            error_rate=self.error_rate,
            recovered=self.recovered,
            backoff_s=self.backoff_s,
            categories=_most_first(self.categories),
            latency_s=self.latency_s / answered if answered else None,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            snoozed_by=_most_first(self.snoozed_by),
        )


_Slices = dict[int, _Tally]  # number of the slice → what happened in it; most groups are idle most of the time
_NOTHING = _Tally()


@dataclass(slots=True)
class _Sample:
    latency: list[tuple[float, int]] = field(default_factory=list)
    waited: list[tuple[float, int]] = field(default_factory=list)


class Tally:
    """Adds up a window: one `slice` after the other, oldest first, then the sample."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._total: _Slices = {}
        self._groups: dict[str, dict[str, _Slices]] = {"lane": {}, "task": {}, "context": {}}
        self._samples: dict[tuple[str, str], _Sample] = defaultdict(_Sample)

    def slice(self, at_s: float, rows: Iterable[Sums], retried: Iterable[Retried] = ()) -> None:
        """Add what finished from `at_s` on, before the next slice."""
        number = len(self._starts)
        self._starts.append(at_s)
        for row in rows:
            self._total.setdefault(number, _Tally()).add(row)
            for kind, name in (("lane", row.lane), ("task", row.task), ("context", row.context)):
                self._of(kind, name).setdefault(number, _Tally()).add(row)
        for again in retried:
            self._total.setdefault(number, _Tally()).retry(again)
            for kind, name in (("lane", again.lane), ("task", again.task), ("context", again.context)):
                self._of(kind, name).setdefault(number, _Tally()).retry(again)

    def rare(self, one_in: int) -> Rare:
        """Groups of which one attempt in `one_in` is too little; the smallest first, until they are too many rows."""
        if one_in == 1:
            return Rare()
        sizes = sorted(
            (sum(tally.attempts for tally in slices.values()), kind, name)
            for kind, names in self._groups.items()
            for name, slices in names.items()
            if name != OTHERS
        )
        chosen: dict[str, set[str]] = {"lane": set(), "task": set(), "context": set()}
        left = RARE_SAMPLE
        for size, kind, name in sizes:
            if size > left or size // one_in >= _ENOUGH:
                break
            left -= size
            chosen[kind].add(name)
        return Rare(frozenset(chosen["lane"]), frozenset(chosen["task"]), frozenset(chosen["context"]))

    def sample(self, rows: Iterable[Drawn]) -> None:
        """Add attempts to tell percentiles from."""
        for row in rows:
            for kind, name in (("", ""), ("lane", row.lane), ("task", row.task), ("context", row.context)):
                sample = self._samples[kind, self._known(kind, name)]
                sample.waited.append((row.waited_s, row.weight))
                if row.answered:
                    sample.latency.append((row.latency_s, row.weight))

    def total(self) -> Figures:
        """Figures of all that was added."""
        return self._figures("", "", self._total)

    def timeline(self) -> tuple[Point, ...]:
        """All that was added, by slice."""
        return _points(self._starts, self._total)

    def groups(self, kind: str) -> tuple[Group, ...]:
        """Figures by "lane", "task" or "context"; most attempts first."""
        found = [
            Group(
                name=name,
                figures=self._figures(kind, name, slices),
                timeline=_points(self._starts, slices) if kind == "lane" else (),
            )
            for name, slices in self._groups[kind].items()
        ]
        return tuple(sorted(found, key=lambda group: (-group.figures.attempts, group.name)))

    def _of(self, kind: str, name: str) -> _Slices:
        names = self._groups[kind]
        if name not in names and len(names) >= MOST_GROUPS:
            name = OTHERS
        return names.setdefault(name, {})

    def _known(self, kind: str, name: str) -> str:
        return name if not kind or name in self._groups[kind] else OTHERS

    def _figures(self, kind: str, name: str, slices: _Slices) -> Figures:
        tallies = slices.values()
        outcomes = {outcome: sum(tally.outcomes[outcome] for tally in tallies) for outcome in Outcome}
        categories, snoozed_by = Counter[str](), Counter[str]()
        for tally in tallies:
            categories.update(tally.categories)
            snoozed_by.update(tally.snoozed_by)
        answered, failed = outcomes[Outcome.ANSWERED], outcomes[Outcome.FAILED]
        errors, judged = failed + outcomes[Outcome.RETRIED], sum(outcomes.values()) - outcomes[Outcome.SNOOZED]
        recovered = sum(tally.recovered for tally in tallies)
        sample = self._samples.get((kind, name), _Sample())
        seen = [slices.get(number, _NOTHING) for number in range(len(self._starts))]
        return Figures(
            calls=answered + failed,
            answered=answered,
            failed=failed,
            attempts=sum(outcomes.values()),
            retried=outcomes[Outcome.RETRIED],
            snoozed=outcomes[Outcome.SNOOZED],
            refused=sum(tally.refused for tally in tallies),
            error_rate=errors / judged if judged else 0.0,
            met_failure=recovered + failed,
            recovered=recovered,
            retry_success_rate=recovered / (recovered + failed) if recovered + failed else None,
            backoff_s=sum(tally.backoff_s for tally in tallies),
            categories=_most_first(categories),
            input_tokens=sum(tally.input_tokens for tally in tallies),
            output_tokens=sum(tally.output_tokens for tally in tallies),
            latency_mean_s=sum(tally.latency_s for tally in tallies) / answered if answered else None,
            latency=spread(sample.latency),
            waited=spread(sample.waited),
            trend=latency_trend([Slice(tally.outcomes[Outcome.ANSWERED], tally.latency_s) for tally in seen]),
            snoozed_by=_most_first(snoozed_by),
        )


#: Attempts in a sample that are enough for a 95th percentile.
_ENOUGH = 400


def spread(weighted: Iterable[tuple[float, int]]) -> Spread:
    """Percentiles of (value, weight): the smallest value at or below which lies that share of the weight."""
    ordered = sorted(weighted)
    if not ordered:
        return Spread()
    up_to = list(accumulate(weight for _, weight in ordered))
    return Spread(*(ordered[bisect_left(up_to, share * up_to[-1])][0] for share in (0.50, 0.95)))


def _most_first(categories: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(categories.items(), key=lambda item: (-item[1], item[0])))


def _points(starts: Sequence[float], slices: _Slices) -> tuple[Point, ...]:
    return tuple(slices.get(number, _NOTHING).point(at_s) for number, at_s in enumerate(starts))
