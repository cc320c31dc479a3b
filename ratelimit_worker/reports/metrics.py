"""What does Prometheus get? How the lanes stand, and running totals of what ended, as metric families. Pure.

Names begin with `ratelimit_worker_`. Units are seconds, tokens, dollars; a pace is per minute, as everywhere here.
Names of lanes and tasks come from outside: so many of each are told by name, and all others as `other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.rollup import Cell
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.policy.histogram import value_of
from ratelimit_worker.reports.live import ClusterState, LaneState
from ratelimit_worker.stores.answers import Size

PREFIX = "ratelimit_worker_"
OTHER = "other"
MOST_NAMES = 200  #: lanes, and tasks, that are told by name
NANO = 1e-9
#: Upper bounds of what Prometheus counts, seconds.
BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3600.0)


class Names:
    """The names that are told: the first so many that came. They stay, so that a series does not come and go."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._told: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name as a label, or `other`."""
        if name not in self._told and len(self._told) < self._most:
            self._told[name] = one_line(name.encode("utf-8", "replace").decode())
        return self._told.get(name, OTHER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What ended since the exporter counts."""

    lanes: Mapping[str, Cell] = field(default_factory=dict)
    tasks: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found out for one scrape. None: the server or the database that knows it is away."""

    state: ClusterState | None
    totals: Totals | None
    latencies_s: Mapping[str, float] = field(default_factory=dict)  #: lane → mean of its answers of late
    outbox_lag: int | None = None  #: attempts on their way to the database
    cache: Size | None = None  #: answers that are kept


def useful_slots(lane: LaneState, latency_s: float | None) -> float:
    """How many slots could be at work for a lane: its calls, and no more than its pace keeps busy (Little's law).

    More workers than that start nothing sooner, so an autoscaler follows this and not the length of the queue.
    """
    calls = float(lane.waiting + lane.out)
    if lane.allowed_per_min is None or latency_s is None:
        return calls
    return min(calls, max(float(lane.out), lane.allowed_per_min / 60.0 * latency_s))


def families(seen: Seen, lanes: Names, tasks: Names) -> Iterator[Metric]:
    """All metric families of a scrape."""
    up = GaugeMetricFamily(PREFIX + "up", "1: it could be asked; 0: it could not", labels=["of"])
    up.add_metric(["redis"], float(seen.state is not None))
    up.add_metric(["database"], float(seen.totals is not None))
    yield up
    if seen.state is not None:
        yield from _cluster(seen, seen.state)
        yield from _standing(seen.state, seen.latencies_s, lanes)
    if seen.totals is not None:
        yield from _ended(seen.totals.lanes, "lane", "", lanes)
        yield from _ended(seen.totals.tasks, "task", "task_", tasks)
        yield from _times(seen.totals.lanes, lanes)


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _cluster(seen: Seen, state: ClusterState) -> Iterator[Metric]:
    told: tuple[tuple[str, str, float | None], ...] = (
        ("workers", "Workers that beat", state.workers),
        ("slots", "Slots of all workers", state.slots),
        ("outbox_lag", "Attempts that are on their way to the tracking database", seen.outbox_lag),
        ("cache_entries", "Answers that are kept", seen.cache and seen.cache.entries),
        ("cache_bytes", "What they take, bytes", seen.cache and seen.cache.bytes),
        ("overdue_calls", "Calls that were given up and still run", len(state.overdue)),
        ("unknown_tasks", "Tasks that calls wait for and no worker knows", len(state.unknown)),
    )
    for name, words, value in told:
        if value is not None:
            yield GaugeMetricFamily(PREFIX + name, words, value=value)
    in_mode = GaugeMetricFamily(PREFIX + "lanes", "Lanes in each mode, all of them", labels=["mode"])
    for mode in Mode:
        in_mode.add_metric([mode.value], state.modes.get(mode.value, 0))
    yield in_mode
    slots = GaugeMetricFamily(PREFIX + "queue_slots", "Slots that take calls from a queue", labels=["queue"])
    for queue in state.queues:
        slots.add_metric([one_line(queue.queue)], queue.slots)
    yield slots
    events = CounterMetricFamily(PREFIX + "events", "What scripts have counted, by name", labels=["event"])
    for name, count in sorted(state.counters.items()):
        events.add_metric([name], count)
    yield events


# ── how lanes stand ──────────────────────────────────────────────────────────────────────────────────────────────────

#: name, words, value (None: not told). What adds up is told of all lanes beyond the bound together, the rest of none.
_ADDS: tuple[tuple[str, str, Callable[[LaneState], float | None]], ...] = (
    ("waiting", "Calls that wait for a permit", lambda lane: lane.waiting),
    ("due_later", "Calls that wait for their time", lambda lane: lane.due_later),
    ("ready", "Calls that are released and that no worker has begun", lambda lane: lane.ready),
    ("running", "Calls that run", lambda lane: lane.running),
    ("reserved_tokens", "Tokens that calls which are out have reserved", lambda lane: lane.reserved_tokens),
    ("used_per_minute", "Attempts that ended in the last minute", lambda lane: lane.used_per_min),
    ("refused_per_minute", "Of these, 429s", lambda lane: lane.refused_last_min),
)
_ALONE: tuple[tuple[str, str, Callable[[LaneState], float | None]], ...] = (
    ("allowed_per_minute", "Requests a minute that may go now; absent: not bound", lambda lane: lane.allowed_per_min),
    ("oldest_age_seconds", "Since the oldest of the waiting calls was accepted", lambda lane: lane.oldest_age_s),
    ("gate_seconds", "Until anything may go; +Inf: until somebody opens it", lambda lane: lane.gate_s),
    ("pinned", "1: its mode is pinned by hand", lambda lane: float(lane.pinned)),
    ("away", "1: its provider is away, by the law", lambda lane: float(lane.away)),
)


def _standing(state: ClusterState, latencies_s: Mapping[str, float], names: Names) -> Iterator[Metric]:
    told = [(names.of(lane.lane), lane) for lane in state.lanes]
    for name, words, value in _ADDS:
        yield _gauge(name, words, ((label, value(lane)) for label, lane in told))
    yield _gauge(
        "useful_slots",
        "Slots that could be at work for it: its calls, and no more than its pace keeps busy",
        ((label, useful_slots(lane, latencies_s.get(lane.lane))) for label, lane in told),
    )
    named = [(label, lane) for label, lane in told if label != OTHER]
    for name, words, value in _ALONE:
        yield _gauge(name, words, ((label, value(lane)) for label, lane in named))
    mode = GaugeMetricFamily(PREFIX + "lane_mode", "1: the lane is in this mode", labels=["lane", "mode"])
    held = GaugeMetricFamily(PREFIX + "lane_held", "1: this holds its next call back", labels=["lane", "cause"])
    for label, lane in named:
        for one in Mode:
            mode.add_metric([label, one.value], float(lane.mode is one))
        for kind in sorted({bar.kind.value for bar in lane.bars or ()}):
            held.add_metric([label, kind], 1.0)
    yield from (mode, held)
    yield from _levels(named)


def _gauge(name: str, words: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    """A gauge by lane; values under one label add up."""
    sums: dict[str, float] = {}
    for label, value in values:
        if value is not None:
            sums[label] = sums.get(label, 0.0) + value
    made = GaugeMetricFamily(f"{PREFIX}lane_{name}", words, labels=["lane"])
    for label, total in sums.items():
        made.add_metric([label], total)
    return made


def _levels(named: Iterable[tuple[str, LaneState]]) -> Iterator[Metric]:
    labels = ["lane", "dimension"]
    pace = GaugeMetricFamily(PREFIX + "lane_pace_per_minute", "Units a minute that may go", labels=labels)
    level = GaugeMetricFamily(PREFIX + "lane_level", "Units that may go at once, now; below 0: owed", labels=labels)
    depth = GaugeMetricFamily(PREFIX + "lane_depth", "Most units that may go at once", labels=labels)
    learned = GaugeMetricFamily(
        PREFIX + "lane_learned_per_minute", "What headers say the provider gives", labels=labels
    )
    for label, lane in named:
        for dimension, one in lane.levels.items():
            pace.add_metric([label, dimension], one.pace_per_min)
            level.add_metric([label, dimension], one.level)
            depth.add_metric([label, dimension], one.depth)
            if one.learned_per_min is not None:
                learned.add_metric([label, dimension], one.learned_per_min)
    yield from (pace, level, depth, learned)


# ── what ended ───────────────────────────────────────────────────────────────────────────────────────────────────────

_TOKENS: tuple[tuple[str, Callable[[Cell], int]], ...] = (
    ("input", lambda cell: cell.input_tokens),
    ("output", lambda cell: cell.output_tokens),
    ("cached_input", lambda cell: cell.cached_input_tokens),
    ("cache_write", lambda cell: cell.cache_write_tokens),
    ("reasoning", lambda cell: cell.reasoning_tokens),
)
_AMOUNTS: tuple[tuple[str, str, Callable[[Cell], float]], ...] = (
    ("refused", "Attempts that met a 429", lambda cell: cell.refused),
    ("unpriced", "Attempts with tokens and without a price", lambda cell: cell.unpriced),
    ("spent_usd", "What attempts cost whose price is known, dollars", lambda cell: cell.cost_nanousd * NANO),
    ("wasted_usd", "Of this, attempts that were not answered, dollars", lambda cell: cell.wasted_nanousd * NANO),
    (
        "saved_by_cached_input_usd",
        "What they would have cost more without it, dollars",
        lambda cell: cell.saved_nanousd * NANO,
    ),
)
_Sums = dict[tuple[str, ...], float]


def _ended(cells: Mapping[str, Cell], by: str, word: str, names: Names) -> Iterator[Metric]:
    attempts: _Sums = {}
    tokens: _Sums = {}
    for name, cell in cells.items():
        label = names.of(name)
        for key, count in cell.outcomes.items():
            outcome, _, category = key.partition(":")
            _count(attempts, (label, outcome, category), count)
        for kind, tokens_of in _TOKENS:
            _count(tokens, (label, kind), tokens_of(cell))
    yield _counter(f"{word}attempts", "Attempts that ended", (by, "outcome", "category"), attempts)
    yield _counter(f"{word}tokens", "Tokens as counted; cached, reasoning are parts", (by, "kind"), tokens)
    for measure, words, value_of_cell in _AMOUNTS:
        sums: _Sums = {}
        for name, cell in cells.items():
            _count(sums, (names.of(name),), value_of_cell(cell))
        yield _counter(word + measure, words, (by,), sums)


def _count(sums: _Sums, label: tuple[str, ...], value: float) -> None:
    sums[label] = sums.get(label, 0.0) + value


def _counter(name: str, words: str, labels: tuple[str, ...], values: _Sums) -> Metric:
    made = CounterMetricFamily(PREFIX + name, words, labels=labels)
    for label, value in sorted(values.items()):
        made.add_metric(label, max(0.0, value))
    return made


def _times(cells: Mapping[str, Cell], names: Names) -> Iterator[Metric]:
    """Histograms of latencies and waits, by lane."""
    latency = HistogramMetricFamily(PREFIX + "latency_seconds", "Of answered attempts", labels=["lane"])
    waited = HistogramMetricFamily(PREFIX + "wait_seconds", "Of attempts, until they began", labels=["lane"])
    told: tuple[tuple[HistogramMetricFamily, Callable[[Cell], Mapping[int, int]]], ...] = (
        (latency, lambda cell: cell.latency),
        (waited, lambda cell: cell.waited),
    )
    for made, counts_of in told:
        counts: dict[str, dict[int, int]] = {}
        for name, cell in cells.items():
            into = counts.setdefault(names.of(name), {})
            for bucket, count in counts_of(cell).items():
                into[bucket] = into.get(bucket, 0) + count
        for label, buckets in counts.items():
            made.add_metric([label], *_buckets(buckets))
        yield made


def _buckets(counts: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """Counts up to each bound, as Prometheus has them, and the sum of all values within 1 %."""
    told = [
        (str(bound), float(sum(count for bucket, count in counts.items() if value_of(bucket) <= bound)))
        for bound in BOUNDS_S
    ]
    total = sum(value_of(bucket) * count for bucket, count in counts.items())
    return [*told, ("+Inf", float(sum(counts.values())))], total
