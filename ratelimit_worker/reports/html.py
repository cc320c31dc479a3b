"""How does the report look in a browser? One page that needs nothing from elsewhere. Every value is escaped."""

from __future__ import annotations

import html
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.reports.figures import Figures, Group, Point
from ratelimit_worker.reports.live import LaneState
from ratelimit_worker.reports.money import Money, Spend, dollars, without_price
from ratelimit_worker.reports.outcomes import snoozed_words
from ratelimit_worker.reports.stats import Stats
from ratelimit_worker.reports.words import clock, count, moment, per_min, percent, seconds

_WIDTH, _HEIGHT = 960, 160
_MOST_ROWS = 200


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


class _Escaping(string.Formatter):
    """str.format that escapes whatever is not `Markup`, so that nobody can forget to."""

    def format_field(self, value: Any, format_spec: str) -> str:
        text = format(value, format_spec)
        return text if isinstance(value, Markup) else html.escape(text)


_formatter = _Escaping()


def markup(template: str, **values: object) -> Markup:
    """HTML from a template, with every value escaped."""
    return Markup(_formatter.vformat(template, (), values))


def joined(parts: Iterable[Markup]) -> Markup:
    """HTML after HTML."""
    return Markup("\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rate limit report, {until}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --good: #2a9d5c; --bad: #d1495b; --wait: #e0a030; }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
.when, .note {{ color: #888; }}
.totals {{ display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; padding: 0; list-style: none; }}
.totals li {{ border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; min-width: 7rem; }}
.totals b {{ display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
svg {{ width: 100%; height: auto; }} .good {{ fill: var(--good); }} .bad {{ fill: var(--bad); }}
.wait {{ fill: var(--wait); }} svg text {{ fill: #888; font-size: 11px; }}
.key i {{ display: inline-block; width: .7em; height: .7em; margin: 0 .3em 0 1em; border-radius: 2px; }}
</style>
</head>
<body>
<h1>Rate limit report</h1>
<p class="when">{since} to {until}</p>
{notes}
<ul class="totals">{totals}</ul>
<h2>Attempts over time</h2>
{timeline}
<h2>Lanes</h2>
{lanes}
<h2>Functions</h2>
{functions}
<h2>Contexts</h2>
{contexts}
<h2>Money</h2>
{money}
<h2>Retries</h2>
{retries}
<h2>Not answered, by category</h2>
{categories}
<h2>Modes</h2>
{modes}
<h2>Lanes at the end of the window</h2>
{now}
</body>
</html>
"""


def page(stats: Stats) -> str:
    """The report as one HTML page."""
    return markup(
        _PAGE,
        since=moment(stats.since_s),
        until=moment(stats.until_s),
        notes=joined(markup('<p class="note">{says}</p>', says=says) for says in stats.missing),
        totals=joined(
            markup("<li>{what}<b>{value}</b></li>", what=what, value=value) for what, value in _totals(stats)
        ),
        timeline=_timeline(stats.timeline, stats.slice_s),
        lanes=_groups("lane", stats.lanes),
        functions=_groups("function", stats.functions),
        contexts=_groups("context", stats.contexts),
        money=_money(stats.money),
        retries=joined(
            _retries(what, groups) for what, groups in (("lane", stats.lanes), ("function", stats.functions))
        ),
        categories=joined(
            _categories(what, groups, list(stats.total.categories))
            for what, groups in (("lane", stats.lanes), ("function", stats.functions))
        )
        if stats.total.categories
        else _table((), ()),
        modes=_modes(stats.modes),
        now=_now(stats.now.lanes if stats.now is not None else ()),
    )


def _totals(stats: Stats) -> list[tuple[str, str]]:
    total = stats.total
    return [
        ("calls", count(total.calls)),
        ("answered", count(total.answered)),
        ("failed", count(total.failed)),
        ("attempts", count(total.attempts)),
        ("error rate", percent(total.error_rate)),
        ("429s", count(total.refused)),
        ("snoozed", snoozed_words(total.snoozed_by)),
        ("retries that helped", percent(total.retry_success_rate)),
        ("lost to backoff", seconds(total.backoff_s)),
        ("latency p50", seconds(total.latency.p50_s)),
        ("latency p95", seconds(total.latency.p95_s)),
        ("latency trend", str(total.trend)),
        ("waited p50", seconds(total.waited.p50_s)),
        ("waited p95", seconds(total.waited.p95_s)),
        ("tokens in", count(total.input_tokens)),
        ("tokens out", count(total.output_tokens)),
        *_spent(stats.money.total),
        *([("saved by shared answers", dollars(saved))] if (saved := stats.shared_saving_nanousd) else []),
        ("cache hits", stats.counted(stats.cache_hits)),
        ("joined", stats.counted(stats.joined)),
        ("stale answers", stats.counted(stats.cache_stale)),
        ("shed", stats.counted(stats.shed)),
    ]


def _spent(spend: Spend) -> list[tuple[str, str]]:
    if not spend.is_known:
        return []
    return [
        ("spent", " ".join((dollars(spend.cost_nanousd), without_price(spend))).strip()),
        ("charged without an answer", dollars(spend.wasted_nanousd)),
        ("saved by cached input", dollars(spend.cached_saving_nanousd)),
    ]


def _money(money: Money) -> Markup:
    """Who spends it; nothing where nobody knows a price."""
    if not money.is_known:
        return markup('<p class="note">No price is known: MAISD_PRICES names prices.</p>')
    kinds = (
        ("lane", money.lanes),
        ("model", money.models),
        ("function", money.functions),
        ("context", money.contexts),
        ("tenant", money.tenants),
    )
    heads = ("spent", "without an answer", "estimated", "saved by cached input", "attempts", "without a price")
    return joined(
        _table(
            (what, *heads),
            [
                (
                    one.name or "(none)",
                    dollars(one.spend.cost_nanousd),
                    dollars(one.spend.wasted_nanousd),
                    dollars(one.spend.estimated_nanousd),
                    dollars(one.spend.cached_saving_nanousd),
                    count(one.spend.attempts),
                    count(one.spend.unpriced_attempts),
                )
                for one in of[:_MOST_ROWS]
            ],
        )
        for what, of in kinds
    )


def _groups(what: str, groups: Sequence[Group]) -> Markup:
    heads = (what, "calls", "failed", "errors", "429s", "retries ok", "p50", "p95", "wait p50", "wait p95", "trend")
    made = _table(
        (*heads, "tokens"), [(group.name or "(none)", *_cells(group.figures)) for group in groups[:_MOST_ROWS]]
    )
    if len(groups) <= _MOST_ROWS:
        return made
    return joined((made, markup('<p class="note">and {more} more</p>', more=len(groups) - _MOST_ROWS)))


def _cells(figures: Figures) -> tuple[str, ...]:
    return (
        count(figures.calls),
        count(figures.failed),
        percent(figures.error_rate),
        count(figures.refused),
        percent(figures.retry_success_rate),
        seconds(figures.latency.p50_s),
        seconds(figures.latency.p95_s),
        seconds(figures.waited.p50_s),
        seconds(figures.waited.p95_s),
        str(figures.trend),
        count(figures.input_tokens + figures.output_tokens),
    )


def _retries(what: str, groups: Sequence[Group]) -> Markup:
    rows = [
        (
            group.name or "(none)",
            count(figures.met_failure),
            count(figures.recovered),
            percent(figures.retry_success_rate),
            count(figures.retried),
            seconds(figures.backoff_s),
        )
        for group in groups[:_MOST_ROWS]
        if (figures := group.figures).met_failure or figures.retried
    ]
    return _table((what, "met failure", "recovered", "success", "retried attempts", "lost to backoff"), rows)


def _categories(what: str, groups: Sequence[Group], categories: Sequence[str]) -> Markup:
    rows = [
        (group.name or "(none)", *(count(group.figures.categories.get(category, 0)) for category in categories))
        for group in groups[:_MOST_ROWS]
        if group.figures.categories
    ]
    return _table((what, *categories), rows)


def _modes(changes: Sequence[ModeChange]) -> Markup:
    rows = [
        (clock(c.at), c.lane, f"{c.from_mode} → {c.to_mode}", c.who, c.cause, c.reason) for c in changes[-_MOST_ROWS:]
    ]
    return _table(("when (UTC)", "lane", "mode", "by", "cause", "reason"), rows)


def _now(lanes: Sequence[LaneState]) -> Markup:
    rows = [
        (
            lane.lane,
            str(lane.mode_now),
            per_min(lane.allowed_per_min, "not bound"),
            count(lane.waiting + lane.due_later),
            count(lane.running),
            seconds(lane.oldest_age_s),
            f"{lane.workers} / {lane.slots}",
        )
        for lane in lanes[:_MOST_ROWS]
    ]
    return _table(("lane", "mode", "allowed", "waiting", "running", "oldest", "workers / slots"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    if not rows:
        return Markup('<p class="note">none</p>')
    head = joined(markup("<th>{text}</th>", text=text) for text in heads)
    body = joined(
        markup("<tr>{cells}</tr>", cells=joined(markup("<td>{text}</td>", text=text) for text in row)) for row in rows
    )
    return markup(
        '<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        head=head,
        body=body,
    )


def _timeline(points: Sequence[Point], slice_s: float) -> Markup:
    most = max((point.attempts for point in points), default=0)
    if not most:
        return Markup('<p class="note">none</p>')
    step = _WIDTH / len(points)
    bars = joined(_bar(point, i * step, step, most) for i, point in enumerate(points))
    return markup(
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="Attempts over time, {most} at most">{bars}'
        '<text x="0" y="{below}">{first}</text><text x="{width}" y="{below}" text-anchor="end">{last}</text></svg>'
        '<p class="key note">{slice} each, {most} at most<i style="background:var(--good)"></i>answered'
        '<i style="background:var(--bad)"></i>failed or retried<i style="background:var(--wait)"></i>'
        "snoozed: {snoozed}</p>",
        width=_WIDTH,
        height=_HEIGHT + 18,
        below=_HEIGHT + 14,
        bars=bars,
        first=clock(points[0].at_s),
        last=clock(points[-1].at_s),
        slice=seconds(slice_s),
        most=count(most),
        snoozed=snoozed_words(sum((Counter(point.snoozed_by) for point in points), Counter())),
    )


def _bar(point: Point, x: float, step: float, most: int) -> Markup:
    parts, top = [], float(_HEIGHT)
    for kind, value in (("good", point.answered), ("bad", point.failed + point.retried), ("wait", point.snoozed)):
        if value:
            height = value / most * (_HEIGHT - 4)
            top -= height
            parts.append(
                markup(
                    '<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>',
                    kind=kind,
                    x=x,
                    y=top,
                    width=max(1.0, step - 1),
                    height=height,
                )
            )
    says = f"{clock(point.at_s)}: {count(point.attempts)} attempts, {percent(point.error_rate)} errors"
    return markup("<g><title>{says}</title>{parts}</g>", says=says, parts=joined(parts))
