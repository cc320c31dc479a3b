"""What does Prometheus get? The state of the lanes, and running totals of what ended, as metric families. Pure.

Names begin with `ratelimit_worker_`. Units are seconds, tokens, dollars; a pace is per minute, as everywhere here.
Names of lanes, tasks, queues and budgets are free text: the first `MOST_NAMES` of each become labels, all others are
`other`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct, field
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.alert import Kind
from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.contracts.rollup import Cell
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.policy.histogram import value_of
from ratelimit_worker.policy.rollup import spent_nanousd, wasted_nanousd
from ratelimit_worker.reports.live import ClusterState, LaneState
from ratelimit_worker.reports.reuse import ASKED, figures
from ratelimit_worker.stores.answers import CacheSize

PREFIX = "ratelimit_worker_"
OTHER = "other"
MOST_NAMES = 200  #: names of a kind that become labels
NANO = 1e-9
#: Upper bounds of the histograms' buckets, seconds.
BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3600.0)


class Names:
    """The names that become labels: the first that came. They stay, so that a series does not come and go."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._told: dict[str, str] = {}
        self._labels = {OTHER}

    def of(self, name: str) -> str:
        """The name as a label, or `other`."""
        if name not in self._told and len(self._told) < self._most:
            self._told[name] = self._label(name)
        return self._told.get(name, OTHER)

    def _label(self, name: str) -> str:
        """A unique label: if two names look alike, the second gets a number, since no series may occur twice."""
        label = alike = one_line(name.encode("utf-8", "replace").decode())
        number = 1
        while label in self._labels:
            number += 1
            label = f"{alike} ({number})"
        self._labels.add(label)
        return label


class Labels(Struct, frozen=True, kw_only=True):
    """The names that become labels, of each kind of free text."""

    lanes: Names = field(default_factory=Names)
    tasks: Names = field(default_factory=Names)
    queues: Names = field(default_factory=Names)
    budgets: Names = field(default_factory=Names)


class Totals(Struct, frozen=True, kw_only=True):
    """What ended since the exporter started."""

    lanes: Mapping[str, Cell] = field(default_factory=dict)
    tasks: Mapping[str, Cell] = field(default_factory=dict)


class Seen(Struct, frozen=True, kw_only=True):
    """What was read for one scrape. None: Redis, or the database, is away."""

    state: ClusterState | None
    totals: Totals | None
    latencies_s: Mapping[str, float] = field(default_factory=dict)  #: lane → recent mean latency of its answers
    outbox_lag: int | None = None  #: attempts on their way to the database
    cache: CacheSize | None = None  #: answers that are kept


def useful_slots(lane: LaneState, latency_s: float | None) -> float:
    """How many slots a lane can use: one for each of its calls, but no more than its pace keeps busy (Little's law).

    More workers than that start no call sooner, so an autoscaler should follow this and not the length of the queue.
    """
    calls = float(lane.waiting + lane.out)
    if lane.allowed_per_min is None or latency_s is None:
        return calls
    return min(calls, max(float(lane.out), lane.allowed_per_min / 60.0 * latency_s))


