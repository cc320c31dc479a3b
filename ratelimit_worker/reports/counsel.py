"""What do the figures say, in sentences? The opening of a report, and the facts from which advice is made. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane_sample import LaneSpan
from ratelimit_worker.plural import many
from ratelimit_worker.policy.advice import (
    Advice,
    Facts,
    FunctionFacts,
    LaneFacts,
    LaneMinutes,
    SpenderFacts,
)
from ratelimit_worker.policy.findings import ERRORS, of_latency
from ratelimit_worker.policy.trend import NOTHING, Finding, Trend
from ratelimit_worker.reports.figures import Group
from ratelimit_worker.reports.money import dollars, without_price
from ratelimit_worker.reports.reuse import SPARED
from ratelimit_worker.reports.spells import spells
from ratelimit_worker.reports.stats import MINUTE_S, Stats
from ratelimit_worker.reports.trends import too_few
from ratelimit_worker.reports.words import count, moment, percent, seconds

_STOPPED = (Mode.EMERGENCY, Mode.HALT)
#: Answers are slow if the median is so many times the usual one, in so many slices in a row with so many answers each.
_SLOW_TIMES, _SLOW_SLICES, _SLOW_ANSWERS = 1.5, 3, 20
_SLOWER = {Trend.DEGRADING: "slower", Trend.IMPROVING: "faster"}


def facts(stats: Stats) -> Facts:
    """The facts from which advice is made."""
    spans: dict[str, list[LaneSpan]] = defaultdict(list)
    for span in stats.spans:
        spans[span.lane].append(span)
    total, spend = stats.total, stats.money.total
    return Facts(
        lanes=[_lane(stats, group, spans[group.name]) for group in stats.lanes],
        functions=[
            FunctionFacts(
                name=group.name,
                calls=group.figures.calls,
                answered=group.figures.answered,
                categories=tuple(group.figures.categories.items()),
                hits=group.figures.reuse.hits,
                misses=group.figures.reuse.misses,
                evicted=group.figures.reuse.evicted,
            )
            for group in stats.functions
        ],
        tenants=_tenants(stats),
        wasted_share=spend.wasted_nanousd / spend.cost_nanousd if spend.cost_nanousd else 0.0,
        wasted=dollars(spend.wasted_nanousd),
        category=next(iter(total.categories), ""),
    )


def _lane(stats: Stats, group: Group, spans: Sequence[LaneSpan]) -> LaneFacts:
    used = {point.at_s // stats.slice_s: point.attempts for point in group.timeline}
    return LaneFacts(
        name=group.name,
        attempts=group.figures.attempts,
        refused=group.figures.refused,
        slices=[
            LaneMinutes(
                minutes=span.minutes,
                used_per_min=used.get(span.at_s // stats.slice_s, 0) * MINUTE_S / stats.slice_s,
                allowed_per_min=span.allowed_per_min,
                waited=span.waiting_least > 0,
                normal=span.mode is Mode.NORMAL,
            )
            for span in spans
            if span.at_s >= stats.since_s and span.at_s + stats.slice_s <= stats.until_s  # only whole slices
        ],
    )


def _tenants(stats: Stats) -> list[SpenderFacts]:
    cost = stats.money.total.cost_nanousd
    if cost:
        return [
            SpenderFacts(
                name=one.name, share=one.spend.cost_nanousd / cost, spent=f"{dollars(one.spend.cost_nanousd)} was spent"
            )
            for one in stats.money.tenants
        ]
    return [
        SpenderFacts(
            name=one.name,
            share=one.figures.attempts / max(1, stats.total.attempts),
            spent=f"{many(one.figures.attempts, 'attempt was', 'attempts were')} made",
        )
        for one in stats.tenants
    ]


def lead(stats: Stats, advised: Sequence[Advice]) -> list[str]:
    """The opening of a report: sentences for readers who have never seen a lane."""
    total = stats.total
    spared = sum(getattr(total.reuse, name) for name in SPARED)
    if not total.attempts:
        if not spared:
            return [f"Nothing was asked between {moment(stats.since_s)} and {moment(stats.until_s)}."]
        over = seconds(stats.until_s - stats.since_s)
        return [
            f"In {over} no request was sent: {many(spared, 'call')} got the answer of another call.",
            *_money(stats),
        ]
    failed = total.failed / total.calls if total.calls else 0.0
    said = [
        f"In {seconds(stats.until_s - stats.since_s)} {many(total.answered, 'call was', 'calls were')} answered and "
        f"{count(total.failed)} failed ({percent(failed)} of all)."
    ]
    shared = [f"{count(spared)} more got the answer of another call, without a request."] if spared else []
    return [
        *said,
        *_money(stats),  # of the calls that were answered or failed
        *shared,
        lost_sentence(stats),
        *_away(stats),
        *_slow(stats),
        *_trends(stats),
        _next(advised),
    ]


def _away(stats: Stats) -> list[str]:
    """The lane that was longest in EMERGENCY or HALT."""
    found = []
    for group in stats.lanes:
        stopped = [one for one in spells(group.name, stats.modes, stats.since_s, stats.until_s) if one.mode in _STOPPED]
        length_s = sum(one.until_s - one.since_s for one in stopped)
        if length_s >= MINUTE_S:
            found.append((length_s, group.name, stopped[0].since_s))
    if not found:
        return []
    length_s, lane, since_s = max(found)
    return [f"Lane {lane} was stopped, or nearly so, for {seconds(length_s)}, first at {moment(since_s)[11:16]} UTC."]


def _slow(stats: Stats) -> list[str]:
    """The longest time in which answers of a lane took much longer than they usually do there."""
    found = [(end_s - begin_s, begin_s, end_s, lane, times) for lane, begin_s, end_s, times in _slow_times(stats)]
    if not found:
        return []
    _, begin_s, end_s, lane, times = max(found)
    when = f"from {moment(begin_s)[11:16]} to {moment(end_s)[11:16]} UTC"
    return [f"Lane {lane} answered slowly {when}: its answers took {times:.1f} times as long as usual."]


def _slow_times(stats: Stats) -> Iterator[tuple[str, float, float, float]]:
    """(lane, from, until, ratio of its latency to its usual median), times in seconds since the epoch."""
    for group in stats.lanes:
        told = [one for one in group.timeline if one.answered >= _SLOW_ANSWERS and one.latency.p50_s]
        if len(told) < 3 * _SLOW_SLICES:
            continue
        usual_s = median(one.latency.p50_s or 0.0 for one in told)
        for slow, run in groupby(told, key=lambda one: (one.latency.p50_s or 0.0) >= _SLOW_TIMES * usual_s):
            some = list(run)
            if slow and len(some) >= _SLOW_SLICES:
                times = median(one.latency.p50_s or 0.0 for one in some) / usual_s
                yield group.name, some[0].at_s, min(some[-1].at_s + stats.slice_s, stats.until_s), times


def _money(stats: Stats) -> list[str]:
    spend = stats.money.total
    if not knows_money(stats):
        tokens = total_tokens(stats)
        return [f"They used {many(tokens, 'token')}, whose price is not known."] if tokens else []
    also = without_price(spend)
    said = f"They cost {dollars(spend.cost_nanousd)}{f' ({also})' if also else ''}"
    ways = (
        (stats.shared_saving_nanousd, "by answers that were used again"),
        (spend.cached_saving_nanousd, "by input that the provider had in its cache"),
    )
    saved = " and ".join(f"{dollars(amount)} {how}" for amount, how in ways if amount)
    return [f"{said}; saved: {saved}." if saved else f"{said}."]


def knows_money(stats: Stats) -> bool:
    """Whether there is anything to say about money: a cost, a saving, or models without a price."""
    return stats.money.is_known or stats.shared_saving_nanousd > 0


def lost_sentence(stats: Stats) -> str:
    """A sentence: what errors cost in money and time."""
    spend, total = stats.money.total, stats.total
    time_lost = f"{seconds(total.backoff_s)} of waiting after failed attempts" if total.backoff_s else ""
    money_lost = dollars(spend.wasted_nanousd) if spend.wasted_nanousd else ""
    lost = " and ".join(part for part in (money_lost, time_lost) if part)
    return f"Errors cost {lost}." if lost else "Errors cost nothing."


def total_tokens(stats: Stats) -> int:
    """Input and output tokens together."""
    return stats.total.input_tokens + stats.total.output_tokens


def trend_words(stats: Stats) -> str:
    """The trend of latency in a few words, such as "slower by 80 %"."""
    found = of_latency(stats.total.trends)
    if found.trend not in _SLOWER:
        return str(found.trend)
    change = abs((found.ratio or 1.0) - 1.0)
    return f"{_SLOWER[found.trend]} by {change * 100:.0f} %"


def _trends(stats: Stats) -> list[str]:
    found = of_latency(stats.total.trends)
    errors = stats.total.trends.get(ERRORS, NOTHING)
    said = []
    if found.trend is Trend.UNKNOWN:
        said.append(f"There is not enough data to tell whether answers get slower: {too_few(found)}.")
    elif found.trend is Trend.STABLE:
        said.append("At the end answers took as long as before.")
    else:
        said.append(f"At the end answers were {trend_words(stats)} {_basis(found)}.")
    if errors.trend in (Trend.DEGRADING, Trend.IMPROVING):
        way = "more" if errors.trend is Trend.DEGRADING else "fewer"
        said.append(f"There were {way} errors: {percent(errors.latest)} after {percent(errors.before)}.")
    return said


def _basis(found: Finding) -> str:
    return f"in the latest {found.minutes} minutes than before" if found.minutes else "than before"


def _next(advised: Sequence[Advice]) -> str:
    if not advised:
        return "By what the record says there is nothing that has to be done."
    more = f" ({len(advised) - 1} more below)" if len(advised) > 1 else ""
    return f"To do first: {advised[0].do[0].lower()}{advised[0].do[1:].rstrip('.')}{more}."
