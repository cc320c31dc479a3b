"""The charts of a report: spending, pace, latency, attempts and reused answers over time, from figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane_sample import LaneSpan
from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.plural import many
from ratelimit_worker.reports.chart import Bar, Chart, Frame, Key, amounts, times
from ratelimit_worker.reports.figures import Point
from ratelimit_worker.reports.money import NANO, dollars
from ratelimit_worker.reports.reuse import ASKED
from ratelimit_worker.reports.spells import Spell
from ratelimit_worker.reports.stats import DAY_S, HOUR_S, MINUTE_S, Stats
from ratelimit_worker.reports.words import clock, count, per_min, percent, seconds

_BY_DAY_FROM_S = 3 * DAY_S  #: shorter windows show money by the hour, or by slice
_MOST_ABOVE = 2.5  #: the allowed rate is drawn up to this multiple of the used one; above, it is only stated
_HEADROOM = 1.08  #: so that a line at the maximum does not lie on the edge


def money_by_time(stats: Stats) -> Chart | None:
    """Money spent and saved, by day, hour or slice; None: neither."""
    length_s = DAY_S if stats.until_s - stats.since_s >= _BY_DAY_FROM_S else max(HOUR_S, stats.slice_s)
    if stats.until_s - stats.since_s <= 6 * HOUR_S:
        length_s = stats.slice_s
    sums: dict[float, list[int]] = {}
    for point in stats.timeline:
        answered = point.cost_nanousd - point.wasted_nanousd
        total = sums.setdefault(point.at_s // length_s * length_s, [0, 0, 0])
        saved = point.cached_saving_nanousd + (point.reuse.saved_nanousd if point.reuse else 0)
        for place, amount in enumerate((answered, point.wasted_nanousd, saved)):
            total[place] += amount
    most = max((sum(total) for total in sums.values()), default=0)
    if not most:
        return None
    top, ticks = amounts(most / NANO, lambda usd: f"${usd:,.0f}" if most >= 20 * NANO else dollars(round(usd * NANO)))
    frame, bars = Frame(stats.since_s, stats.until_s, top * NANO), list[Bar]()
    for at_s, (answered, wasted, saved) in sums.items():
        says = f"{clock(at_s)}: {dollars(answered + wasted)} spent, {dollars(wasted)} of it without an answer, "
        parts = (("answered", answered), ("failed", wasted), ("saved", saved))
        bars += frame.stack(max(at_s, stats.since_s), at_s + length_s, parts, f"{says}{dollars(saved)} saved")
    each = "day" if length_s >= DAY_S else "hour" if length_s >= HOUR_S else seconds(length_s)
    return Chart(
        says=f"Spent and saved by {each}",
        x=times(stats.since_s, stats.until_s),
        y=ticks,
        bars=tuple(bars),
        keys=(
            Key("answered", "spent on answers"),
            Key("failed", "spent without an answer"),
            Key("saved", "saved by shared answers and cached input"),
        ),
    )


def pace(stats: Stats, points: Sequence[Point], spans: Sequence[LaneSpan], modes: Sequence[Spell]) -> Chart:
    """A lane's requests a minute: allowed, used, 429s, and its modes as shading."""
    used = [(point, _length_s(stats, point)) for point in points]
    most_used = max((point.attempts * MINUTE_S / length_s for point, length_s in used), default=0.0)
    allowed = [span for span in spans if span.allowed_per_min is not None]
    most_allowed = max((span.allowed_per_min or 0.0 for span in allowed), default=0.0)
    most = max(most_used, min(most_allowed, _MOST_ABOVE * most_used) if most_used else most_allowed)
    top, ticks = amounts(most * _HEADROOM, lambda value: f"{value:,g}")
    frame, bars = Frame(stats.since_s, stats.until_s, top), list[Bar]()
    for point, length_s in used:
        rates = [n * MINUTE_S / length_s for n in (point.attempts - point.refused, point.refused)]
        says = f"{clock(point.at_s)}: {per_min(sum(rates))} used, {count(point.refused)} 429s"
        bars += frame.stack(point.at_s, point.at_s + length_s, zip(("used", "failed"), rates, strict=True), says)
    steps = [
        (max(span.at_s, stats.since_s), min(span.at_s + stats.slice_s, stats.until_s), span.allowed_per_min or 0.0)
        for span in allowed
    ]
    beyond = f" (up to {per_min(most_allowed)}, beyond this chart)" if most_allowed > top else ""
    return Chart(
        says=f"Requests a minute: used, {count(most_used)} at most, beside what was allowed",
        x=times(stats.since_s, stats.until_s),
        y=ticks,
        bands=_shades(frame, modes),
        bars=tuple(bars),
        lines=(frame.steps("allowed", steps),) if steps else (),
        keys=(
            Key("used", "used, a minute"),
            *((Key("failed", "refused (429)"),) if any(point.refused for point in points) else ()),
            *((Key("allowed line", f"allowed{beyond}"),) if steps else ()),
            *(Key(mode.lower(), mode.value) for mode in Mode if any(one.mode is mode for one in modes)),
        ),
    )


