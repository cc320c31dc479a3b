"""Figures as tables for terminals and files, without colour; in files, lines are not folded.

`width` is the columns of the terminal; None: it is a file or a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.plural import calls_wait, many
from ratelimit_worker.reports.alerts import line as alerts_line
from ratelimit_worker.reports.budgets import allowance, spent_notes
from ratelimit_worker.reports.figures import Figures, Group
from ratelimit_worker.reports.live import ClusterState, LaneState
from ratelimit_worker.reports.money import Money, Spender, dollars, spend_sentence
from ratelimit_worker.reports.outcomes import snoozed_words
from ratelimit_worker.reports.reuse import ReuseFigures
from ratelimit_worker.reports.rows import retries, reused, spenders
from ratelimit_worker.reports.stats import Stats
from ratelimit_worker.reports.trends import trend_numbers
from ratelimit_worker.reports.words import (
    clock,
    count,
    folded,
    moment,
    overdue_call,
    per_min,
    percent,
    seconds,
    table,
    tokens,
    unknown_task,
)

_MOST_ROWS = 20
_MOST_BARS = 80
_NAMES = 10  #: characters that the names of the totals take
_BARS = "·▁▂▃▄▅▆▇█"


def status_table(state: ClusterState, width: int | None = None, nothing: str = "no lane is known yet") -> str:
    """One line for each lane, and the workers; `nothing`: what is said if there is no lane."""
    if not state.lanes:
        return folded("\n".join((nothing, *spent_notes(state.budgets), workers_line(state))), width)
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
    notes = [*lane_notes(state), *(f"  {note}" for note in spent_notes(state.budgets)), *left_out(state)]
    said = "".join(f"\n{folded(note, width)}" for note in notes)
    below = folded(f"used and 429s: in the last minute. {workers_line(state)}", width)
    return f"{table(heads, rows, width)}{said}\n\n{below}"


def left_out(state: ClusterState) -> list[str]:
    """A line about lanes that are not shown, in a list; empty if all are shown."""
    if not state.left_out:
        return []
    modes = ", ".join(f"{count(lanes)} {mode}" for mode, lanes in sorted(state.modes.items()))
    more = f"… and {many(state.left_out, 'lane')} more, used less of late (of all: {modes})"
    return [f"{more}; --find TEXT looks for some, --verbose shows them"]


def lane_notes(state: ClusterState) -> list[str]:
    """A line for each lane whose mode is not plain NORMAL, or whose next call is held back."""
    said = []
    for lane in state.lanes:
        mode, held = str(lane.mode_now), lane.held_by(state.at_s)
        if mode != Mode.NORMAL or held:
            said.append(one_line(f"  {lane.lane}: {mode}{f'; next call held by {held}' if held else ''}"))
    return said


def workers_line(state: ClusterState) -> str:
    """The number of workers, tasks of waiting calls that no worker knows, calls that do not end, and open alerts."""
    queues = ", ".join(f"{queue.queue} {queue.slots}" for queue in state.queues)
    by_queue = f" (by queue: {queues})" if queues else ""
    lines = [f"{many(state.workers, 'worker')}, {many(state.slots, 'slot')}{by_queue}"]
    lines += [f"{unknown_task(one.task, one.queue)}; {calls_wait(one.calls)} for one" for one in state.unknown]
    lines += [overdue_call(call, state.at_s) for call in state.overdue]
    lines += [alerts] if (alerts := alerts_line(state.alerts, state.at_s)) else []
    return "\n".join(lines)


def lanes_table(state: ClusterState, width: int | None = None) -> str:
    """Configured and learned limits of each lane."""
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
    notes = [*lane_notes(state), *(f"  {note}" for note in spent_notes(state.budgets)), *left_out(state)]
    return "\n".join((table(heads, rows, width), *(folded(note, width) for note in notes)))


def _at_once(lane: LaneState) -> str:
    """The configured concurrency, or "20 learned" if the provider has shown a lower limit."""
    told, learned = lane.limits.concurrency, lane.at_once_learned
    if learned is not None and (told is None or learned < told):
        return f"{learned} learned"
    return str(told or "-")


def _beside(limits: LaneLimits) -> list[str]:
    """Daily quotas, budgets of money and parents, in words."""
    quotas = ((limits.rpd, "requests"), (limits.tpd, "tokens"))
    where = f" ({limits.day_zone})" if limits.day_zone else ""
    told = [f"{value:,.0f} {what} a day{where}" for value, what in quotas if value is not None]
    told += allowance(limits.usd_per_day, limits.usd_per_month, limits.day_zone)
    return [*told, *([f"parents {' + '.join(limits.parents)}"] if limits.parents else [])]


def limits_line(limits: LaneLimits) -> str:
    """The configuration of a lane, in one line."""
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
        folded(f"{moment(stats.since_s)} to {moment(stats.until_s)}", width),
        "\n".join(
            folded(line, width, indent=_NAMES)
            for line in (
                f"calls     {count(total.calls)}: {count(total.answered)} answered, {count(total.failed)} failed",
                f"attempts  {count(total.attempts)}: {count(total.retried)} retried, {count(total.snoozed)} snoozed, "
                f"errors {percent(total.error_rate)}",
                f"429s      {count(total.refused)} of the attempts; snoozed: {snoozed_words(total.snoozed_by)}",
                f"retries   {count(total.recovered)} of {many(total.met_failure, 'call')} that met a failure were "
                f"answered: {percent(total.retry_success_rate)}",
                f"backoff   {seconds(total.backoff_s)} lost between failed attempts and the next ones",
                f"latency   p50 {seconds(total.latency.p50_s)}, p95 {seconds(total.latency.p95_s)}, {total.trend}",
                *_trend_lines(total),
                f"waited    p50 {seconds(total.waited.p50_s)}, p95 {seconds(total.waited.p95_s)}",
                f"tokens    {tokens_of(total)}",
                *_money_lines(stats.money),
                *_reuse_lines(total.reuse),
                *_saved_lines(stats),
                f"shed      {stats.counted(stats.shed)} calls while their lane was in EMERGENCY or HALT "
                "(since Redis counts)",
            )
        ),
    ]
    if total.attempts:
        slices = -(-len(stats.timeline) // min(width or _MOST_BARS, _MOST_BARS))  # of one bar
        over_time = _bars([point.attempts for point in stats.timeline], slices)
        parts.append(f"attempts over time, {seconds(slices * stats.slice_s)} each\n{over_time}")
    parts += [
        _groups(what, groups, width)
        for what, groups in (("lane", stats.lanes), ("function", stats.functions), ("context", stats.contexts))
        if groups
    ]
    parts += [_spenders(what, of, width) for what, of in _by_spender(stats.money) if of]
    for what, groups in (("function", stats.functions), ("context", stats.contexts)):
        if used := _reuse(what, groups, width):
            parts.append(used)
    for what, groups in (("lane", stats.lanes), ("function", stats.functions)):
        if retried := _retries(what, groups, width):
            parts.append(retried)
    if total.categories:
        parts.append(table(("not answered", "attempts"), [(k, count(v)) for k, v in total.categories.items()], width))
    if stats.modes:
        parts.append("modes\n" + "\n".join(folded(mode_line(change), width) for change in stats.modes[-_MOST_ROWS:]))
    if stats.now is not None and stats.now.lanes:
        parts.append("now\n" + status_table(stats.now, width))
    return "\n\n".join(parts)


def tokens_of(figures: Figures) -> str:
    """Tokens in and out, with their kinds."""
    return tokens(
        figures.input_tokens,
        figures.output_tokens,
        cached=figures.cached_input_tokens,
        written=figures.cache_write_tokens,
        reasoning=figures.reasoning_tokens,
    )


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


def _trend_lines(figures: Figures) -> list[str]:
    numbers = trend_numbers(figures.trends)
    return [f"trend     {numbers}"] if numbers else []


def _reuse_lines(used: ReuseFigures) -> list[str]:
    told = [
        f"cache     {many(used.hits, 'hit')}, {count(used.joined)} joined, {count(used.stale)} stale, "
        f"{many(used.misses, 'miss', 'misses')}: {percent(used.rate)} without a request"
    ]
    if used.input_tokens or used.output_tokens or used.evicted:
        told.append(
            f"spared    {many(used.input_tokens, 'token')} in, {count(used.output_tokens)} out; "
            f"{many(used.evicted, 'answer')} evicted, {many(used.evicted_bytes, 'byte')}"
        )
    return told


def _reuse(what: str, groups: Sequence[Group], width: int | None) -> str:
    """A table of reuse by group; "" if no call asked for a kept answer."""
    used = reused(groups, f"{what}: cache")
    more = f"\n… and {len(used.rows) - _MOST_ROWS} more" if len(used.rows) > _MOST_ROWS else ""
    return table(used.heads, used.rows[:_MOST_ROWS], width) + more if used.rows else ""


def _money_lines(money: Money) -> list[str]:
    return [f"spent     {spend_sentence(money.total)}"] if money.is_known else []


def _saved_lines(stats: Stats) -> list[str]:
    if not stats.shared_saving_nanousd:
        return []
    return [
        f"saved     {dollars(stats.cache_saved_nanousd)} by cache hits, "
        f"{dollars(stats.joined_saved_nanousd)} by joining, "
        f"{dollars(stats.stale_saved_nanousd)} by stale answers"
    ]


def _by_spender(money: Money) -> list[tuple[str, Sequence[Spender]]]:
    """Groups that say more than the total."""
    kinds = (
        ("lane", money.lanes),
        ("model", money.models),
        ("function", money.functions),
        ("context", money.contexts),
        ("tenant", money.tenants),
    )
    return [(what, of) for what, of in kinds if money.is_known and (len(of) > 1 or what == "model")]


def _spenders(what: str, of: Sequence[Spender], width: int | None) -> str:
    more = f"\n… and {len(of) - _MOST_ROWS} more" if len(of) > _MOST_ROWS else ""
    return table(*spenders(of[:_MOST_ROWS], f"{what}: spent"), width) + more


def _retries(what: str, groups: Sequence[Group], width: int | None) -> str:
    """Which failures there were and how they ended, for the groups that had any."""
    met = [group for group in groups if group.figures.categories]
    if not met:
        return ""
    kinds = [
        (group.name or "(none)", category, count(attempts))
        for group in met[:_MOST_ROWS]
        for category, attempts in group.figures.categories.items()
    ]
    of_kinds = table((f"{what}: not answered", "category", "attempts"), kinds, width)
    return f"{table(*retries(met[:_MOST_ROWS], f'{what}: retries'), width)}\n\n{of_kinds}"


def _mode(lane: LaneState) -> str:
    return f"{lane.mode.value}{'!' if lane.pinned else ''}"


def _bars(values: Sequence[int], together: int) -> str:
    """A bar for each so many values that follow each other; the last ones are together, so that it is the first bar
    that may stand for fewer."""
    first = len(values) % together
    sums = [sum(values[:first])] if first else []
    sums += [sum(values[at : at + together]) for at in range(first, len(values), together)]
    most, top = max(sums), len(_BARS) - 1
    return "".join(_BARS[0 if not value else max(1, round(value / most * top))] for value in sums)
