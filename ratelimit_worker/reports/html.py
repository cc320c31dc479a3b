"""The report as one HTML page without scripts, which loads nothing from other hosts.

This module decides what it shows, and in which order; templates/report.html decides how it looks, and escapes every
value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.plural import many
from ratelimit_worker.policy.advice import advice
from ratelimit_worker.reports import drawn, rows
from ratelimit_worker.reports.chart import Chart
from ratelimit_worker.reports.counsel import facts, knows_money, lead, total_tokens, trend_words
from ratelimit_worker.reports.figures import Figures, Group
from ratelimit_worker.reports.live import LaneState
from ratelimit_worker.reports.money import Money, Spender, dollars, in_total, without_price
from ratelimit_worker.reports.outcomes import snoozed_words
from ratelimit_worker.reports.rows import Rows, named
from ratelimit_worker.reports.spells import lengths_s, spells
from ratelimit_worker.reports.stats import Stats
from ratelimit_worker.reports.words import clock, count, moment, per_min, percent, seconds

if TYPE_CHECKING:
    from jinja2 import Template

MOST_ROWS = 50  #: rows of a table; most attempts, or most money, first
MOST_LANES = 6  #: lanes with charts of their own; the others are only in the table
MOST_ADVICE = 8


class Headline(NamedTuple):
    """One of the few figures at the top."""

    what: str
    value: str
    note: str


class Sheet(NamedTuple):
    """A table of the page."""

    table: Rows
    left_out: int = 0
    texts: bool = False  #: whether its cells are words, not figures


class Share(NamedTuple):
    """A row of a table with a bar in it."""

    name: str
    value: str
    percent: float


class LaneSheet(Struct, frozen=True, kw_only=True):
    """What the report shows of one lane."""

    name: str
    facts: str
    pace: Chart
    latency: Chart | None


def page(stats: Stats) -> str:
    """The report as one HTML page."""
    advised = advice(facts(stats))
    total, money = stats.total, stats.money
    return _template().render(
        since=moment(stats.since_s),
        until=moment(stats.until_s),
        only=_only(stats),
        missing=stats.missing,
        lead=lead(stats, advised),
        headlines=_headlines(stats),
        advised=advised[:MOST_ADVICE],
        money=drawn.money_by_time(stats),
        money_unknown=not knows_money(stats) and total_tokens(stats) > 0,
        spenders=_spenders(money),
        attempts=drawn.attempts(stats),
        latency=drawn.latency(stats, stats.timeline) if len(stats.lanes) != 1 else None,
        lanes=[_lane(stats, group) for group in stats.lanes[:MOST_LANES]],
        groups=[_groups("lane", stats.lanes), _groups("function", stats.functions), _groups("context", stats.contexts)],
        categories=_shares(total.categories, total.attempts),
        by_category=[
            _categories(what, groups, list(total.categories))
            for what, groups in (("lane", stats.lanes), ("function", stats.functions))
        ],
        reuse=drawn.reuse(stats),
        reused=[_sheet(rows.reused(stats.functions, "function")), _sheet(rows.reused(stats.contexts, "context"))],
        retries=[_sheet(rows.retries(stats.lanes, "lane")), _sheet(rows.retries(stats.functions, "function"))],
        spells=_spells(stats),
        modes=_modes(stats.modes),
        figures=_all_figures(stats),
        now=_now(stats.now.lanes if stats.now is not None else ()),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # JSON and CSV do not need it

    made = Environment(
        loader=PackageLoader("ratelimit_worker.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return made.get_template("report.html")


def _only(stats: Stats) -> str:
    words = {"task": "function"}
    told = [f"{words.get(name, name)} {named(value)}" for name, value in stats.only.named() if value is not None]
    return ", ".join(told)


def _headlines(stats: Stats) -> list[Headline]:
    spend, total = stats.money.total, stats.total
    shared = stats.shared_saving_nanousd
    if knows_money(stats):
        spent = Headline("Spent", dollars(spend.cost_nanousd), without_price(spend) or f"{many(total.calls, 'call')}")
        saved = Headline(
            "Saved",
            dollars(shared + spend.cached_saving_nanousd),
            f"{dollars(shared)} by shared answers, {dollars(spend.cached_saving_nanousd)} by cached input",
        )
        lost = Headline(
            "Lost to errors", dollars(spend.wasted_nanousd), f"and {seconds(total.backoff_s)} of waiting to try again"
        )
    else:
        spent = Headline("Used", f"{count(total_tokens(stats))} tokens", "no price is known: MAISD_PRICES")
        saved = Headline("Answered", count(total.answered), f"of {many(total.calls, 'call')}")
        lost = Headline(
            "Lost to errors",
            seconds(total.backoff_s),
            f"of waiting; failed calls: {count(total.failed)}",
        )
    basis = f"p50 {seconds(total.latency.p50_s)}, p95 {seconds(total.latency.p95_s)} in all of it"
    return [spent, saved, lost, Headline("Latency at the end", trend_words(stats), basis)]


def _sheet(table: Rows, *, texts: bool = False) -> Sheet:
    return Sheet(Rows(table.heads, table.rows[:MOST_ROWS]), max(0, len(table.rows) - MOST_ROWS), texts)


def _spenders(money: Money) -> list[Sheet]:
    """Who spends the money; functions and contexts come first, since people can change these."""
    kinds: tuple[tuple[str, Sequence[Spender]], ...] = (
        ("function", money.functions),
        ("context", money.contexts),
        ("tenant", money.tenants),
        ("model", money.models),
        ("lane", money.lanes),
    )
    return [_sheet(rows.spenders(of, what)) for what, of in kinds if money.is_known and of]


def _lane(stats: Stats, group: Group) -> LaneSheet:
    f = group.figures
    spans = [span for span in stats.spans if span.lane == group.name]
    told = [
        f"{many(f.calls, 'call')}, {count(f.refused)} 429s, errors {percent(f.error_rate)}",
        f"waited p95 {seconds(f.waited.p95_s)}",
    ]
    if spans:
        told.append(f"at most {count(max(span.waiting for span in spans))} calls waited")
    return LaneSheet(
        name=named(group.name),
        facts="; ".join(told),
        pace=drawn.pace(stats, group.timeline, spans, spells(group.name, stats.modes, stats.since_s, stats.until_s)),
        latency=drawn.latency(stats, group.timeline),
    )


def _groups(what: str, groups: Sequence[Group]) -> Sheet:
    heads = (what, "calls", "failed", "errors", "429s", "p50", "p95", "waited p95", "trend", "tokens")
    return _sheet(Rows(heads, [(named(group.name), *_cells(group.figures)) for group in groups]))


def _cells(figures: Figures) -> tuple[str, ...]:
    return (
        count(figures.calls),
        count(figures.failed),
        percent(figures.error_rate),
        count(figures.refused),
        seconds(figures.latency.p50_s),
        seconds(figures.latency.p95_s),
        seconds(figures.waited.p95_s),
        str(figures.trend),
        count(figures.input_tokens + figures.output_tokens),
    )


def _shares(categories: Mapping[str, int], attempts: int) -> list[Share]:
    most = max(categories.values(), default=0)
    return [
        Share(name, f"{count(number)} ({percent(number / attempts)})", round(100.0 * number / most, 1))
        for name, number in categories.items()
    ]


def _categories(what: str, groups: Sequence[Group], categories: Sequence[str]) -> Sheet:
    found = [
        (named(group.name), *(count(group.figures.categories.get(category, 0)) for category in categories))
        for group in groups
        if group.figures.categories
    ]
    return _sheet(Rows((what, *categories), found))


def _spells(stats: Stats) -> Sheet:
    """How long each lane was in each mode."""
    found = []
    for group in stats.lanes:
        for mode, length_s in lengths_s(spells(group.name, stats.modes, stats.since_s, stats.until_s)).items():
            share = length_s / (stats.until_s - stats.since_s)
            found.append((named(group.name), str(mode), seconds(length_s), percent(share)))
    return _sheet(Rows(("lane", "mode", "for", "of the time"), found), texts=True)


def _modes(changes: Sequence[ModeChange]) -> Sheet:
    found = [
        (clock(c.at), c.lane, f"{c.from_mode} → {c.to_mode}", c.who, f"{c.cause}: {c.reason}" if c.reason else c.cause)
        for c in reversed(changes)
    ]
    return _sheet(Rows(("when (UTC)", "lane", "mode", "by", "cause"), found), texts=True)


def _now(lanes: Sequence[LaneState]) -> Sheet:
    found = [
        (
            lane.lane,
            str(lane.mode_now),
            per_min(lane.allowed_per_min, "not bound"),
            count(lane.waiting + lane.due_later),
            count(lane.running),
            seconds(lane.oldest_age_s),
            f"{lane.workers} / {lane.slots}",
        )
        for lane in lanes
    ]
    return _sheet(Rows(("lane", "mode", "allowed", "waiting", "running", "oldest", "workers / slots"), found))


def _all_figures(stats: Stats) -> list[tuple[str, str]]:
    total, spend = stats.total, stats.money.total
    return [
        ("calls", count(total.calls)),
        ("answered", count(total.answered)),
        ("failed", count(total.failed)),
        ("attempts", count(total.attempts)),
        ("error rate of attempts", percent(total.error_rate)),
        ("429s", count(total.refused)),
        ("snoozed", snoozed_words(total.snoozed_by)),
        ("retries that helped", percent(total.retry_success_rate)),
        ("lost to backoff", seconds(total.backoff_s)),
        ("latency p50", seconds(total.latency.p50_s)),
        ("latency p95", seconds(total.latency.p95_s)),
        ("waited p50", seconds(total.waited.p50_s)),
        ("waited p95", seconds(total.waited.p95_s)),
        ("tokens in", count(total.input_tokens)),
        ("of it cached", count(total.cached_input_tokens)),
        ("tokens out", count(total.output_tokens)),
        ("of it reasoning", count(total.reasoning_tokens)),
        ("spent", in_total(spend) if knows_money(stats) else "no price known"),
        ("of it without an answer", dollars(spend.wasted_nanousd)),
        ("of it estimated", dollars(spend.estimated_nanousd)),
        ("saved by cached input", dollars(spend.cached_saving_nanousd)),
        ("cache hits", count(stats.cache_hits)),
        ("joined", count(stats.joined)),
        ("stale answers", count(stats.cache_stale)),
        ("without a request", percent(total.reuse.rate)),
        ("shed", stats.counted(stats.shed)),
        ("saved by shared answers", dollars(stats.shared_saving_nanousd)),
    ]
