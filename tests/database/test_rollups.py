"""Roll-ups say what the attempts say: whatever comes twice, late, in another order or from an older version."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from alembic import command
from sqlalchemy import Engine, MetaData, Table, delete, event, insert, text, update

from ratelimit_worker.calls import Attempt, Category, Outcome
from ratelimit_worker.contracts.rollup import HOUR_S, MINUTE_S, Cell
from ratelimit_worker.policy import rollup
from ratelimit_worker.policy.histogram import quantile
from ratelimit_worker.reports.stats import Sources, stats
from ratelimit_worker.stores import migrations
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tables import AttemptRow, CellRow
from ratelimit_worker.stores.tracker import Tracker, _row, engine_for
from tests import builders

NOW = 1_800_000_000.0  # on the hour
KEPT_MINUTES_S = rollup.KEPT_S[MINUTE_S]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


def some_calls(seed: int, calls: int, over_s: float = 3 * 3_600.0) -> list[Attempt]:
    """Calls of some lanes, a third of which need more than one attempt; in no order, some of them told twice."""
    drawn, told = random.Random(seed), list[Attempt]()
    for number in range(calls):
        at_s = NOW - drawn.uniform(0, over_s)
        ends = drawn.choice([Outcome.ANSWERED, Outcome.ANSWERED, Outcome.FAILED, None])
        outcomes = [drawn.choice([Outcome.RETRIED, Outcome.SNOOZED]) for _ in range(drawn.choice([0, 0, 1, 3]))]
        for attempt, outcome in enumerate([*outcomes, *([ends] if ends else [])], start=1):
            bad = outcome is not Outcome.ANSWERED
            took_s = drawn.lognormvariate(0.0, 1.0)
            at_s += took_s
            told.append(
                builders.attempt(
                    f"c-{number}",
                    number=attempt,
                    outcome=outcome,
                    lane=drawn.choice("ab"),
                    task=drawn.choice("tu"),
                    context=drawn.choice(["", "code"]),
                    finished_at=at_s,
                    took_s=took_s,
                    waited_s=drawn.expovariate(1.0),
                    category=drawn.choice([Category.TIMEOUT, Category.RATE_LIMITED]) if bad else None,
                    input_tokens=drawn.randrange(100),
                    output_tokens=None if bad else drawn.randrange(50),
                )
            )
    drawn.shuffle(told)
    return told + told[: len(told) // 10]


def by_hand(attempts: Sequence[Attempt], since_s: float, until_s: float) -> dict[str, float]:
    """The figures of a window by their definitions, from the attempts themselves."""
    calls: dict[str, dict[int, Attempt]] = {}
    for one in attempts:
        calls.setdefault(one.call_id, {}).setdefault(one.number, one)
    found = Counter[str]()
    for of_call in calls.values():
        for number, one in of_call.items():
            if not since_s <= one.finished_at < until_s:
                continue
            found[one.outcome.value] += 1
            found[f"of {one.category}"] += 1
            found["input"] += one.input_tokens or 0
            found["output"] += one.output_tokens or 0
            if (before := of_call.get(number - 1)) is not None and before.outcome is Outcome.RETRIED:
                found["backoff_us"] += round(one.waited_s * 1e6)
            if one.outcome is Outcome.ANSWERED:
                found["latency_us"] += round(one.latency_s * 1e6)
                found["recovered"] += any(
                    other.outcome is Outcome.RETRIED for at, other in of_call.items() if at < number
                )
    return {name: number for name, number in found.items() if number}


def in_sum(queries: Queries, since_s: float, until_s: float, finest_s: float) -> tuple[dict[str, float], Cell]:
    """The same from the roll-ups."""
    cell = rollup.total(cell for _, cell in queries.cells(since_s, until_s, finest_s))
    found = Counter[str]()
    for name, attempts in cell.outcomes.items():
        outcome, _, category = name.partition(":")
        found[outcome] += attempts
        found[f"of {category or None}"] += attempts
    found["input"], found["output"], found["recovered"] = cell.input_tokens, cell.output_tokens, cell.recovered
    found["backoff_us"], found["latency_us"] = round(cell.backoff_s * 1e6), round(cell.latency_s * 1e6)
    return {name: number for name, number in found.items() if number}, cell


def assert_same(queries: Queries, attempts: Sequence[Attempt], since_s: float, until_s: float, finest_s: float) -> None:
    """Counts and sums are equal, and percentiles at most 1 % off."""
    found, cell = in_sum(queries, since_s, until_s, finest_s)
    wanted = by_hand(attempts, since_s, until_s)
    about = {name: pytest.approx(number, abs=100 if name.endswith("_us") else 0) for name, number in wanted.items()}
    assert found == about
    within = {(one.call_id, one.number): one for one in attempts if since_s <= one.finished_at < until_s}.values()
    latencies = sorted(one.latency_s for one in within if one.outcome is Outcome.ANSWERED)
    waits = sorted(one.waited_s for one in within)
    for values, counts in ((latencies, cell.latency), (waits, cell.waited)):
        assert sum(counts.values()) == len(values)
        for share in (0.5, 0.95):
            exact = next(value for place, value in enumerate(values, start=1) if place >= share * len(values))
            assert quantile(counts, share) == pytest.approx(exact, rel=0.0101)


@pytest.mark.parametrize("seed", range(3))
def test_roll_ups_are_equal_to_the_attempts(engine: Engine, seed: int) -> None:
    """Over odd and even windows, by minutes and by hours; attempts come in batches that tear calls apart."""
    told, tracker = some_calls(seed, 400), Tracker(engine)
    for start in range(0, len(told), 97):
        tracker.record(told[start : start + 97])
    asked = Queries(engine, lambda: NOW)
    for since_s, until_s in ((NOW - 3 * HOUR_S, NOW), (NOW - 5_000.5, NOW - 70.25), (NOW - 3_601, NOW + 5_000)):
        assert_same(asked, told, since_s, until_s, MINUTE_S)
        assert_same(asked, told, since_s, until_s, HOUR_S)


def test_a_window_is_read_without_its_attempts(engine: Engine) -> None:
    """What lies between its first and its last minute is read from cells alone."""
    Tracker(engine).record(some_calls(1, 50))
    asked, said = Queries(engine, lambda: NOW), list[tuple[str, object]]()
    asked.count(0, 1)
    event.listen(engine, "before_cursor_execute", lambda _c, _u, sql, values, *_: said.append((sql, values)))
    list(asked.cells(NOW - 7_200.0, NOW, HOUR_S))
    of_attempts = [sql for sql, _ in said if "FROM attempts" in sql and "min(attempts.finished_at)" not in sql]
    assert of_attempts
    assert all("rolled_up = 0" in sql for sql in of_attempts)


def test_an_end_that_was_made_anew_counts_as_an_attempt(engine: Engine) -> None:
    """The sums follow the rows, which are changed."""
    tracker, asked = Tracker(engine), Queries(engine, lambda: NOW)
    first = builders.attempt("c", finished_at=NOW - 100, took_s=2.0)
    again = replace(builders.attempt("c", number=2, finished_at=NOW - 40, took_s=3.0), anew=True)
    tracker.record([first])
    assert in_sum(asked, NOW - 600, NOW, MINUTE_S)[1].outcomes == {"answered": 1}
    tracker.record([again])
    cell = in_sum(asked, NOW - 600, NOW, MINUTE_S)[1]
    assert {name: number for name, number in cell.outcomes.items() if number} == {"retried": 1, "answered": 1}
    assert (cell.recovered, cell.latency_s) == (1, pytest.approx(3.0))
    assert sum(cell.latency.values()) == 1


def test_attempts_of_an_older_version_join_in_chunks(engine: Engine) -> None:
    """A database from before is whole at once, from its attempts, and is rolled up while it is used."""
    told = some_calls(5, 300)
    seen = {(one.call_id, one.number): one for one in reversed(told)}
    migrations.upgrade(engine)
    with engine.begin() as connection:
        command.downgrade(migrations.alembic_config(connection), "0005")
        old = Table("attempts", MetaData(), autoload_with=connection)
        names = list(old.columns.keys())
        rows = [_row(one) for one in seen.values()]
        connection.execute(insert(old), [{name: row[name] for name in names} for row in rows])
    tracker, asked = Tracker(engine), Queries(engine, lambda: NOW)
    assert_same(asked, told, NOW - 9_999, NOW, MINUTE_S)
    assert 100 <= tracker.roll_up(100) < 400
    assert_same(asked, told, NOW - 9_999, NOW, HOUR_S)
    tracker.record([builders.attempt("new", finished_at=NOW - 500)])
    while tracker.roll_up(100):
        assert_same(asked, [*told, builders.attempt("new", finished_at=NOW - 500)], NOW - 9_999, NOW, HOUR_S)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM attempts WHERE rolled_up = 0")) == 0


def test_figures_outlive_the_attempts(engine: Engine) -> None:
    """Attempts go by MAISD_RETENTION_DAYS, minutes after 32 days, hours after two years."""
    tracker, asked = Tracker(engine), Queries(engine, lambda: NOW)
    days = {"young": 1, "weeks": 20, "months": 100, "years": 900}
    tracker.record([builders.attempt(name, finished_at=NOW - ago * 86_400.0) for name, ago in days.items()])
    assert tracker.purge(7 * 86_400.0, now_s=NOW) == 3

    def answered(since_days: float, finest_s: float) -> int:
        cells = asked.cells(NOW - since_days * 86_400.0, NOW, finest_s)
        return sum(rollup.outcomes(cell)[Outcome.ANSWERED] for _, cell in cells)

    assert [answered(2, MINUTE_S), answered(25, MINUTE_S), answered(25, HOUR_S)] == [1, 2, 2]
    assert [answered(101, HOUR_S), answered(700, HOUR_S), answered(1_000, HOUR_S)] == [3, 3, 3]
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT span_s, count(*) FROM rollups GROUP BY span_s ORDER BY span_s"))
        assert [tuple(row) for row in kept] == [(60, 2), (3600, 3)]


def test_trends_are_the_same_in_every_window(engine: Engine) -> None:
    """A window that holds the minutes of the trends already reads them once; what is not in the sums yet counts too."""
    attempts = some_calls(7, 700)
    Tracker(engine).record(attempts)
    since = int(NOW) - 600
    with engine.begin() as connection:
        connection.execute(delete(CellRow).where(CellRow.at_s >= since))
        late = AttemptRow.finished_at >= datetime.fromtimestamp(since, UTC)
        connection.execute(update(AttemptRow).where(late).values(rolled_up=0))
    asked = Sources.of(Queries(engine, lambda: NOW), None, lambda: Tracker(engine))
    now_s = NOW - 17.5
    trends = [
        stats(asked, length_s, now_s).total.trends for length_s in (1.0, 42.5, 900.0, 3_600.0, 12_000.0, 172_800.0)
    ]
    assert trends[-1]["latency"].values_before > 60
    assert all(one == trends[-1] for one in trends)


def test_what_was_never_rolled_up_is_before_it_is_deleted(engine: Engine) -> None:
    """A clean-up of a database from before loses no figure."""
    tracker, asked = Tracker(engine), Queries(engine, lambda: NOW)
    tracker.record([builders.attempt(f"c-{n}", finished_at=NOW - 9 * 86_400.0) for n in range(5)])
    with engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET rolled_up = 0"))
        connection.execute(text("DELETE FROM rollups"))
    assert tracker.purge(7 * 86_400.0, now_s=NOW) == 5
    assert in_sum(asked, NOW - 10 * 86_400.0, NOW, HOUR_S)[0]["answered"] == 5
