"""The figures of a report are those of the log: a simulated day, written, read, and told in every form."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import asdict

from benchmarks import report_day
from benchmarks.report_day import BROKEN, CLAUDE, GEMINI, GPT, KEPT_LONGER_FROM, MIN_S, OUTAGE, WAYS, Day, Shared
from ratelimit_worker.calls import Attempt, Mode, Outcome
from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.contracts.rollup import Only
from ratelimit_worker.policy.advice import Kind, advice
from ratelimit_worker.reports import drawn
from ratelimit_worker.reports.analytics import to_csv, to_json
from ratelimit_worker.reports.counsel import facts, lead
from ratelimit_worker.reports.html import page
from ratelimit_worker.reports.money import dollars
from ratelimit_worker.reports.schema import analytics_schema
from ratelimit_worker.reports.stats import Stats
from ratelimit_worker.reports.words import as_json, count, percent
from tests.builders import ROOT

pytestmark = pytest.mark.long

SINCE_S = 1_799_971_200.0  # midnight
BUSY = 0.35


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('day')}/tracking.db"


@pytest.fixture(scope="module")
def day(url: str) -> Day:
    """What was simulated, and is in the database."""
    made = report_day.simulate(SINCE_S, busy=BUSY)
    report_day.write(made, url)
    return made


@pytest.fixture(scope="module")
def found(day: Day, url: str) -> Stats:
    return report_day.figures(day, url)


def cost(log: list[Attempt], of: Callable[[Attempt], bool] = lambda one: True) -> int:
    return sum(one.cost_nanousd or 0 for one in log if of(one))


def cost_by(log: list[Attempt], key: Callable[[Attempt], Any]) -> Counter[Any]:
    """Cost by group, of those that cost something or nothing that is known."""
    found = Counter[Any]()
    for one in log:
        found[key(one)] += one.cost_nanousd or 0
    return found


def test_totals_are_those_of_the_log(day: Day, found: Stats) -> None:
    log, total = day.attempts, found.total
    outcomes = Counter(one.outcome for one in log)
    assert total.attempts == len(log) > 3_000
    assert (total.answered, total.failed) == (outcomes[Outcome.ANSWERED], outcomes[Outcome.FAILED])
    assert (total.retried, total.snoozed) == (outcomes[Outcome.RETRIED], outcomes[Outcome.SNOOZED])
    assert total.refused == sum(one.status == 429 for one in log)
    assert dict(total.categories) == Counter(one.category.value for one in log if one.category is not None)
    assert total.input_tokens == sum(one.input_tokens or 0 for one in log)
    assert total.output_tokens == sum(one.output_tokens or 0 for one in log)
    latencies = sorted(one.latency_s for one in log if one.outcome is Outcome.ANSWERED)
    assert total.latency.p50_s == pytest.approx(latencies[len(latencies) // 2], rel=0.02)
    assert total.latency.p95_s == pytest.approx(latencies[int(len(latencies) * 0.95)], rel=0.02)


def test_money_is_that_of_the_log(day: Day, found: Stats) -> None:
    log, spend = day.attempts, found.money.total
    saved = sum(one.cached_saving_nanousd or 0 for one in log)
    assert spend.cost_nanousd == cost(log)
    assert spend.wasted_nanousd == cost(log, lambda one: one.outcome is not Outcome.ANSWERED) > 0
    assert spend.cached_saving_nanousd == saved > 0
    for spenders, key in (
        (found.money.tenants, "tenant"),
        (found.money.functions, "task"),
        (found.money.lanes, "lane"),
    ):
        assert {one.name: one.spend.cost_nanousd for one in spenders} == cost_by(log, attrgetter(key))
    hours = Counter[float]()
    for point in found.timeline:
        hours[point.at_s // 3_600] += point.cost_nanousd
    assert +hours == cost_by(log, lambda one: one.finished_at // 3_600)


def test_charts_draw_the_log(day: Day, found: Stats) -> None:
    """Heights of bars, read off the axis, come to what was spent; what was allowed is what was sampled."""
    money = drawn.money_by_time(found)
    assert money is not None
    top_usd = float(money.y[-1].label.removeprefix("$"))
    spent = sum(bar.height for bar in money.bars if bar.kind in ("answered", "failed")) / 100.0 * top_usd
    assert spent == pytest.approx(cost(day.attempts) * 1e-9, rel=0.001)
    claude = next(group for group in found.lanes if group.name == CLAUDE)
    spans = [span for span in found.spans if span.lane == CLAUDE]
    outage = [span for span in spans if SINCE_S + OUTAGE[0] * MIN_S <= span.at_s < SINCE_S + 600 * MIN_S]
    assert {span.mode for span in outage} == {Mode.EMERGENCY}
    mean = sum(one.allowed_per_min or 0.0 for one in day.samples if one.lane == CLAUDE) / 1_440
    assert sum((span.allowed_per_min or 0.0) * span.minutes for span in spans) / 1_440 == pytest.approx(mean)
    assert max(span.waiting for span in spans) == max(one.waiting for one in day.samples if one.lane == CLAUDE)
    assert sum(point.attempts for point in claude.timeline) == sum(one.lane == CLAUDE for one in day.attempts)


def of_log(log: list[Shared]) -> dict[str, Any]:
    """What `ReuseFigures` should say of these events."""
    calls, nanousd = Counter(one.what for one in log), Counter[str]()
    for one in log:
        nanousd[one.what] += one.nanousd
    spared = sum(calls[way] for way in WAYS)
    asked = spared + calls[Reuse.MISSES]
    return {
        **{what.value: calls[what] for what in (*WAYS, Reuse.MISSES, Reuse.EVICTED)},
        "rate": spared / asked if asked else None,
        "refreshed": 0,
        "bytes": sum(one.bytes for one in log if one.what in WAYS),
        "evicted_bytes": sum(one.bytes for one in log if one.what is Reuse.EVICTED),
        "input_tokens": sum(one.input_tokens for one in log),
        "output_tokens": sum(one.output_tokens for one in log),
        **{f"{way}_nanousd": nanousd[way] for way in WAYS},
        "saved_nanousd": nanousd.total(),
    }


def test_reuse_is_that_of_the_log(day: Day, found: Stats) -> None:
    """Every sum: in total, by function and context, and over time, where the change of the cache shows."""
    log = day.shared
    assert asdict(found.total.reuse) == of_log(log)
    assert min(of_log(log)[name] for name in (*WAYS, Reuse.MISSES, Reuse.EVICTED)) > 10
    for groups, place in ((found.functions, "task"), (found.contexts, "context")):
        told = {group.name: asdict(group.figures.reuse) for group in groups if group.figures.reuse.rate is not None}
        assert told == {
            name: of_log([one for one in log if getattr(one.whose, place) == name])
            for name in {getattr(one.whose, place) for one in log}
        }
    for point in found.timeline:
        then = [one for one in log if point.at_s <= one.at_s < point.at_s + found.slice_s]
        assert (asdict(point.reuse) if point.reuse else None) == (of_log(then) if then else None)
    change_s = SINCE_S + KEPT_LONGER_FROM * MIN_S
    before, after = (of_log([one for one in log if (one.at_s < change_s) is early])["rate"] for early in (True, False))
    assert after > 2 * before


def test_the_page_shows_reuse_as_it_was(day: Day, found: Stats) -> None:
    """Each figure of the table by function and context, and heights of bars, read off the axis."""
    shown = html.unescape(page(found))
    for place in ("task", "context"):
        for name in {getattr(one.whose, place) for one in day.shared}:
            of = of_log([one for one in day.shared if getattr(one.whose, place) == name])
            cells = [
                *(count(of[what]) for what in (Reuse.HITS, Reuse.JOINED, Reuse.STALE, Reuse.MISSES)),
                percent(of["rate"]),
                count(of["bytes"]),
                count(of["input_tokens"] + of["output_tokens"]),
                dollars(of["saved_nanousd"]),
                count(of["evicted"]),
            ]
            assert f'<th scope="row">{name}</th>{"".join(f"<td>{one}</td>" for one in cells)}' in shown
    chart = drawn.reuse(found)
    assert chart is not None
    top = float(chart.y[-1].label.replace(",", ""))
    for what in (*WAYS, Reuse.MISSES):
        calls = sum(bar.height for bar in chart.bars if bar.kind == what) / 100.0 * top
        assert calls == pytest.approx(sum(one.what is what for one in day.shared), rel=0.001)


def test_the_opening_and_the_advice_say_what_happened(day: Day, found: Stats) -> None:
    advised = advice(facts(found))
    said = " ".join(lead(found, advised))
    answered, failed = count(found.total.answered), count(found.total.failed)
    assert said.startswith(f"In 24.0 h {answered} calls were answered and {failed} failed")
    saved = dollars(sum(one.nanousd for one in day.shared))
    assert f"of all). They cost {dollars(cost(day.attempts))}; saved: {saved} by" in said, "those that were sent"
    spared = sum(one.what in WAYS for one in day.shared)
    assert f"{count(spared)} more got the answer of another call, without a request." in said
    assert f"Lane {CLAUDE} was stopped, or nearly so, for 35.0 min, first at 09:32 UTC." in said
    assert f"Lane {GPT} answered slowly from 13:00 to 18:00 UTC" in said
    told = {one.kind: one for one in advised}
    assert told[Kind.FIX_FUNCTION].subject == BROKEN
    assert told[Kind.RAISE_WORKERS].subject == GPT
    assert told[Kind.LIMIT_TENANT].subject == "acme"
    share = cost(day.attempts, lambda one: one.tenant == "acme") / cost(day.attempts)
    assert f"It took {share * 100:.0f} % of all" in told[Kind.LIMIT_TENANT].why


def test_every_form_tells_the_same(day: Day, found: Stats) -> None:
    report, shown = json.loads(to_json(found)), html.unescape(page(found))
    assert report["total"]["attempts"] == len(day.attempts)
    assert len(to_csv(found).splitlines()) > 24
    figures = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown))
    assert figures["calls"] == count(found.total.calls)
    assert figures["429s"] == count(sum(one.status == 429 for one in day.attempts))
    assert figures["spent"] == dollars(cost(day.attempts))
    assert f"<b>{dollars(cost(day.attempts))}</b>" in shown
    assert all(name in shown for name in (GPT, CLAUDE, GEMINI, "acme", "globex", "support chat"))


@pytest.mark.parametrize(
    ("only", "takes"),
    [
        (Only(lane=GPT), lambda one: one.lane == GPT),
        (Only(task=BROKEN), lambda one: one.task == BROKEN),
        (Only(context="mail", tenant="globex"), lambda one: one.context == "mail" and one.tenant == "globex"),
        (Only(tenant="nobody"), lambda one: False),
    ],
)
def test_some_of_it_alone(day: Day, url: str, only: Only, takes: Callable[[Attempt], bool]) -> None:
    some = report_day.figures(day, url, only)
    assert some.total.attempts == sum(map(takes, day.attempts))
    assert some.money.total.cost_nanousd == cost(day.attempts, takes)
    assert {span.lane for span in some.spans} <= ({only.lane} if only.lane else {GPT, CLAUDE, GEMINI})
    assert page(some)


def test_the_window_begins_with_the_data(day: Day, url: str) -> None:
    first_s = min(one.finished_at for one in day.attempts if one.task == BROKEN)
    assert report_day.figures(day, url, Only(task=BROKEN)).since_s == pytest.approx(first_s // 60 * 60)


def test_the_schema_is_the_published_one(found: Stats) -> None:
    """`make report-schema` writes it; whoever reads the JSON may rely on it."""
    published = json.loads((ROOT / "docs" / "analytics.schema.json").read_text())
    assert published == json.loads(as_json(analytics_schema())), "the fields have changed: run `make report-schema`"
    jsonschema.Draft202012Validator.check_schema(published)
    report = json.loads(to_json(found))
    jsonschema.validate(report, published)
    wrongs: list[dict[str, Any]] = [
        {"kind": "other"},
        {"schema": 1},
        {"total": {}},
        {"lanes": [{"name": 1}]},
        {"until_s": "now"},
    ]
    for wrong in wrongs:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**report, **wrong}, published)


def test_the_sample_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make report-sample`, with a day of little traffic."""
    little = report_day.simulate(SINCE_S, busy=0.02)
    monkeypatch.setattr(report_day, "simulate", lambda *_: little)
    monkeypatch.setattr("sys.argv", ["report_day", "-o", str(tmp_path / "sample.html")])
    report_day.main()
    assert "What was asked, and what it cost" in (tmp_path / "sample.html").read_text()
