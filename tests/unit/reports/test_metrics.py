"""What Prometheus gets: parsed by its own parser, bounded under hostile names, and totals that only grow."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families as parsed

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.alert import Alert, Kind
from ratelimit_worker.contracts.budget import NOTHING_SPENT, Budget
from ratelimit_worker.contracts.rollup import HOUR_S, Cell, CellKey, Series
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.policy.budget import standing
from ratelimit_worker.policy.histogram import bucket
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports.exporter import LATELY_S, Asks, Exporter, Running
from ratelimit_worker.reports.live import ClusterState, LaneState
from ratelimit_worker.reports.metrics import MOST_NAMES, OTHER, PREFIX, useful_slots
from ratelimit_worker.stores.answers import CacheSize
from tests.unit.reports.test_reports_doctor import CLUSTER, LANE

NOW_S = 1_790_000_000.0
HOSTILE = ['a"} 1\nup 0', "b\\", "c\x00", "\ud800", "é" * 300, "{x='y'}"]

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def cell(lane: str, at_s: float = NOW_S, *, answered: int = 1, latency_s: float = 2.0) -> tuple[CellKey, Cell]:
    """Answers of a lane in a minute, and a 429."""
    made = Cell(
        outcomes={"answered": answered, "retried:rate_limited": 1},
        refused=1,
        latency_s=latency_s * answered,
        latency={bucket(latency_s): answered},
        waited={bucket(0.5): answered + 1},
        input_tokens=10 * answered,
        output_tokens=5 * answered,
        cost_nanousd=2_000_000 * answered,
    )
    return CellKey(int(at_s // 60 * 60), Series(lane, f"tasks.{lane}", "", "", "m")), made


class Source:
    """Cells, as the database has them, and what was asked of it."""

    def __init__(self, *cells: tuple[CellKey, Cell]) -> None:
        self.cells = list(cells)
        self.asked: list[tuple[float, float]] = []
        self.away = False

    def __call__(self, since_s: float, until_s: float, finest_s: float) -> Iterator[tuple[CellKey, Cell]]:
        if self.away:
            raise StoreUnavailable("the database is away")
        self.asked.append((since_s, until_s))
        yield from ((key, one) for key, one in self.cells if since_s <= key.at_s < until_s)


class Deployment:
    """What a scrape asks."""

    def __init__(self, state: ClusterState, cells: Source) -> None:
        self.state, self.cells, self.now_s, self.lag = state, cells, NOW_S, 0
        self.redis_away = False
        self.exporter = Exporter(
            Asks(
                state=self._state,
                cells=cells,
                outbox_lag=lambda: self.lag,
                cache=lambda: CacheSize(3, 400),
                clock_s=lambda: self.now_s,
            )
        )
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self.exporter)

    def _state(self) -> ClusterState:
        if self.redis_away:
            raise StoreUnavailable("Redis is away")
        return self.state

    def scrape(self) -> tuple[Values, list[Metric]]:
        """All samples by name and labels, as Prometheus reads them."""
        families = list(parsed(generate_latest(self.registry).decode()))
        samples = [sample for family in families for sample in family.samples]
        values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
        assert len(values) == len(samples), "a series is told twice"
        return values, families


def lane(name: str, **more: object) -> LaneState:
    """A lane of this name."""
    return replace(LANE, lane=name, **more)


def test_a_lane_is_told_whole() -> None:
    """Mode, pace, calls, what holds them back, attempts, tokens, money, and times."""
    bars = (Bar(kind=BarKind.PACE, detail="requests"), Bar(kind=BarKind.GATE, until_s=NOW_S + 5))
    one = lane("gpt", mode=Mode.REDUCED, waiting=7, running=2, gate_s=math.inf, oldest_age_s=3.0, bars=bars)
    wrong = Alert(kind=Kind.NO_WORKER, lane="gpt", since_s=NOW_S, seen_s=NOW_S, opened_s=NOW_S, cause="x")
    state = replace(CLUSTER, lanes=(one,), modes={"REDUCED": 1}, counters={"joined": 4}, alerts=(wrong,))
    values, _ = Deployment(state, Source(cell("gpt", answered=3))).scrape()

    def told(name: str, **labels: str) -> float:
        return values[PREFIX + name, tuple(sorted(labels.items()))]

    assert told("up", of="redis") == told("up", of="database") == 1
    assert told("lane_mode", lane="gpt", mode="REDUCED") == 1
    assert told("lane_mode", lane="gpt", mode="NORMAL") == 0
    assert told("lane_held", lane="gpt", cause="pace") == told("lane_held", lane="gpt", cause="gate") == 1
    assert told("lane_waiting", lane="gpt") == 7
    assert told("lane_allowed_per_minute", lane="gpt") == 0  # its gate is shut
    assert told("lane_gate_seconds", lane="gpt") == math.inf
    assert told("lane_pace_per_minute", lane="gpt", dimension="requests") == 600
    assert told("lanes", mode="REDUCED") == 1
    assert told("alerts_open", kind="no_worker") == 1
    assert told("alerts_open", kind="halt") == 0  # every kind is told, so that a rule may ask for it
    assert told("events_total", event="joined") == 4
    assert told("cache_bytes") == 400
    assert told("attempts_total", lane="gpt", outcome="answered", category="") == 3
    assert told("attempts_total", lane="gpt", outcome="retried", category="rate_limited") == 1
    assert told("refused_total", lane="gpt") == 1
    assert told("tokens_total", lane="gpt", kind="input") == 30
    assert told("spent_usd_total", lane="gpt") == pytest.approx(0.006)
    assert told("task_attempts_total", task="tasks.gpt", outcome="answered", category="") == 3
    assert told("latency_seconds_bucket", lane="gpt", le="1.0") == 0
    assert told("latency_seconds_bucket", lane="gpt", le="2.5") == 3
    assert told("latency_seconds_count", lane="gpt") == 3
    assert told("latency_seconds_sum", lane="gpt") == pytest.approx(6.0, rel=0.02)
    assert told("wait_seconds_count", lane="gpt") == 4


@pytest.mark.long
def test_ten_thousand_hostile_names_are_bounded() -> None:
    """So many lanes by name, all others added up under one; nothing in a name ends a line or a label."""
    names = HOSTILE + [f"lane-{n}" for n in range(10_000)]
    state = replace(CLUSTER, lanes=tuple(lane(name, waiting=1) for name in names))
    deployment = Deployment(state, Source(*(cell(name) for name in names)))
    values, families = deployment.scrape()
    waiting = {labels: value for (name, labels), value in values.items() if name == PREFIX + "lane_waiting"}
    assert len(waiting) == MOST_NAMES + 1
    assert sum(waiting.values()) == len(names)
    assert waiting[("lane", OTHER),] == len(names) - MOST_NAMES
    assert sum(value for (name, _), value in values.items() if name == PREFIX + "attempts_total") == 2 * len(names)
    assert len(generate_latest(deployment.registry)) < 2_000_000
    assert all(family.name.startswith(PREFIX) for family in families)
    assert deployment.scrape()[0].keys() == values.keys()


def test_names_that_look_alike_have_labels_of_their_own() -> None:
    """No series is told twice (`scrape` sees to that), and a lane that is called `other` is not all the others."""
    names = ["a\nb", "a\\nb", "\ud800", "?", OTHER, "c (2)", "c\t", "c\\t"]
    state = replace(CLUSTER, lanes=tuple(lane(name, waiting=1) for name in names))
    values, _ = Deployment(state, Source(*(cell(name) for name in names))).scrape()
    waiting = {labels[0][1]: value for (name, labels), value in values.items() if name == PREFIX + "lane_waiting"}
    assert len(waiting) == len(names)
    assert set(waiting.values()) == {1}
    assert OTHER not in waiting


def test_budgets_of_money_are_told_and_bounded() -> None:
    """Limit and what was spent, by day and month; so many by name, and nothing of the others."""
    both = standing("all", Budget(usd_per_day=5.0, usd_per_month=90.0), NOTHING_SPENT, NOW_S)
    spent = replace(both, periods=tuple(replace(one, spent_usd=2.5) for one in both.periods))
    many = tuple(standing(f"tenant:{n}", Budget(usd_per_day=1.0), NOTHING_SPENT, NOW_S) for n in range(1_000))
    values, _ = Deployment(replace(CLUSTER, budgets=(spent, *many)), Source()).scrape()

    def told(name: str, period: str) -> float:
        return values[PREFIX + name, (("budget", "all"), ("period", period))]

    assert (told("budget_limit_usd", "day"), told("budget_limit_usd", "month")) == (5.0, 90.0)
    assert told("budget_spent_usd", "day") == told("budget_spent_usd", "month") == 2.5
    assert sum(name == PREFIX + "budget_limit_usd" for name, _ in values) == MOST_NAMES + 1


def test_what_is_away_is_missing_and_said() -> None:
    """Redis, the database, or both: the rest is told."""
    source = Source(cell("gpt"))
    deployment = Deployment(CLUSTER, source)
    source.away = True
    values, _ = deployment.scrape()
    assert values[PREFIX + "up", (("of", "database"),)] == 0
    assert (PREFIX + "lane_waiting", (("lane", "gpt"),)) in values
    source.away, deployment.redis_away = False, True
    values, _ = deployment.scrape()
    assert values[PREFIX + "up", (("of", "redis"),)] == 0
    assert values[PREFIX + "up", (("of", "database"),)] == 1
    assert (PREFIX + "lane_waiting", (("lane", "gpt"),)) not in values
    assert values[PREFIX + "refused_total", (("lane", "gpt"),)] == 1


def test_totals_only_grow_and_count_what_comes_late() -> None:
    """Minutes are added up once when they are over for a while and nothing is on its way, and read anew until then."""
    source = Source(cell("gpt", NOW_S - HOUR_S), cell("gpt", NOW_S))
    running = Running(source, NOW_S)

    def answered(now_s: float, nothing_on_its_way: bool = True) -> int:
        totals, _ = running.at(now_s, nothing_on_its_way)
        return totals.lanes["gpt"].outcomes["answered"]

    assert answered(NOW_S + 60) == 1  # what was before it began is not told
    source.cells.append(cell("gpt", NOW_S + 120))
    assert answered(NOW_S + 180) == 2
    later_s = NOW_S + HOUR_S
    assert answered(later_s, nothing_on_its_way=False) == 2
    source.cells.append(cell("gpt", NOW_S + 240))  # of minutes that are over: the database was away
    assert answered(later_s) == 3
    source.asked.clear()
    assert answered(later_s + 60) == 3
    assert min(since_s for since_s, _ in source.asked) >= later_s - LATELY_S - 60, "what is over was added up already"


def test_more_slots_than_a_pace_keeps_busy_are_of_no_use() -> None:
    """60 a minute at 2 s an answer keep 2 slots busy, however many calls wait; without a pace each call has one."""
    budget = replace(LANE.levels["requests"], pace_per_min=60.0)
    paced = lane("gpt", levels={"requests": budget}, waiting=500)
    assert useful_slots(paced, 2.0) == 2
    assert useful_slots(replace(paced, waiting=1), 2.0) == 1
    assert useful_slots(replace(paced, running=5), 2.0) == 5  # these run already
    assert useful_slots(replace(paced, levels={}), 2.0) == 500
    assert useful_slots(paced, None) == 500  # how long an answer takes is not known
    _, latencies_s = Running(Source(cell("gpt", answered=4, latency_s=3.0)), NOW_S).at(NOW_S + 60, True)
    assert latencies_s == {"gpt": pytest.approx(3.0)}
