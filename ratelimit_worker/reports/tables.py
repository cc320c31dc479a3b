"""How do figures look in a terminal? Tables without colour: they read the same in a file, where no line is folded.

`width` is the columns of the terminal; None: it is a file or a pipe.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.reports.figures import Group
from ratelimit_worker.reports.live import ClusterState, LaneState
from ratelimit_worker.reports.money import Money, Spender, dollars, spend_sentence
from ratelimit_worker.reports.outcomes import snoozed_words
from ratelimit_worker.reports.stats import Stats
from ratelimit_worker.reports.words import (
    clock,
    count,
    moment,
    overdue_call,
    per_min,
    percent,
    seconds,
    table,
    unknown_task,
)

_MOST_ROWS = 20
_BARS = "·▁▂▃▄▅▆▇█"


def status_table(state: ClusterState, width: int | None = None) -> str:
    """Every lane in a line, and who works for them."""
    if not state.lanes:
        return f"no lane is known yet\n{workers_line(state)}"
    rows = [
        (
            lane.lane,
            _mode(lane),
            per_min(lane.allowed_per_min, "none"),
            count(lane.used_per_min),
            count(lane.refused_last_min),
            count(lane.waiting + lane.due_later),
            count(lane.running),
            seconds(lane.oldest_age_s),
            f"{lane.workers}/{lane.slots}",
        )
        for lane in state.lanes
    ]
    heads = ("lane", "mode", "allowed", "used", "429s", "wait", "run", "oldest", "wrk/slots")
    notes = lane_notes(state, width)
    said = "\n" + "\n".join([*notes, *left_out(state)]) if notes or state.left_out else ""
    return f"{table(heads, rows, width)}{said}\n\nused and 429s: in the last minute. {workers_line(state)}"


def left_out(state: ClusterState) -> list[str]:
    """A line for the lanes that are not shown; none where there are no such."""
    if not state.left_out:
        return []
    modes = ", ".join(f"{count(lanes)} {mode}" for mode, lanes in sorted(state.modes.items()))
    more = f"… and {count(state.left_out)} lanes more, used less of late (of all: {modes})"
    return [f"{more}; --find TEXT looks for some, --verbose shows them"]


def lane_notes(state: ClusterState, width: int | None = None) -> list[str]:
    """A line for each lane whose mode is not NORMAL alone, or of which something holds the next call back."""
    said = []
    for lane in state.lanes:
        mode, held = str(lane.mode_now), lane.held_by(state.at_s)
        if mode != Mode.NORMAL or held:
            note = f"  {lane.lane}: {mode}{f'; next call held by {held}' if held else ''}"
            said.append(note if width is None else textwrap.fill(note, width, subsequent_indent="    "))
    return said


def workers_line(state: ClusterState) -> str:
    """How many workers there are, which tasks none of them knows though calls wait, and which calls never end."""
    queues = ", ".join(f"{queue.queue} {queue.slots}" for queue in state.queues)
    workers = "1 worker" if state.workers == 1 else f"{state.workers} workers"
    lines = [f"{workers}, {state.slots} slots{f' (by queue: {queues})' if queues else ''}"]
    lines += [f"{unknown_task(one.task, one.queue)}; {count(one.calls)} calls wait for one" for one in state.unknown]
    lines += [overdue_call(call, state.at_s) for call in state.overdue]
    return "\n".join(lines)


def lanes_table(state: ClusterState, width: int | None = None) -> str:
    """What each lane was told and has learned."""
    rows: list[tuple[str, ...]] = []
    for lane in state.lanes:
        requests, tokens = lane.levels.get("requests"), lane.levels.get("tokens")
        learned = requests.learned_per_min if requests is not None else None
        rows.append(
            (
                lane.lane,
                "unlimited" if lane.limits.unlimited else per_min(lane.limits.rpm, "-"),
                per_min(lane.limits.tpm, "-"),
                _at_once(lane),
                "yes" if lane.limits.adaptive else "no",
                per_min(learned, "-"),
                per_min(requests.pace_per_min if requests is not None else None, "-"),
                per_min(tokens.pace_per_min if tokens is not None else None, "-"),
                count(lane.reserved_tokens),
            )
        )
    heads: tuple[str, ...] = ("lane", "rpm", "tpm", "at once", "adapts", "learned", "pace", "tokens", "reserved")
    beside = [", ".join(_beside(lane.limits)) or "-" for lane in state.lanes]
    if not set(beside) <= {"-"}:
        heads, rows = (*heads, "beside"), [(*row, also) for row, also in zip(rows, beside, strict=True)]
    return "\n".join((table(heads, rows, width), *lane_notes(state, width), *left_out(state)))


def _at_once(lane: LaneState) -> str:
    """What a person told of calls at once, or "20 learned" where the provider has shown a narrower bound."""
    told, learned = lane.limits.concurrency, lane.at_once_learned
    if learned is not None and (told is None or learned < told):
        return f"{learned} learned"
    return str(told or "-")


def _beside(limits: LaneLimits) -> list[str]:
    """Quotas of a day, and parents."""
    quotas = ((limits.rpd, "requests"), (limits.tpd, "tokens"))
    where = f" ({limits.day_zone})" if limits.day_zone else ""
    told = [f"{value:,.0f} {what} a day{where}" for value, what in quotas if value is not None]
    return [*told, *([f"parents {' + '.join(limits.parents)}"] if limits.parents else [])]


def limits_line(limits: LaneLimits) -> str:
    """What a person told of a lane, in one line."""
    if limits.unlimited:
        told = ["unlimited"]
    else:
        told = [
            f"{per_min(value)} {what}" for value, what in ((limits.rpm, "requests"), (limits.tpm, "tokens")) if value
        ]
    told += [f"{limits.concurrency} at once"] if limits.concurrency else []
    told += _beside(limits)
    kind = "shared" if limits.shared else "adaptive" if limits.adaptive else "fixed"
    return ", ".join([*(told or ["no limit told"]), kind])


def stats_tables(stats: Stats, width: int | None = None) -> str:
    """Totals, lanes, functions, contexts, errors, volume over time and modes."""
    total = stats.total
    parts = [
        f"{moment(stats.since_s)} to {moment(stats.until_s)}",
        "\n".join(
            (
                f"calls     {count(total.calls)}: {count(total.answered)} answered, {count(total.failed)} failed",
                f"attempts  {count(total.attempts)}: {count(total.retried)} retried, {count(total.snoozed)} snoozed, "
                f"errors {percent(total.error_rate)}",
                f"429s      {count(total.refused)} of the attempts; snoozed: {snoozed_words(total.snoozed_by)}",
                f"retries   {count(total.recovered)} of {count(total.met_failure)} calls that met a failure were "
                f"answered: {percent(total.retry_success_rate)}",
                f"backoff   {seconds(total.backoff_s)} lost between failed attempts and the next ones",
                f"latency   p50 {seconds(total.latency.p50_s)}, p95 {seconds(total.latency.p95_s)}, {total.trend}",
                f"waited    p50 {seconds(total.waited.p50_s)}, p95 {seconds(total.waited.p95_s)}",
                f"tokens    {count(total.input_tokens)} in, {count(total.output_tokens)} out",
                *_money_lines(stats.money),
                f"cache     {stats.counted(stats.cache_hits)} hits, {stats.counted(stats.joined)} joined, "
                f"{stats.counted(stats.cache_stale)} stale (since Redis counts)",
                *_saved_lines(stats),
                f"shed      {stats.counted(stats.shed)} calls while their lane was in EMERGENCY or HALT "
                "(since Redis counts)",
            )
        ),
    ]
    if total.attempts:
        over_time = _bars([point.attempts for point in stats.timeline])
        parts.append(f"attempts over time, {seconds(stats.slice_s)} each\n{over_time}")
    parts += [
        _groups(what, groups, width)
        for what, groups in (("lane", stats.lanes), ("function", stats.functions), ("context", stats.contexts))
        if groups
    ]
    parts += [_spenders(what, of, width) for what, of in _by_spender(stats.money) if of]
    for what, groups in (("lane", stats.lanes), ("function", stats.functions)):
        if retried := _retries(what, groups, width):
            parts.append(retried)
    if total.categories:
        parts.append(table(("not answered", "attempts"), [(k, count(v)) for k, v in total.categories.items()], width))
    if stats.modes:
        parts.append("modes\n" + "\n".join(mode_line(change) for change in stats.modes[-_MOST_ROWS:]))
    if stats.now is not None and stats.now.lanes:
        parts.append("now\n" + status_table(stats.now, width))
    return "\n\n".join(parts)


def mode_line(change: ModeChange) -> str:
    """One mode change as a sentence."""
    why = f"{change.cause}; {change.reason}" if change.reason else change.cause
    said = f"{change.lane}: {change.from_mode} -> {change.to_mode} by {change.who}: {why}"
    return f"{clock(change.at)}  {one_line(said)}"


def _groups(what: str, groups: Sequence[Group], width: int | None) -> str:
    rows = []
    for group in groups[:_MOST_ROWS]:
        figures = group.figures
        rows.append(
            (
                group.name or "(none)",
                count(figures.calls),
                count(figures.failed),
                percent(figures.error_rate),
                count(figures.snoozed),
                seconds(figures.latency.p50_s),
                seconds(figures.latency.p95_s),
                seconds(figures.waited.p50_s),
                seconds(figures.waited.p95_s),
            )
        )
    more = f"\n… and {len(groups) - _MOST_ROWS} more" if len(groups) > _MOST_ROWS else ""
    return table((what, "calls", "failed", "errors", "snoozed", "p50", "p95", "wait50", "wait95"), rows, width) + more


def _money_lines(money: Money) -> list[str]:
    return [f"spent     {spend_sentence(money.total)}"] if money.is_known else []


def _saved_lines(stats: Stats) -> list[str]:
    if not stats.shared_saving_nanousd:
        return []
    return [
        f"saved     {dollars(stats.cache_saved_nanousd)} by cache hits, "
        f"{dollars(stats.joined_saved_nanousd)} by joining, "
        f"{dollars(stats.stale_saved_nanousd)} by stale answers (since Redis counts)"
    ]


def _by_spender(money: Money) -> list[tuple[str, Sequence[Spender]]]:
    """Groups that tell more than the total does."""
    kinds = (
        ("lane", money.lanes),
        ("model", money.models),
        ("function", money.functions),
        ("context", money.contexts),
        ("tenant", money.tenants),
    )
    return [(what, of) for what, of in kinds if money.is_known and (len(of) > 1 or what == "model")]


def _spenders(what: str, of: Sequence[Spender], width: int | None) -> str:
    rows = [
        (
            one.name or "(none)",
            dollars(one.spend.cost_nanousd)
            if one.spend.cost_nanousd or not one.spend.unpriced_attempts
            else "no price",
            dollars(one.spend.wasted_nanousd),
            dollars(one.spend.cached_saving_nanousd),
            count(one.spend.attempts),
        )
        for one in of[:_MOST_ROWS]
    ]
    more = f"\n… and {len(of) - _MOST_ROWS} more" if len(of) > _MOST_ROWS else ""
    return table((f"{what}: spent", "cost", "no answer", "saved by cache", "attempts"), rows, width) + more


def _retries(what: str, groups: Sequence[Group], width: int | None) -> str:
    """What came of failures, and which they were: the groups that had any."""
    met = [group for group in groups if group.figures.categories]
    if not met:
        return ""
    heads = (f"{what}: retries", "met failure", "recovered", "success", "retried", "backoff")
    rows = [
        (
            group.name or "(none)",
            count(group.figures.met_failure),
            count(group.figures.recovered),
            percent(group.figures.retry_success_rate),
            count(group.figures.retried),
            seconds(group.figures.backoff_s),
        )
        for group in met[:_MOST_ROWS]
    ]
    kinds = [
        (group.name or "(none)", category, count(attempts))
        for group in met[:_MOST_ROWS]
        for category, attempts in group.figures.categories.items()
    ]
    of_kinds = table((f"{what}: not answered", "category", "attempts"), kinds, width)
    return f"{table(heads, rows, width)}\n\n{of_kinds}"


def _mode(lane: LaneState) -> str:
    return f"{lane.mode.value}{'!' if lane.pinned else ''}"


def _bars(values: Sequence[int]) -> str:
    most = max(values)
    top = len(_BARS) - 1
    return "".join(_BARS[0 if not value else max(1, round(value / most * top))] for value in values)[-80:]
