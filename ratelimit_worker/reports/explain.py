"""Where is this call, and what does it wait for? Pure, but for `explain`, which looks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ratelimit_worker.calls import Attempt, Content, Mode, Outcome
from ratelimit_worker.reports.live import LaneState, cluster_state
from ratelimit_worker.reports.words import moment, per_min, seconds, unknown_task
from ratelimit_worker.stores.live import CallNow, Live

DAY_S = 86_400.0
MOST_SHOWN = 400  #: characters of a captured text that are shown to people


class Where(StrEnum):
    """Where a call is."""

    WAITING = "waiting"  #: for a permit
    DUE_LATER = "due later"  #: for a time
    FOLLOWING = "following"  #: for the answer of a call that is the same
    READY = "ready"  #: released, no worker has begun it
    RUNNING = "running"
    SETTLED = "settled"  #: its answer is safe; Celery has not acknowledged the message yet
    ANSWERED = "answered"
    FAILED = "failed"  #: for good
    ENDED = "ended"  #: it is in no lane, and no final attempt is recorded: expired, revoked, or recorded in a moment
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
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
    starts_in_s: float | None  #: about when it starts; None: nobody knows
    waits_for: tuple[str, ...]  #: what holds it up, one sentence each
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that is known of a call."""

    call_id: str
    where: Where
    standings: tuple[Standing, ...]  #: usually one; none when it has left the lanes
    attempts: tuple[Attempt, ...]  #: recorded so far, first to last


def explain(live: Live, attempts: Sequence[Attempt], call_id: str) -> Explanation:
    """What is known of a call.

    Args:
        attempts: Those that are recorded of it, first to last.
    Raises:
        StoreUnavailable: Redis is away.
    """
    calls = live.call(call_id)
    now = live.now(sorted({call.record.lane for call in calls}))
    lanes = {lane.lane: lane for lane in cluster_state(now, None).lanes}
    names = sorted({parent for lane in lanes.values() for parent in lane.limits.parents})
    parents = {lane.lane: lane for lane in cluster_state(live.now(names), None).lanes} if names else {}
    standings = tuple(standing(call, lanes.get(call.record.lane), now.at_s, parents) for call in calls)
    return Explanation(
        call_id=call_id,
        where=standings[0].where if standings else ended(attempts),
        standings=standings,
        attempts=tuple(attempts),
    )


def ended(attempts: Sequence[Attempt]) -> Where:
    """Where a call is that has left the lanes."""
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
    call: CallNow, lane: LaneState | None, at_s: float, parents: Mapping[str, LaneState] | None = None
) -> Standing:
    """How one message of a call stands.

    Args:
        parents: The lane's parents, by name.
    """
    record = call.record
    where = _where(call)
    reasons, starts_in_s = waits_for(call, lane, at_s) if where in (Where.WAITING, Where.DUE_LATER) else ((), None)
    if lane is not None and where is Where.WAITING:
        barred = [why for name in lane.limits.parents if parents and name in parents for why in _barred(parents[name])]
        reasons, starts_in_s = (*reasons, *barred), None if lane.limits.parents else starts_in_s
    if where is Where.FOLLOWING:
        reasons = (f"the answer of call {call.leader}, which asks the same",)
    return Standing(
        where=where,
        lane=record.lane,
        queue=record.queue,
        priority=record.priority,
        tenant=record.tenant,
        age_s=max(0.0, at_s - record.accepted_s),
        deadline_in_s=record.deadline_s - at_s,
        tries=record.tries,
        number=record.number,
        lost=record.lost,
        place=call.place,
        starts_in_s=starts_in_s,
        waits_for=reasons,
        worker=call.worker.name if call.worker is not None else None,
    )


def _where(call: CallNow) -> Where:
    if call.settled:
        return Where.SETTLED
    if call.lease_end_s is not None:
        return Where.RUNNING if call.begun else Where.READY
    if call.leader is not None:
        return Where.FOLLOWING
    return Where.DUE_LATER if call.due_s is not None and call.unknown is None else Where.WAITING


