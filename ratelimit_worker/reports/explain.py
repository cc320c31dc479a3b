"""Where a call is, and what it waits for. Pure, except `explain`, which reads Redis and the database."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from ratelimit_worker.calls import Attempt, Content, Mode, Outcome, PriceSource
from ratelimit_worker.flow.lane.decide import Rules
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.plural import many
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports.bars import sentences
from ratelimit_worker.reports.live import LaneState, cluster_state
from ratelimit_worker.reports.money import dollars, spend_sentence, spent_of_call
from ratelimit_worker.reports.start import Forecast
from ratelimit_worker.reports.words import about, count, moment, seconds
from ratelimit_worker.stores.live import CallNow, Live

MOST_SHOWN = 400  #: characters of a captured text that are shown to people


class Where(StrEnum):
    """Where a call is."""

    WAITING = "waiting"  #: waits for a permit
    DUE_LATER = "due later"  #: waits for a time
    FOLLOWING = "following"  #: waits for the answer of a call that is the same
    READY = "ready"  #: released, no worker has begun it
    RUNNING = "running"
    SETTLED = "settled"  #: its answer is safe; Celery has not acknowledged the message yet
    ANSWERED = "answered"
    FAILED = "failed"  #: for good
    ENDED = "ended"  #: in no lane, and no final attempt is recorded: expired, revoked, or about to be recorded
    LOST = "lost"  #: Redis has lost it, and its caller got `CallLost`
    UNKNOWN = "unknown"


class Standing(Struct, frozen=True, kw_only=True):
    """One message of the call."""

    where: Where
    lane: str
    queue: str
    priority: str
    tenant: str
    age_s: float  #: since it was accepted
    deadline_in_s: float
    tries: int  #: attempts that cost one
    number: int  #: attempts begun
    lost: int  #: deliveries whose worker died
    place: int | None  #: calls of its lane that go before it
    starts_in_s: float | None  #: about when its turn comes, seconds from now; None: it cannot be known
    waits_for: tuple[str, ...]  #: what holds it back, one sentence each
    worker: str | None
    bars: tuple[Bar, ...] = ()  #: the same as values
    #: whether its deadline comes before its turn, unless calls before it expire or are revoked
    expires_first: bool = False


class Explanation(Struct, frozen=True, kw_only=True):
    """All that is known of a call."""

    call_id: str
    where: Where
    standings: tuple[Standing, ...]  #: usually one; none when it has left the lanes
    attempts: tuple[Attempt, ...]  #: recorded so far, first to last
    lost_at_s: float | None = None  #: when its caller was told that Redis has lost it; seconds since the epoch


def explain(
    live: Live,
    attempts: Sequence[Attempt],
    call_id: str,
    *,
    latency_s: Mapping[str, float] | None = None,
    rules: Rules | None = None,
) -> Explanation:
    """What is known of a call.

    Args:
        attempts: Its recorded attempts, first to last.
        latency_s: Lane → recent mean of an answered attempt, seconds; None: not known.
        rules: Settings of the law, which say what a lane may send when a pin has ended.
    Raises:
        StoreUnavailable: Redis is away.
    """
    calls = live.call(call_id)
    now = live.now(sorted({call.record.lane for call in calls}))
    states = {lane.lane: lane for lane in cluster_state(now, None).lanes}
    names = sorted({parent for lane in states.values() for parent in lane.limits.parents})
    beside = live.now(names) if names else None
    parents = {lane.lane: lane for lane in cluster_state(beside, None).lanes} if beside is not None else {}
    kept = {lane.lane: lane for lane in (*now.lanes, *(beside.lanes if beside is not None else ()))}

    def forecast(lane: LaneState) -> Forecast:
        return Forecast(
            at_s=now.at_s,
            lane=kept[lane.lane],
            parents={name: kept[name] for name in lane.limits.parents if name in kept},
            pins=now.pins,
            rules=rules or Rules(),
            latency_s=(latency_s or {}).get(lane.lane),
            slots=lane.slots,
        )

    lost_at_s = live.lost_at_s(call_id)
    standings = []
    for call in calls:
        lane = states.get(call.record.lane)
        standings.append(standing(call, lane, now.at_s, parents, forecast(lane) if lane is not None else None))
    return Explanation(
        call_id=call_id,
        where=standings[0].where if standings else Where.LOST if lost_at_s is not None else ended(attempts),
        standings=tuple(standings),
        attempts=tuple(attempts),
        lost_at_s=lost_at_s,
    )


def ended(attempts: Sequence[Attempt]) -> Where:
    """The state of a call that has left the lanes."""
    if not attempts:
        return Where.UNKNOWN
    match attempts[-1].outcome:
        case Outcome.ANSWERED:
            return Where.ANSWERED
        case Outcome.FAILED:
            return Where.FAILED
        case _:
            return Where.ENDED


def standing(
    call: CallNow,
    lane: LaneState | None,
    at_s: float,
    parents: Mapping[str, LaneState] | None = None,
    forecast: Forecast | None = None,
) -> Standing:
    """The state of one message of a call.

    Args:
        parents: The lane's parents, by name.
        forecast: For the time of its start; None: that is not known.
    """
    record = call.record
    where = _where(call)
    waits = where in (Where.WAITING, Where.DUE_LATER)
    reasons = waits_for(call, lane, at_s, parents) if waits else ()
    if where is Where.FOLLOWING:
        reasons = (f"the answer of call {call.leader}, which asks the same",)
    starts_in_s = forecast.starts_in_s(call) if waits and forecast is not None else None
    deadline_in_s = record.deadline_s - at_s
    return Standing(
        where=where,
        lane=record.lane,
        queue=record.queue,
        priority=record.priority,
        tenant=record.tenant,
        age_s=max(0.0, at_s - record.accepted_s),
        deadline_in_s=deadline_in_s,
        tries=record.tries,
        number=record.number,
        lost=record.lost,
        place=call.place,
        starts_in_s=starts_in_s,
        expires_first=starts_in_s is not None and starts_in_s > deadline_in_s,
        waits_for=reasons,
        worker=call.worker.name if call.worker is not None else None,
        bars=(call.bars or ()) if waits or where is Where.FOLLOWING else (),
    )


def _where(call: CallNow) -> Where:
    if call.settled:
        return Where.SETTLED
    if call.lease_end_s is not None:
        return Where.RUNNING if call.begun else Where.READY
    if call.leader is not None:
        return Where.FOLLOWING
    # If no worker knows its task, its due time is only when the lane looks for one again.
    knows_none = any(bar.kind is BarKind.TASK for bar in call.bars or ())
    return Where.DUE_LATER if call.due_s is not None and not knows_none else Where.WAITING


def waits_for(
    call: CallNow, lane: LaneState | None, at_s: float, parents: Mapping[str, LaneState] | None = None
) -> tuple[str, ...]:
    """What holds a waiting call back, one sentence each.

    Args:
        parents: The lane's parents, by name.
    """
    if call.bars is None:
        return ("something that the server would not say: its script could not run",)
    if lane is None:
        return ("its lane's state is gone",)
    reasons = sentences(
        call.bars,
        at_s,
        paces=_paces(lane),
        parents={name: _paces(parent) for name, parent in (parents or {}).items()},
        tried=call.record.number > 0,
        pin_ends_s=lane.pinned_until_s,
    )
    if lane.mode is Mode.NORMAL and not lane.pinned:
        return reasons
    # The mode is the cause of gates and paces, so it comes after them.
    return (*reasons, f"mode: the lane is in {lane.mode_now}")


def _paces(lane: LaneState) -> dict[str, float]:
    """Units a minute by dimension; requests are limited by the gap that the mode keeps between calls."""
    paces = {what: level.pace_per_min for what, level in lane.levels.items()}
    if "requests" in paces and lane.allowed_per_min:
        paces["requests"] = lane.allowed_per_min
    return paces


def used(attempt: Attempt) -> str:
    """What an attempt has used and cost, in a line; "" if nothing is known."""
    of_input = [
        f"{count(many)} {what}"
        for many, what in ((attempt.cached_input_tokens, "cached"), (attempt.cache_write_tokens, "written to a cache"))
        if many
    ]
    parts = []
    if attempt.input_tokens is not None:
        kinds = f" ({', '.join(of_input)})" if of_input else ""
        parts.append(f"{many(attempt.input_tokens, 'token')} in{kinds}")
    if attempt.output_tokens is not None:
        thought = f" ({count(attempt.reasoning_tokens)} of reasoning)" if attempt.reasoning_tokens else ""
        parts.append(f"{count(attempt.output_tokens)} out{thought}")
    if attempt.cost_nanousd is not None:
        parts.append(f"{dollars(attempt.cost_nanousd)} ({_SAYS[attempt.price_source or PriceSource.ESTIMATED]})")
        if attempt.cached_saving_nanousd:
            parts.append(f"{dollars(attempt.cached_saving_nanousd)} saved by cached input")
    elif parts:
        parts.append("no price is known")
    if attempt.lost_attempts:
        cost = f", taken to have cost {dollars(attempt.lost_nanousd)}" if attempt.lost_nanousd is not None else ""
        parts.append(f"{count(attempt.lost_attempts)} before it lost with their worker{cost}")
    return one_line(", ".join(parts))


_SAYS = {
    PriceSource.TOLD: "as the provider told",
    PriceSource.OWN: "by MAISD_PRICES",
    PriceSource.LIST: "by the published list",
    PriceSource.ESTIMATED: "estimated",
}


def cost_in_all(attempts: Sequence[Attempt]) -> str:
    """What a call's attempts cost together; "" if that is what its only attempt cost, or nothing is known."""
    spend = spent_of_call(attempts)
    return spend_sentence(spend) if spend.is_known and (len(attempts) > 1 or spend.lost_attempts) else ""