def families(seen: Seen, labels: Labels) -> Iterator[Metric]:
    """All metric families of a scrape."""
    up = GaugeMetricFamily(PREFIX + "up", "1: Redis, or the database, answers; 0: it does not", labels=["of"])
    up.add_metric(["redis"], float(seen.state is not None))
    up.add_metric(["database"], float(seen.totals is not None))
    yield up
    if seen.state is not None:
        yield from _cluster(seen, seen.state, labels.queues)
        yield from _money(seen.state, labels.budgets)
        yield from _standing(seen.state, seen.latencies_s, labels.lanes)
    if seen.totals is not None:
        yield from _ended(seen.totals.lanes, "lane", "", labels.lanes)
        yield from _ended(seen.totals.tasks, "task", "task_", labels.tasks)
        yield from _times(seen.totals.lanes, labels.lanes)


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _cluster(seen: Seen, state: ClusterState, queues: Names) -> Iterator[Metric]:
    told: tuple[tuple[str, str, float | None], ...] = (
        ("workers", "Workers that beat", state.workers),
        ("slots", "Slots of all workers", state.slots),
        ("outbox_lag", "Rows that wait for the tracking database", seen.outbox_lag),
        ("cache_entries", "Answers that are kept", seen.cache and seen.cache.entries),
        ("cache_bytes", "Size of all kept answers, bytes", seen.cache and seen.cache.bytes),
        ("overdue_calls", "Calls that were given up and still run", len(state.overdue)),
        ("unknown_tasks", "Tasks that calls wait for and no worker knows", len(state.unknown)),
    )
    for name, words, value in told:
        if value is not None:
            yield GaugeMetricFamily(PREFIX + name, words, value=value)
    wrong = GaugeMetricFamily(PREFIX + "alerts_open", "Alerts that are open", labels=["kind"])
    for kind in Kind:
        wrong.add_metric([kind.value], sum(alert.kind is kind for alert in state.alerts))
    yield wrong
    in_mode = GaugeMetricFamily(PREFIX + "lanes", "Lanes in each mode, all of them", labels=["mode"])
    for mode in Mode:
        in_mode.add_metric([mode.value], state.modes.get(mode.value, 0))
    yield in_mode
    taken = ((queues.of(queue.queue), float(queue.slots)) for queue in state.queues)
    yield _gauge("queue_slots", "Slots that take calls from a queue", taken, by="queue")
    events = CounterMetricFamily(PREFIX + "events", "Counters of the scripts, by name", labels=["event"])
    for name, count in sorted(state.counters.items()):
        events.add_metric([name], count)
    yield events


def _money(state: ClusterState, names: Names) -> Iterator[Metric]:
    """Budgets of money by name; those beyond `MOST_NAMES` are left out, since limits cannot be added up."""
    labels = ["budget", "period"]
    limit = GaugeMetricFamily(
        PREFIX + "budget_limit_usd", "What may be spent in the present day or month, dollars", labels=labels
    )
    spent = GaugeMetricFamily(
        PREFIX + "budget_spent_usd",
        "What was spent, and the expected cost of calls that are out, dollars",
        labels=labels,
    )
    for one in state.budgets:
        label = names.of(one.name)
        for period in one.periods if label != OTHER else ():
            limit.add_metric([label, period.name], period.limit_usd)
            spent.add_metric([label, period.name], period.spent_usd)
    yield from (limit, spent)


# ── the state of lanes ───────────────────────────────────────────────────────────────────────────────────────────────

#: Name, help text, value (None: no sample). These add up, so lanes beyond the bound are summed as `other`; those of
#: `_ALONE` do not, and such lanes are left out.
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
    (
        "allowed_per_minute",
        "Requests a minute that may be sent now; absent: no limit",
        lambda lane: lane.allowed_per_min,
    ),
    ("oldest_age_seconds", "Time since the oldest of the waiting calls was accepted", lambda lane: lane.oldest_age_s),
    ("gate_seconds", "Time until the gate opens; +Inf: until a person opens it", lambda lane: lane.gate_s),
    ("pinned", "1: its mode is pinned by hand", lambda lane: float(lane.pinned)),
    ("away", "1: its provider is away, by the law", lambda lane: float(lane.away)),
)


def _standing(state: ClusterState, latencies_s: Mapping[str, float], names: Names) -> Iterator[Metric]:
    told = [(names.of(lane.lane), lane) for lane in state.lanes]
    for name, words, value in _ADDS:
        yield _gauge("lane_" + name, words, ((label, value(lane)) for label, lane in told))
    yield _gauge(
        "lane_useful_slots",
        "Slots that the lane can use: its calls, and at most as many as its pace keeps busy",
        ((label, useful_slots(lane, latencies_s.get(lane.lane))) for label, lane in told),
    )
    named = [(label, lane) for label, lane in told if label != OTHER]
    for name, words, value in _ALONE:
        yield _gauge("lane_" + name, words, ((label, value(lane)) for label, lane in named))
    mode = GaugeMetricFamily(PREFIX + "lane_mode", "1: the lane is in this mode", labels=["lane", "mode"])
    held = GaugeMetricFamily(PREFIX + "lane_held", "1: this holds its next call back", labels=["lane", "cause"])
    for label, lane in named:
        for one in Mode:
            mode.add_metric([label, one.value], float(lane.mode is one))
        for kind in sorted({bar.kind.value for bar in lane.bars or ()}):
            held.add_metric([label, kind], 1.0)
    yield from (mode, held)
    yield from _levels(named)