def latency(stats: Stats, points: Sequence[Point]) -> Chart | None:
    """Median and 95th percentile by time; None: nothing was answered."""
    p95 = [(point.at_s + _length_s(stats, point) / 2, point.latency.p95_s) for point in points]
    p50 = [(point.at_s + _length_s(stats, point) / 2, point.latency.p50_s) for point in points]
    most = max((value for _, value in p95 if value is not None), default=0.0)
    if not most:
        return None
    unit_s, unit = (60.0, "min") if most >= 300.0 else (1.0, "s") if most >= 1.0 else (0.001, "ms")
    top, ticks = amounts(most / unit_s, lambda value: f"{value:g} {unit}")
    frame = Frame(stats.since_s, stats.until_s, top * unit_s)
    return Chart(
        says=f"Latency by time: the 95th percentile is {seconds(most)} at most",
        x=times(stats.since_s, stats.until_s),
        y=ticks,
        lines=(frame.line("p95", p95), frame.line("p50", p50)),
        keys=(Key("p50 line", "median"), Key("p95 line", "95 % were faster than this")),
    )


def attempts(stats: Stats) -> Chart | None:
    """Outcomes of attempts over time; None: there were none."""
    most = max((point.attempts for point in stats.timeline), default=0)
    if not most:
        return None
    top, ticks = amounts(most, lambda value: f"{value:,g}")
    frame, bars = Frame(stats.since_s, stats.until_s, top), list[Bar]()
    for point in stats.timeline:
        parts = (("answered", point.answered), ("failed", point.failed + point.retried), ("snoozed", point.snoozed))
        says = f"{clock(point.at_s)}: {many(point.attempts, 'attempt')}, {percent(point.error_rate)} errors"
        bars += frame.stack(point.at_s, point.at_s + _length_s(stats, point), parts, says)
    return Chart(
        says=f"Attempts over time, {count(most)} at most in {seconds(stats.slice_s)}",
        x=times(stats.since_s, stats.until_s),
        y=ticks,
        bars=tuple(bars),
        keys=(
            Key("answered", f"answered, each {seconds(stats.slice_s)}"),
            Key("failed", "failed or retried"),
            Key("snoozed", "snoozed: sent back to wait"),
        ),
    )


def reuse(stats: Stats) -> Chart | None:
    """Calls that could get the answer of another call, by what they got, over time; None: there were none."""
    told = [(point, point.reuse) for point in stats.timeline if point.reuse is not None]
    most = max((sum(getattr(one, name) for name in ASKED) for _, one in told), default=0)
    if not most:
        return None
    top, ticks = amounts(most, lambda value: f"{value:,g}")
    frame, bars = Frame(stats.since_s, stats.until_s, top), list[Bar]()
    for point, one in told:
        parts = [(name.value, getattr(one, name)) for name in ASKED]
        asked = sum(calls for _, calls in parts)
        says = f"{clock(point.at_s)}: {percent(one.rate)} of {many(asked, 'call')}, {dollars(one.saved_nanousd)} saved"
        bars += frame.stack(point.at_s, point.at_s + _length_s(stats, point), parts, says)
    return Chart(
        says=f"Calls that got the answer of another call over time, beside those that found none: {count(most)} at "
        f"most in {seconds(stats.slice_s)}",
        x=times(stats.since_s, stats.until_s),
        y=ticks,
        bars=tuple(bars),
        keys=(
            Key(Reuse.HITS, f"got a kept answer, each {seconds(stats.slice_s)}"),
            Key(Reuse.JOINED, "joined a call on its way"),
            Key(Reuse.STALE, "got an answer past its time"),
            Key(Reuse.MISSES, "found none: sent"),
        ),
    )


def _shades(frame: Frame, modes: Sequence[Spell]) -> tuple[Bar, ...]:
    return tuple(
        frame.band(one.mode.lower(), one.since_s, one.until_s, f"{one.mode} from {clock(one.since_s)}, {one.cause}")
        for one in modes
    )


def _length_s(stats: Stats, point: Point) -> float:
    """Length of a slice: the first and the last may be shorter than the others."""
    end_s = min(stats.until_s, (point.at_s // stats.slice_s + 1) * stats.slice_s)
    return max(1.0, end_s - point.at_s)
