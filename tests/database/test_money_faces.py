"""One record, every face: what a payer reads of a window is the same wherever it is read, and however old it is."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parsed
from sqlalchemy import Engine, text

from ratelimit_worker.calls import Attempt, Category, Outcome, PriceSource
from ratelimit_worker.cli.figures import Attempts
from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.contracts.rollup import HOUR_S, Cell, CellKey, NamedSums, Series
from ratelimit_worker.flow.lane.budget import spent_before
from ratelimit_worker.flower.money import Ledger, rows
from ratelimit_worker.reports import html
from ratelimit_worker.reports.analytics import as_report, to_csv, to_function_csv
from ratelimit_worker.reports.calls import timeline
from ratelimit_worker.reports.dashboard import Period, dashboard
from ratelimit_worker.reports.explain import Explanation, Where, explanation_text
from ratelimit_worker.reports.exporter import Asks, Exporter
from ratelimit_worker.reports.money import Spend, amount, in_total, spent_of_call
from ratelimit_worker.reports.stats import Sources, Stats, fitted, stats
from ratelimit_worker.reports.tables import stats_tables
from ratelimit_worker.stores.answers import CacheSize
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import attempt
from tests.unit.reports.test_reports_doctor import CLUSTER

NOW = 1_800_000_000.0 + 12 * 3_600  # on the hour
DAY_S = 86_400.0
COST, WASTED, ESTIMATED, CACHED = 1_000_000_000 + 40_000_000 + 7_000_000, 47_000_000, 47_000_000, 250_000_000
SHARED = {Reuse.HITS: 3_000_000_000, Reuse.JOINED: 500_000_000, Reuse.STALE: 20_000_000}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


def record(at_s: float, mark: str = "") -> list[Attempt]:
    """An answer with cached input; a time-out that was charged and an answer whose first worker died; a model without a
    price; an error that used nothing."""
    of: dict[str, Any] = {"finished_at": at_s, "lane": "gpt", "tenant": "acme", "context": "code", "task": "t"}
    priced = {**of, "model": "gpt", "input_tokens": 1_000, "output_tokens": 100, "price_source": PriceSource.LIST}
    lost = {**priced, "price_source": PriceSource.ESTIMATED, "category": Category.TIMEOUT}
    kinds: dict[str, Any] = {"cached_input_tokens": 700, "reasoning_tokens": 30}
    return [
        attempt(
            f"{mark}cached", **priced, **kinds, cost_nanousd=1_000_000_000 - 7_000_000, cached_saving_nanousd=CACHED
        ),
        attempt(f"{mark}slow", 1, Outcome.RETRIED, **lost, cost_nanousd=40_000_000),
        attempt(f"{mark}slow", 2, **priced, cost_nanousd=7_000_000, lost_attempts=1, lost_nanousd=7_000_000),
        attempt(
            f"{mark}home", **{**of, "lane": "home", "tenant": "zeta"}, model="mine", input_tokens=5, output_tokens=5
        ),
        attempt(f"{mark}bad", outcome=Outcome.FAILED, **of, category=Category.INVALID_REQUEST),
    ]


def shared(at_s: float) -> NamedSums:
    """Four calls of that minute that got answers of others, and what these had cost."""
    sums = {"hits": 2, "joined": 1, "stale": 1, "misses": 4, **{f"{way}_nanousd": paid for way, paid in SHARED.items()}}
    key = CellKey(int(at_s // 60 * 60), Series("gpt", "t", "code", "acme", ""))
    return NamedSums(f"reuse:{at_s}", {key: Cell(reuse=sums)})


def sources(engine: Engine) -> Sources:
    tracker = Tracker(engine)
    return Sources.of(Queries(engine, lambda: NOW), None, lambda: tracker)


@pytest.fixture
def kept(engine: Engine) -> Sources:
    """The record of ten minutes ago."""
    tracker = Tracker(engine)
    tracker.record(record(NOW - 600))
    tracker.add_sums(shared(NOW - 600))
    return sources(engine)


def parts(spend: Spend) -> tuple[int, int, int, int]:
    return spend.cost_nanousd, spend.wasted_nanousd, spend.estimated_nanousd, spend.cached_saving_nanousd


WANTED = (COST, WASTED, ESTIMATED, CACHED)


def test_totals_and_every_way_to_cut_them(kept: Sources) -> None:
    """To the billionth, by lane, model, function, context, tenant and time; what has no price is named in each."""
    found = stats(kept, 3_600.0, NOW)
    assert parts(found.money.total) == WANTED
    assert found.money.total.unpriced_models == ("mine",)
    for kind in ("lane", "model", "task", "context", "tenant"):
        assert parts(sum((one.spend for one in found.money.by(kind)), Spend())) == WANTED
    points = found.timeline
    assert sum(one.cost_nanousd for one in points) == COST
    assert sum(one.wasted_nanousd for one in points) == WASTED
    assert sum(one.estimated_nanousd for one in points) == ESTIMATED
    assert sum(one.cached_saving_nanousd for one in points) == CACHED
    assert sum(one.unpriced_attempts for one in points) == 1
    assert found.shared_saving_nanousd == found.total.reuse.saved_nanousd == sum(SHARED.values())
    assert {one.name: amount(one.spend) for one in found.money.tenants} == {"acme": "$1.05", "zeta": "no price"}
    assert amount(found.money.total) == "$1.05 + unpriced"


def test_the_terminal_and_the_report_say_the_same(kept: Sources) -> None:
    """And each says that a model has no price, wherever it gives a total."""
    found = stats(kept, 3_600.0, NOW)
    told, shown = stats_tables(found), html.page(found)
    spent, wasted, saved = "$1.05", "$0.0470", "$0.25"
    assert "tokens    3,005 in (700 cached), 305 out (30 of reasoning)" in told
    assert f"spent     {spent}, {wasted} of it for attempts that gave no answer, {wasted} of it estimated" in told
    assert f"{saved} saved by cached input, + 1 model without a price" in told
    assert "saved     $3.00 by cache hits, $0.50 by joining, $0.0200 by stale answers" in told
    assert f"<b>{spent}</b><small>+ 1 model without a price</small>" in shown
    assert "<b>$3.77</b><small>$3.52 by shared answers, $0.25 by cached input</small>" in shown
    assert f"They cost {spent} (+ 1 model without a price); saved: $3.52" in shown
    figures = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown))
    assert figures["spent"] == f"{spent} + 1 model without a price"
    assert (figures["tokens in"], figures["of it cached"]) == ("3,005", "700")
    assert (figures["of it without an answer"], figures["saved by cached input"]) == (wasted, saved)
    reused = ("2", "1", "1", "4", "50.0 %", "0", "0", "$3.52", "0")
    assert "".join(f"<td>{one}</td>" for one in reused) in shown
    assert " ".join(("t", *reused)) in {" ".join(line.split()) for line in told.splitlines()}
    assert "4 more got the answer of another call, without a request." in shown


def test_json_and_csv_say_the_same(kept: Sources) -> None:
    """In billionths in JSON, in dollars in CSV; a row with attempts that have no price says how many."""
    found = stats(kept, 3_600.0, NOW)
    total = as_report(found)["money"]["total"]
    assert (total["cost_nanousd"], total["wasted_nanousd"], total["unpriced_models"]) == (COST, WASTED, ("mine",))
    for text_of in (to_csv(found), to_csv(found, 60.0), to_function_csv(found)):
        told = list(csv.DictReader(io.StringIO(text_of)))
        columns = ("cost_usd", "wasted_usd", "estimated_usd", "cached_saving_usd")
        sums = tuple(round(sum(float(row[name]) for row in told) * 1e9) for name in columns)
        assert sums == WANTED
        assert sum(int(row["unpriced_attempts"]) for row in told) == 1
        assert {way: sum(int(row[f"cache_{way}_nanousd"]) for row in told) for way in SHARED} == SHARED


def test_flower_says_the_same(kept: Sources) -> None:
    """The table of lanes with its total, and the page of figures."""
    ledger = Ledger(kept.queries.cells, lambda: NOW)
    assert parts(sum((one.spend for one in ledger.by_lane().values()), Spend())) == WANTED
    told = {row.name: (row.spent, row.wasted, row.cached, row.shared) for row in rows(ledger.by_lane(), ())}
    assert told == {
        "gpt": ("$1.05", "$0.0470", "$0.25", "$3.52"),
        "home": ("no price", "$0.00", "$0.00", "$0.00"),
        "(all lanes)": ("$1.05 + 1 model without a price", "$0.0470", "$0.25", "$3.52"),
    }
    page = dashboard(kept, Period(None, "1h"), NOW)
    assert parts(page.spend) == WANTED
    assert in_total(page.spend) == "$1.05 + 1 model without a price"
    for kind in ("task", "context", "tenant", "model"):
        assert parts(sum((row.spend for row in page.tables[kind]), Spend())) == WANTED
    assert parts(dashboard(kept, Period("gpt", "24h"), NOW).spend) == WANTED


def test_metrics_say_the_same(kept: Sources) -> None:
    """Lanes and tasks, with what was lost with workers."""
    now_s = [NOW - 3_600.0]
    asks = Asks(
        state=lambda: CLUSTER,
        cells=kept.queries.cells,
        outbox_lag=lambda: 0,
        cache=lambda: CacheSize(0, 0),
        clock_s=lambda: now_s[0],
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exporter(asks))
    now_s[0] = NOW
    sums: dict[str, float] = {}
    for family in parsed(generate_latest(registry).decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("ratelimit_worker_").removesuffix("_total")
            sums[name] = sums.get(name, 0.0) + sample.value
    for word in ("", "task_"):
        told = [sums[f"{word}{name}"] for name in ("spent_usd", "wasted_usd", "saved_by_cached_input_usd")]
        assert told == pytest.approx([COST * 1e-9, WASTED * 1e-9, CACHED * 1e-9])
        assert sums[f"{word}saved_by_answers_usd"] == pytest.approx(sum(SHARED.values()) * 1e-9)
        assert sums[f"{word}unpriced"] == 1


def test_a_run_a_budget_and_the_calls_themselves_say_the_same(kept: Sources, database_url: str, engine: Engine) -> None:
    """The summary of `run` reads rows, a budget that begins reads sums, `explain` one call; they add up to one bill."""
    attempts = Attempts(database_url, "code", NOW - 3_600)
    made = attempts.now(exactly=True)
    attempts.close()
    assert made is not None
    assert parts(made.spend) == WANTED
    assert made.spend.unpriced_models == ("mine",)
    for name in ("all", "lane:gpt", "tenant:acme", "context:code"):
        spent = spent_before(kept.queries, name, "", NOW)
        assert (spent.day_nanousd, spent.month_nanousd) == (COST, COST)
    assert spent_before(kept.queries, "tenant:zeta", "", NOW).day_nanousd == 0
    tracker = Tracker(engine)
    calls = {one: tracker.attempts_of(one) for one in ("cached", "slow", "home", "bad")}
    assert parts(sum((spent_of_call(of) for of in calls.values()), Spend())) == WANTED
    slow = Explanation(call_id="slow", where=Where.ANSWERED, standings=(), attempts=tuple(calls["slow"]))
    said = explanation_text(slow)
    assert "in all it cost $0.0540, $0.0470 of it for attempts that gave no answer, $0.0470 of it estimated" in said
    assert "$0.0070 (by the published list)" in timeline(slow, NOW)[-1].words
    cached = Explanation(call_id="cached", where=Where.ANSWERED, standings=(), attempts=tuple(calls["cached"]))
    assert "$0.99 (by the published list), $0.25 saved by cached input" in explanation_text(cached)
    assert "in all" not in explanation_text(cached)


def test_money_stays_when_rows_and_minutes_are_gone(engine: Engine) -> None:
    """Any window of two years, in every face; rows are kept for a week here, minutes for a month."""
    tracker, ages = Tracker(engine), {"hour": 0.02, "week": 6, "weeks": 20, "months": 100, "years": 700}
    for name, days in ages.items():
        tracker.record(record(NOW - days * DAY_S, f"{name}-"))
        tracker.add_sums(shared(NOW - days * DAY_S))
    tracker.purge(7 * DAY_S, now_s=NOW)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM attempts")) == 10
        spans = connection.execute(text("SELECT span_s, count(DISTINCT at_s) FROM rollups GROUP BY span_s"))
        assert dict(map(tuple, spans)) == {60: 3, 3_600: 5}
    kept = sources(engine)
    for days, held in ((0.05, 1), (7, 2), (25, 3), (59, 3), (101, 4), (729, 5)):
        found = stats(kept, days * DAY_S, NOW)
        assert parts(found.money.total) == tuple(held * one for one in WANTED)
        assert found.shared_saving_nanousd == held * sum(SHARED.values())
        assert found.money.total.unpriced_models == ("mine",)
        assert sum(one.cost_nanousd for one in found.timeline) == held * COST
        assert len(found.timeline) < 1_500
        told = csv.DictReader(io.StringIO(to_csv(found)))
        assert round(sum(float(row["cost_usd"]) for row in told) * 1e9) == held * COST
        assert f"<dt>spent</dt><dd>{in_total(found.money.total)}</dd>" in html.page(found)
        bars = stats_tables(found).split(" each\n")[1].splitlines()[0]
        assert sum(bar != "·" for bar in bars) == min(held, 4)  # a bar of two years is ten days wide
        assert len(bars) <= 80
    assert fitted(kept, 730 * DAY_S, NOW) == pytest.approx(700 * DAY_S, abs=HOUR_S)
    assert parts(dashboard(kept, Period(None, "7d"), NOW).spend) == tuple(2 * one for one in WANTED)


def only_reuse(engine: Engine) -> Stats:
    tracker = Tracker(engine)
    tracker.record([])
    tracker.add_sums(shared(NOW - 600))
    return stats(sources(engine), 3_600.0, NOW)


def test_an_hour_in_which_every_call_was_answered_by_others(engine: Engine) -> None:
    """No request, no tokens: what was saved is said, and nobody is told to look for a price."""
    found = only_reuse(engine)
    shown = html.page(found)
    assert "no request was sent: 4 calls got the answer of another call. They cost $0.00; saved: $3.52" in shown
    assert "Nothing was asked" not in shown
    assert "MAISD_PRICES" not in shown
    assert "saved     $3.00 by cache hits" in stats_tables(found)
    told = rows(Ledger(sources(engine).queries.cells, lambda: NOW).by_lane(), ())
    assert [(row.name, row.spent, row.shared) for row in told] == [("gpt", "$0.00", "$3.52")]


def test_a_trend_without_enough_data_gives_its_numbers(kept: Sources) -> None:
    """How many answers there are, and how many it needs; in the terminal, in the report and in JSON."""
    found = stats(kept, 3_600.0, NOW)
    told = "3 answers in 32 minutes and 0 before, where 12 and 60 are needed"
    assert f"not enough data\ntrend     {told}\n" in stats_tables(found)
    assert f"There is not enough data to tell whether answers get slower: {told}." in html.page(found)
    latency = as_report(found)["total"]["trends"]["latency"]
    assert (latency["trend"], latency["values_latest"], latency["values_before"]) == ("not enough data", 3, 0)