def waits_for(call: CallNow, lane: LaneState | None, at_s: float) -> tuple[tuple[str, ...], float | None]:
    """What holds a waiting call up, one sentence each, and in how many seconds it starts (None: nobody knows)."""
    if lane is None:
        return ("its lane's state is gone",), None
    if call.unknown is not None:
        return (f"room: {unknown_task(call.unknown, call.record.queue)}",), None
    reasons, earliest_s, known = list[str](), 0.0, True
    if call.due_s is not None:
        earliest_s = max(0.0, call.due_s - at_s)
        why = "after a failed attempt" if call.record.tries else "as its sender asked"
        reasons.append(f"time: due in {seconds(earliest_s)}, {why}")
    if lane.gate_s:
        opens = "does not open by itself" if math.isinf(lane.gate_s) else f"opens in {seconds(lane.gate_s)}"
        reasons.append(f"gate: the lane's gate {opens}")
        earliest_s, known = max(earliest_s, lane.gate_s), not math.isinf(lane.gate_s)
    if lane.mode is not Mode.NORMAL:
        reasons.append(f"mode: the lane is in {lane.mode}{', pinned by hand' if lane.pinned else ''}")
    if lane.away:
        reasons.append("mode: the provider is away, only probes go out")
        known = False
    allowed = lane.allowed_per_min
    if allowed is not None and allowed <= 0 and not lane.used_up:
        known = False
        if not lane.gate_s:
            reasons.append("pace: the lane is closed (0/min)")
    elif allowed is not None and call.place is not None and not lane.used_up:
        ahead_s = call.place * 60.0 / allowed
        before = "it is the next" if call.place == 0 else f"{call.place} calls go before it"
        reasons.append(f"pace: {before}, at {per_min(allowed)}")
        earliest_s += ahead_s
    for quota in lane.used_up:
        reasons.append(f"quota: {quota} are used up until the next UTC day")
        earliest_s, known = max(earliest_s, DAY_S - at_s % DAY_S), True
    crowded = _room(call, lane)
    reasons += crowded
    return tuple(reasons), earliest_s if known and not crowded else None


def _barred(parent: LaneState) -> list[str]:
    name = f"parent {parent.lane}"
    if parent.used_up:
        return [f"{name}: {quota} are used up until the next UTC day" for quota in parent.used_up]
    if parent.gate_s:
        opens = "does not open by itself" if math.isinf(parent.gate_s) else f"opens in {seconds(parent.gate_s)}"
        return [f"{name}: its gate {opens}, mode {parent.mode}"]
    cap = parent.limits.concurrency
    if cap is not None and parent.out >= cap:
        return [f"{name}: {parent.out} calls of its lanes are out, and its concurrency is {cap}"]
    paces = [f"{per_min(level.pace_per_min)} {what}" for what, level in parent.levels.items()]
    return [f"{name}: {', '.join(paces)}, shared by its lanes in turn"] if paces else []


def _room(call: CallNow, lane: LaneState) -> list[str]:
    cap = lane.limits.concurrency
    if lane.workers == 0:
        return [f"room: no worker takes calls from queue {call.record.queue!r}"]
    if cap is not None and lane.out >= cap:
        return [f"room: {lane.out} calls of the lane are out, and its concurrency is {cap}"]
    if lane.out >= lane.slots:
        return [f"room: all {lane.slots} slots are taken by calls of this lane"]
    return []


def _content_lines(content: Content) -> list[str]:
    """What was captured of an attempt; long texts by their beginning, JSON output has them whole."""
    told = {"asked": content.asked, "answer": content.answer}
    lines = [f"    {name}: {textwrap.shorten(said, MOST_SHOWN)}" for name, said in told.items() if said is not None]
    return lines + textwrap.indent(content.traceback or "", "    ").splitlines()


def explanation_text(found: Explanation) -> str:
    """The explanation as lines."""
    lines = [f"call {found.call_id}: {found.where}"]
    for one in found.standings:
        who = f", tenant {one.tenant}" if one.tenant else ""
        lines.append(f"  lane {one.lane}, queue {one.queue}, priority {one.priority}{who}")
        lines.append(
            f"  accepted {seconds(one.age_s)} ago, deadline in {seconds(max(0.0, one.deadline_in_s))}; "
            f"{one.number} attempts begun, {one.tries} failed, {one.lost} lost with their worker"
        )
        if one.worker is not None:
            lines.append(f"  on worker {one.worker}")
        lines += [f"  waits for {reason}" for reason in one.waits_for]
        if one.where in (Where.WAITING, Where.DUE_LATER):
            lines.append(
                f"  starts in about {seconds(one.starts_in_s)}"
                if one.starts_in_s is not None
                else "  nobody knows when it starts"
            )
    for attempt in found.attempts:
        what = [str(attempt.outcome), *([str(attempt.category)] if attempt.category else [])]
        what += [f"HTTP {attempt.status}"] if attempt.status else []
        what += [attempt.cause] if attempt.cause else []
        lines.append(
            f"  attempt {attempt.number}  {moment(attempt.started_at)}  waited {seconds(attempt.waited_s)}, "
            f"took {seconds(attempt.latency_s)}: {', '.join(what)}"
        )
        lines += _content_lines(attempt.content) if attempt.content is not None else []
    if not found.attempts:
        lines.append("  no attempt is recorded yet")
    return "\n".join(lines)
