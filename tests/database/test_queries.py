"""Questions to the tracking database, on SQLite and PostgreSQL, and the figures that come of hand-made rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine

from ratelimit_worker.calls import Attempt, Category, Outcome, PriceSource
from ratelimit_worker.contracts.rollup import Cell, CellKey, Series
from ratelimit_worker.contracts.sums import Recent
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.policy.rollup import OTHERS
from ratelimit_worker.policy.trend import Trend
from ratelimit_worker.reports.analytics import to_csv, to_function_csv
from ratelimit_worker.reports.figures import MOST_GROUPS, Figures, Spread, Tally
from ratelimit_worker.reports.html import page
from ratelimit_worker.reports.stats import Sources, slice_length_s, slices, stats
from ratelimit_worker.reports.tables import stats_tables
from ratelimit_worker.stores.migrations import HEAD
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests import builders

NOW = 1_800_000_000.0  # on the hour


def attempt(
    call_id: str,
    outcome: Outcome = Outcome.ANSWERED,
    *,
    number: int = 1,
    ago_s: float = 60.0,
    latency_s: float = 1.0,
    waited_s: float = 0.5,
    lane: str = "a",
    task: str = "t",
    context: str = "",
    category: Category | None = None,
    tokens: tuple[int, int] | None = None,
) -> Attempt:
    """An attempt that ended `ago_s` before NOW."""
    return builders.attempt(
        call_id,
        number,
        outcome,
        finished_at=NOW - ago_s,
        took_s=latency_s,
        lane=lane,
        task=task,
        waited_s=waited_s,
        context=context,
        category=category,
        input_tokens=tokens[0] if tokens else None,
        output_tokens=tokens[1] if tokens else None,
    )


class NoRedis:
    """A Redis that is away."""

    def now(self, *_: Any, **__: Any) -> None:
        raise StoreUnavailable("Redis: away")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


def sources_of(engine: Engine) -> Sources:
    """The database alone."""
    return Sources.of(Queries(engine), NoRedis())  # type: ignore[arg-type]


def recorded(engine: Engine, rows: Sequence[Attempt]) -> Sources:
    """The database with these rows."""
    Tracker(engine).record(rows)
    return sources_of(engine)


STORY = [
    # answered at once
    attempt("one", tokens=(10, 5), context="code", latency_s=2.0, waited_s=1.0),
    # failed once, answered then
    attempt("two", Outcome.RETRIED, category=Category.SERVER_ERROR, latency_s=0.1, waited_s=0.0),
    attempt("two", number=2, tokens=(20, 7), latency_s=4.0, waited_s=3.0),
    # refused twice, which is no failure, answered then
    attempt("three", Outcome.SNOOZED, category=Category.RATE_LIMITED, lane="b"),
    attempt("three", Outcome.SNOOZED, number=2, category=Category.RATE_LIMITED, lane="b"),
    attempt("three", number=3, lane="b", task="u", tokens=(1, 1)),
    # failed for good, at once and after a retry
    attempt("four", Outcome.FAILED, category=Category.INVALID_REQUEST),
    attempt("five", Outcome.RETRIED, category=Category.TIMEOUT),
    attempt("five", Outcome.FAILED, number=2, category=Category.TIMEOUT),
    # not ended yet
    attempt("six", Outcome.RETRIED, category=Category.SERVER_ERROR, lane="b"),
    # before the window, and after it
    attempt("old", ago_s=901.0),
    attempt("new", ago_s=-1.0),
]


def test_figures_of_hand_made_rows(engine: Engine) -> None:
    """Each figure of the last 15 minutes, by its definition."""
    found = stats(recorded(engine, STORY), 900.0, NOW)
    total = found.total
    assert (total.calls, total.answered, total.failed) == (5, 3, 2)
    assert (total.attempts, total.retried, total.snoozed, total.refused) == (10, 3, 2, 2)
    assert total.error_rate == pytest.approx(5 / 8)
    assert (total.met_failure, total.recovered, total.retry_success_rate) == (3, 1, pytest.approx(1 / 3))
    assert dict(total.categories) == {"rate_limited": 2, "server_error": 2, "timeout": 2, "invalid_request": 1}
    assert (total.input_tokens, total.output_tokens) == (31, 13)
    assert (total.latency.p50_s, total.latency.p95_s) == (pytest.approx(2.0, rel=0.01), pytest.approx(4.0, rel=0.01))
    assert total.trend is Trend.UNKNOWN
    by_lane = {group.name: group.figures for group in found.lanes}
    assert (by_lane["a"].calls, by_lane["a"].recovered, by_lane["a"].attempts) == (4, 1, 6)
    assert (by_lane["b"].calls, by_lane["b"].retry_success_rate, by_lane["b"].snoozed) == (1, None, 2)
    assert {group.name: group.figures.calls for group in found.functions} == {"t": 4, "u": 1}
    assert {group.name: group.figures.calls for group in found.contexts} == {"": 4, "code": 1}
    assert sum(point.attempts for point in found.timeline) == 10
    assert (found.slice_s, len(found.timeline)) == (60.0, 15)
    assert found.now is None
    assert found.missing == ("how the lanes stand is unknown: Redis: away",)


RETRIES = [
    # fails, is refused, is answered: 7 s were lost to backoff, the 2 s after the refusal were not
    attempt("x", Outcome.RETRIED, category=Category.SERVER_ERROR, waited_s=100.0),
    attempt("x", Outcome.SNOOZED, number=2, category=Category.RATE_LIMITED, waited_s=7.0),
    attempt("x", number=3, waited_s=2.0),
    # its first attempt is before the window
    attempt("y", Outcome.RETRIED, category=Category.TIMEOUT, lane="b", task="u", ago_s=2_000.0),
    attempt("y", Outcome.FAILED, number=2, category=Category.TIMEOUT, lane="b", task="u", waited_s=11.0),
    # needs two retries, in another slice each
    attempt("z", Outcome.RETRIED, category=Category.CONFLICT, lane="b", ago_s=600.0),
    attempt("z", Outcome.RETRIED, number=2, category=Category.CONFLICT, lane="b", ago_s=400.0, waited_s=1.0),
    attempt("z", number=3, lane="b", ago_s=100.0, waited_s=4.0),
    # refused first, and answered: no retry
    attempt("w", Outcome.SNOOZED, category=Category.RATE_LIMITED, task="u"),
    attempt("w", number=2, task="u", waited_s=50.0),
]


def retries(figures: Figures) -> tuple[object, ...]:
    """(met failure, recovered, rate, retried, seconds lost to backoff, categories) of a group."""
    rate = figures.retry_success_rate
    return (
        *(figures.met_failure, figures.recovered, rate, figures.retried, figures.backoff_s),
        dict(figures.categories),
    )


def test_what_retries_were_good_for(engine: Engine) -> None:
    """Success rate, attempts by category and time lost to backoff, in all, by lane and by function."""
    found = stats(recorded(engine, RETRIES), 900.0, NOW)
    by_lane = {group.name: retries(group.figures) for group in found.lanes}
    by_task = {group.name: retries(group.figures) for group in found.functions}
    assert retries(found.total) == (
        *(3, 2, pytest.approx(2 / 3), 3, 23.0),
        {"rate_limited": 2, "conflict": 2, "server_error": 1, "timeout": 1},
    )
    assert by_lane == {
        "a": (1, 1, 1.0, 1, 7.0, {"rate_limited": 2, "server_error": 1}),
        "b": (2, 1, 0.5, 2, 16.0, {"conflict": 2, "timeout": 1}),
    }
    assert by_task == {
        "t": (2, 2, 1.0, 3, 12.0, {"conflict": 2, "rate_limited": 1, "server_error": 1}),
        "u": (1, 0, 0.0, 0, 11.0, {"rate_limited": 1, "timeout": 1}),
    }
    assert [(point.recovered, point.backoff_s) for point in found.timeline if point.backoff_s or point.recovered] == [
        *((0, 1.0), (1, 4.0), (1, 18.0)),
    ]


def test_every_form_tells_what_retries_were_good_for(engine: Engine) -> None:
    """CSV of lanes and of functions, table and page."""
    found = stats(recorded(engine, RETRIES), 900.0, NOW)
    names = ("met_failure", "recovered", "retry_success_rate", "backoff_s")
    columns = (*names, "not_answered_conflict", "not_answered_timeout", "not_answered_overloaded")
    lanes = [[row["lane"], *(row[name] for name in columns)] for row in csv.DictReader(to_csv(found).splitlines())]
    assert lanes == [
        ["a", "1", "1", "1.0", "7.0", "0", "0", "0"],
        ["b", "2", "1", "0.5", "16.0", "2", "1", "0"],
    ]
    tasks = list(csv.DictReader(to_function_csv(found).splitlines()))
    assert [[row["function"], *(row[name] for name in columns)] for row in tasks] == [
        ["t", "2", "2", "1.0", "12.0", "2", "0", "0"],
        ["u", "1", "0", "0.0", "11.0", "0", "1", "0"],
    ]
    assert [(row["calls"], row["latency_mean_s"]) for row in tasks] == [("2", "1.0"), ("2", "1.0")]
    told = stats_tables(found)
    assert "2 of 3 calls that met a failure were answered: 66.7 %\nbackoff   23.0 s lost" in told
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert {"b 2 1 50.0 % 2 16.0 s", "u 1 0 0.0 % 0 11.0 s", "t conflict 2", "b timeout 1"} <= set(lines)
    assert all(len(line) <= 80 for line in told.splitlines())
    shown = page(found).replace("\n", "")
    assert '<th scope="row">u</th><td>1</td><td>0</td><td>0.0 %</td><td>0</td><td>11.0 s</td>' in shown
    assert '<th scope="row">b</th><td>2</td><td>0</td><td>0</td><td>1</td>' in shown


def test_money_is_in_the_csv(engine: Engine) -> None:
    """By lane and by function, in dollars; a name that a spreadsheet would run is text, a number stays one."""
    priced: dict[str, Any] = {"lane": "=cmd()", "task": "-t", "price_source": PriceSource.LIST}
    rows = [
        builders.attempt(
            "a", cost_nanousd=2_500_000, cached_saving_nanousd=500_000, input_tokens=9, finished_at=NOW - 60, **priced
        ),
        builders.attempt("b", outcome=Outcome.FAILED, cost_nanousd=1_000_000, finished_at=NOW - 50, **priced),
        builders.attempt("c", lane="free", task="u", finished_at=NOW - 40),
    ]
    found = stats(recorded(engine, rows), 900.0, NOW)
    columns = ("cost_usd", "wasted_usd", "cached_saving_usd")
    lanes = [[row["lane"], *(row[name] for name in columns)] for row in csv.DictReader(to_csv(found).splitlines())]
    assert sorted(lanes) == [["'=cmd()", "0.0035", "0.001", "0.0005"], ["free", "0.0", "0.0", "0.0"]]
    told = csv.DictReader(to_function_csv(found).splitlines())
    tasks = [[row["function"], *(row[name] for name in columns)] for row in told]
    assert sorted(tasks) == [["'-t", "0.0035", "0.001", "0.0005"], ["u", "0.0", "0.0", "0.0"]]


def test_an_empty_database_has_no_figures(engine: Engine) -> None:
    """No tables yet: all is zero, what would divide by it is unknown."""
    total = stats(sources_of(engine), 86_400.0, NOW).total
    assert (total.calls, total.attempts, total.error_rate) == (0, 0, 0.0)
    assert (total.retry_success_rate, total.latency, total.trend) == (None, Spread(), Trend.UNKNOWN)


def test_the_last_minute_of_each_lane(engine: Engine) -> None:
    """Attempts and 429s by lane."""
    source = recorded(engine, STORY)
    assert source.queries.recent(NOW - 61.0, NOW) == {"a": Recent(6, 0), "b": Recent(4, 2)}
    assert source.queries.recent(NOW - 10.0, NOW) == {}


def test_the_revision_is_read_and_not_written(engine: Engine) -> None:
    """None until somebody makes the tables."""
    asked = Queries(engine)
    assert asked.revision() is None
    assert asked.revision() is None
    Tracker(engine).record([attempt("one")])
    assert asked.revision() == HEAD


def test_a_database_that_is_away_is_said_so() -> None:
    """One error of ours, without the password."""
    away = Queries(engine_for("postgresql://me:secret@127.0.0.1:1/none"))
    with pytest.raises(StoreUnavailable) as caught:
        away.count(0.0, 1.0)
    assert "secret" not in str(caught.value)


def test_groups_without_end_are_added_up() -> None:
    """Somebody uses a new context for each call: the first thousand have figures, the rest one together."""
    tally = Tally([0.0], 60.0)
    for i in range(MOST_GROUPS + 10):
        cell = Cell(outcomes={"answered": 2}, latency_s=2.0, recovered=int(i == MOST_GROUPS + 5))
        tally.add(CellKey(0, Series("a", "t", f"c{i}", "", "")), cell)
    groups = {group.name: group.figures for group in tally.groups("context")}
    assert len(groups) == MOST_GROUPS + 1
    assert (groups[OTHERS].attempts, groups[OTHERS].recovered) == (20, 1)
    assert tally.total().attempts == 2 * (MOST_GROUPS + 10)


@pytest.mark.parametrize(
    ("window_s", "slice_s"),
    [
        (60.0, 60.0),
        (900.0, 60.0),
        (3_600.0, 60.0),
        (86_400.0, 900.0),
        (30 * 86_400.0, 3_600.0),
        (731 * 86_400.0, 86_400.0),
    ],
)
def test_slices_are_few_and_fit_hours(window_s: float, slice_s: float) -> None:
    """At most a hundred points where a slice may be at most an hour."""
    assert slice_length_s(window_s) == slice_s


def test_slices_cover_the_window_once() -> None:
    """The first is short where the window begins within a slice; each next one begins where the last has ended."""
    cut = list(slices(90.0, 250.0, 60.0))
    assert cut == [(90.0, 120.0), (120.0, 180.0), (180.0, 240.0), (240.0, 250.0)]