def _content_lines(content: Content) -> list[str]:
    """The captured content of an attempt; long texts are cut (JSON output has them in full)."""
    told = {"asked": content.asked, "answer": content.answer}
    lines = [f"    {name}: {textwrap.shorten(said, MOST_SHOWN)}" for name, said in told.items() if said is not None]
    return lines + textwrap.indent(content.traceback or "", "    ").splitlines()


def _start(one: Standing) -> str:
    if one.starts_in_s is None:
        return "nobody knows when it starts"
    if one.expires_first:
        return (
            f"it will expire before its turn: its deadline is in {about(max(0.0, one.deadline_in_s))}, "
            f"its turn in about {about(one.starts_in_s)}, unless calls before it expire or are revoked"
        )
    return f"starts in about {about(one.starts_in_s)}"


def explanation_text(found: Explanation) -> str:
    """The explanation as lines."""
    lines = [f"call {found.call_id}: {found.where}"]
    for one in found.standings:
        who = f", tenant {one.tenant}" if one.tenant else ""
        lines.append(one_line(f"  lane {one.lane}, queue {one.queue}, priority {one.priority}{who}"))
        lines.append(
            f"  accepted {seconds(one.age_s)} ago, deadline in {seconds(max(0.0, one.deadline_in_s))}; "
            f"{one.number} attempts begun, {one.tries} failed, {one.lost} lost with their worker"
        )
        if one.worker is not None:
            lines.append(f"  on worker {one.worker}")
        lines += [f"  waits for {reason}" for reason in one.waits_for]
        if one.where in (Where.WAITING, Where.DUE_LATER):
            lines.append(f"  {_start(one)}")
    for attempt in found.attempts:
        what = [str(attempt.outcome), *([str(attempt.category)] if attempt.category else [])]
        what += [f"HTTP {attempt.status}"] if attempt.status else []
        what += [one_line(attempt.cause)] if attempt.cause else []
        lines.append(
            f"  attempt {attempt.number}  {moment(attempt.started_at)}  waited {seconds(attempt.waited_s)}, "
            f"took {seconds(attempt.latency_s)}: {', '.join(what)}"
        )
        if said := used(attempt):
            lines.append(f"    {said}")
        lines += _content_lines(attempt.content) if attempt.content is not None else []
    if in_all := cost_in_all(found.attempts):
        lines.append(f"  in all it cost {in_all}")
    if found.lost_at_s is not None:
        lines.append(f"  Redis has forgotten it; its caller was told at {moment(found.lost_at_s)}")
    if found.where is Where.ENDED:
        lines.append(
            "  it is in no lane, and has no end on record: revoked, forgotten by Redis, or recorded in a moment"
        )
    if not found.attempts:
        lines.append("  no attempt is recorded yet")
    return "\n".join(lines)