def _gauge(name: str, words: str, values: Iterable[tuple[str, float | None]], by: str = "lane") -> Metric:
    """A gauge by lane, or by another label; values under one label add up."""
    sums: dict[str, float] = {}
    for label, value in values:
        if value is not None:
            sums[label] = sums.get(label, 0.0) + value
    made = GaugeMetricFamily(PREFIX + name, words, labels=[by])
    for label, total in sums.items():
        made.add_metric([label], total)
    return made


def _levels(named: Iterable[tuple[str, LaneState]]) -> Iterator[Metric]:
    labels = ["lane", "dimension"]
    pace = GaugeMetricFamily(PREFIX + "lane_pace_per_minute", "Units a minute by which the bucket fills", labels=labels)
    level = GaugeMetricFamily(
        PREFIX + "lane_level", "Units in the bucket, which may be sent at once; below 0: a debt", labels=labels
    )
    depth = GaugeMetricFamily(PREFIX + "lane_depth", "Most units in the bucket", labels=labels)
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
    ("refused", "Attempts that got a 429", lambda cell: cell.refused),
    ("unpriced", "Attempts with tokens and without a price", lambda cell: cell.unpriced),
    (
        "spent_usd",
        "Cost of attempts whose price is known, with those that ended with their worker, dollars",
        lambda cell: spent_nanousd(cell) * NANO,
    ),
    ("wasted_usd", "Of this, attempts that were not answered, dollars", lambda cell: wasted_nanousd(cell) * NANO),
    (
        "saved_by_cached_input_usd",
        "Saved by the provider's discount for cached input, dollars",
        lambda cell: cell.saved_nanousd * NANO,
    ),
    (
        "saved_by_answers_usd",
        "Saved by answers of other calls, dollars",
        lambda cell: figures(cell.reuse).saved_nanousd * NANO,
    ),
)
_Sums = dict[tuple[str, ...], float]


def _ended(cells: Mapping[str, Cell], by: str, word: str, names: Names) -> Iterator[Metric]:
    attempts: _Sums = {}
    tokens: _Sums = {}
    reuse: _Sums = {}
    spared: _Sums = {}
    for name, cell in cells.items():
        label = names.of(name)
        for one in (*ASKED, Reuse.REFRESHED, Reuse.EVICTED):
            _count(reuse, (label, one.value), cell.reuse.get(one, 0))
        _count(spared, (label, "input"), cell.reuse.get(Reuse.INPUT_TOKENS, 0))
        _count(spared, (label, "output"), cell.reuse.get(Reuse.OUTPUT_TOKENS, 0))
        for key, count in cell.outcomes.items():
            outcome, _, category = key.partition(":")
            _count(attempts, (label, outcome, category), count)
        for kind, tokens_of in _TOKENS:
            _count(tokens, (label, kind), tokens_of(cell))
    yield _counter(f"{word}attempts", "Attempts that ended", (by, "outcome", "category"), attempts)
    yield _counter(
        f"{word}reuse", "Calls that got another call's answer (hit, joined, stale), and misses", (by, "what"), reuse
    )
    yield _counter(f"{word}spared_tokens", "Tokens saved by answers of other calls", (by, "kind"), spared)
    yield _counter(
        f"{word}tokens",
        "Tokens as the provider counted them; cached and reasoning tokens are included in the others",
        (by, "kind"),
        tokens,
    )
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
    latency = HistogramMetricFamily(PREFIX + "latency_seconds", "Latency of answered attempts", labels=["lane"])
    waited = HistogramMetricFamily(
        PREFIX + "wait_seconds", "Time that attempts waited before they began", labels=["lane"]
    )
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
    """Cumulative counts up to each bound, as Prometheus wants them, and the sum of all values within 1 %."""
    told = [
        (str(bound), float(sum(count for bucket, count in counts.items() if value_of(bucket) <= bound)))
        for bound in BOUNDS_S
    ]
    total = sum(value_of(bucket) * count for bucket, count in counts.items())
    return [*told, ("+Inf", float(sum(counts.values())))], total
