"""When does a lane step up or down the ladder of modes? State and answer in, new state and perhaps a move out."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import SICK_ROW
from ratelimit_worker.contracts.lesson import Witness
from ratelimit_worker.policy import fault
from ratelimit_worker.policy.modes.counts import (
    CALLS_S,
    EVIDENCE_S,
    HOUR_MIN,
    SPAN_S,
    SPANS,
    WINDOW_MIN,
    Count,
    added,
    in_percent,
    last_evidence,
    last_minutes,
    sick_part,
    totals,
    wilson,
)
from ratelimit_worker.policy.modes.rising import Slice, rises
from ratelimit_worker.policy.modes.state import Answer, ModeState, Move, Thresholds

HOURLY_SICK = 20  #: at low volume, more sick answers than this in an hour mean REDUCED
RATE_LEAST = 5  #: answers below which the written rule's rate is ignored
LOW_VOLUME = 50  #: expected answers in 15 minutes from which on the written rule's count is ignored
EMERGENCY_ROW = 10  #: sick answers in a row that mean EMERGENCY
#: A lane without a sick answer for this long steps down by time alone, seconds: from REDUCED; from EMERGENCY (only when
#: nothing is out, since as long as calls wait it is probed).
QUIET_S: Mapping[Mode, float] = {Mode.REDUCED: 60.0, Mode.EMERGENCY: 300.0}
EVIDENCE_LEAST = 20  #: answers below which the sick share is ignored
GOOD_ENOUGH = 5  #: good answers in a row that end an outage
#: If outages follow each other within so many seconds, each needs twice as many good answers to end as the one before,
#: up to a maximum.
RELAPSE_S, GOOD_MOST = 60.0, 80
PROBES_MOST = 4  #: probes at once
#: (least answers, most sick ones in %): each pair ends REDUCED. The second is for providers that always fail a tenth.
WELL = ((10, 10.0), (40, 13.5))
REDUCED_SHARE = 0.7  #: share of the pace
#: REDUCED is an experiment: every so many seconds, has the sick share fallen to this part of what it was? If not, the
#: lane's own rate is not the cause of the errors, and this share of the pace is given back.
TRIAL_S, TRIAL_FALL, TRIAL_BACK, TRIAL_LEAST = 4.0, 0.75, 0.1, 5
BARRED_ROW = 5  #: answers in a row that did not accept the key, after which the lane is halted
#: If a lane has answered calls within so many seconds, it is halted for a key only if `fault.is_closed` says so.
ANSWERS_S = 60
QUOTA_CAUSE = "the provider says that the quota is used up"


def observe(state: ModeState, answer: Answer, thresholds: Thresholds) -> tuple[ModeState, Move | None]:
    """The state after one more answer, and the step that it caused."""
    if not thresholds.escalates:
        return state, None
    at = answer.at
    if state.first_at is None and (answer.sick or answer.good):
        state = replace(state, first_at=answer.sent_at)
    state = _heard(state, answer)
    if answer.quota:
        return _unpaid(state, answer)
    if answer.good:
        told, state = state.locked if state.barred else state.unpaid, _disproved(state, answer)
        if state.mode is Mode.HALT and told is not None and told.sent_at < answer.sent_at < state.since:
            return _from_halt(state, at, "a call was answered that had left after the first without quota or key")
    if answer.sent_at < state.since:
        return state, None  # it left before the mode changed
    if answer.barred:
        return _barred(state, answer)
    if not (answer.sick or answer.good):
        return state, None
    if state.mode is Mode.HALT:
        return _from_halt(state, at, "a good answer to a probe") if answer.good else (state, None)
    latency_s = max(0.0, at - answer.sent_at)
    believed = thresholds.literal or not _doubted(state, answer)
    if not answer.sick or thresholds.literal or (believed and _counts(state, answer.witness)):
        state = _counted(state, at, Count(0, int(not answer.sick), int(answer.sick), int(answer.good), latency_s))
    if not answer.sick:
        return _good(replace(state, row=fault.NO_ROW, sick_row=0, barred_row=0), at)
    return _sick(state, answer, thresholds) if believed else (state, None)


def count_good(state: ModeState, at: float, answers: int) -> ModeState:
    """The state after good answers of which only the number is known: they count only in NORMAL.

    Args:
        at: When they are counted, seconds.
    """
    if not answers or state.mode is not Mode.NORMAL:
        return state  # their requests may have left before the mode changed
    first_at = at if state.first_at is None else state.first_at
    state = replace(state, calls=added(state.calls, int(at // SPAN_S), CALLS_S // SPAN_S, Count(0, good=answers)))
    return _counted(replace(state, first_at=first_at, barred_row=0), at, Count(0, good=answers))


def step(state: ModeState, now: float) -> ModeState:
    """What time alone changes: REDUCED gives pace back if the lane's rate is not the cause of the errors."""
    if state.mode is not Mode.REDUCED or state.trial is None:
        return state
    begun, before, answers, sick = state.trial
    if now - begun < TRIAL_S or answers < TRIAL_LEAST:
        return state
    share = sick / answers
    if share <= TRIAL_FALL * before:
        return replace(state, trial=(now, before, 0, 0))
    given = min(1.0, round(state.share + TRIAL_BACK, 6))
    return replace(state, share=given, trial=(now, before, 0, 0))


def quiet(state: ModeState, now: float, out: int | None) -> tuple[ModeState, Move | None]:
    """The state of a lane that sends nothing: a mode ends by itself if no sick answer came for long.

    Args:
        out: Calls that are out; None: unknown. EMERGENCY stays while a probe may be out.
    """
    least_s = QUIET_S.get(state.mode)
    if (
        least_s is None
        or now - max(state.since, state.sick_at) < least_s
        or (out != 0 and state.mode is Mode.EMERGENCY)
    ):
        return state, None
    to_mode = Mode.NORMAL if state.mode is Mode.REDUCED else Mode.REDUCED
    return _down(state, to_mode, now, (f"no sick answer for {least_s:.0f} s", _numbers(state, now)))


def sick_share(state: ModeState, now: float) -> float:
    """Share of recent calls whose first attempt was sick, 0 to 1.

    The larger of the shares of the last 30 s and 120 s: a rise shows at once, and is not forgotten while the last calls
    of a batch wait for their next attempt. One sick answer is not counted: it may belong to the call that is to be
    compared with the others.
    """
    if sum(one.sick for one in state.calls) <= 1:
        return 0.0
    spans = (EVIDENCE_S // SPAN_S, CALLS_S // SPAN_S)
    windows = [totals(tuple(one for one in state.calls if one.number > now // SPAN_S - most)) for most in spans]
    return max(max(0, sick - 1) / max(1, good + sick - 1) for good, sick in windows)


def _heard(state: ModeState, answer: Answer) -> ModeState:
    """Note what an answer says of its call, task and process, in any mode and whenever its request left."""
    if not (answer.sick or answer.good):
        return state
    who, at = answer.witness, answer.at
    if not (answer.sick and who is not None and who.again):
        more = Count(0, int(answer.good), int(answer.sick))
        state = replace(state, calls=added(state.calls, int(at // SPAN_S), CALLS_S // SPAN_S, more))
    if who is None:
        return state
    return replace(
        state,
        tasks=fault.heard(state.tasks, who.task, at, answer.sent_at, sick=answer.sick, good_sent=who.task_sent),
        processes=fault.heard(
            state.processes, who.process, at, answer.sent_at, sick=answer.sick, good_sent=who.process_sent
        ),
    )


def _counts(state: ModeState, witness: Witness | None) -> bool:
    """Whether a sick answer counts in the shares: a call's first does, and further ones only if several calls fail."""
    if witness is None or not witness.again:
        return True
    return fault.worth(fault.lengthened(state.row, witness.call)) > fault.worth(state.row)


def _doubted(state: ModeState, answer: Answer) -> bool:
    """Whether a sick answer says more about who asked than about the provider."""
    who = answer.witness
    return who is not None and (
        who.discounted
        or fault.doubted(state.tasks, who.task, answer.at)
        or fault.doubted(state.processes, who.process, answer.at)
    )


def _unpaid(state: ModeState, answer: Answer) -> tuple[ModeState, Move | None]:
    """An answer that the quota is used up. It halts the lane, unless others are answered: then several must say so."""
    who, before = answer.witness, state.unpaid
    call = who.call if who is not None else None
    again = who is not None and who.again
    if state.mode is Mode.HALT and before is not None:
        row = before.row if again else fault.lengthened(before.row, call)
        return replace(state, unpaid=before._replace(row=row, again=before.again + again)), None
    if who is not None and who.discounted and again:
        return state, None  # it was counted when it came for the first time
    told = fault.closed(before, answer.seq, answer.sent_at, call)
    state = _own(replace(state, unpaid=told), before, told, answer.at)
    beside = who is not None and who.discounted and not fault.is_closed(told, _own_share(state))
    if beside or state.mode is Mode.HALT:
        return state, None
    return _to_halt(state, answer.at, QUOTA_CAUSE, {})


def _barred(state: ModeState, answer: Answer) -> tuple[ModeState, Move | None]:
    """An answer that did not accept the key: several in a row halt the lane."""
    row, before = state.barred_row + 1, state.locked
    told = fault.closed(before, answer.seq, answer.sent_at, None)
    state = _own(replace(state, barred_row=row, locked=told), before, told, answer.at)
    answered = any(one.good for one in state.calls if one.number > (answer.at - ANSWERS_S) // SPAN_S)
    if answered:  # then the order of sending counts: good answers take longer
        row = told.row.total if fault.is_closed(told, _own_share(state)) else 0
    if row < BARRED_ROW or state.mode is Mode.HALT:
        return state, None
    cause = f"{row} answers in a row did not accept the key"
    after, move = _to_halt(state, answer.at, cause, {"barred_row": float(row)})
    return replace(after, barred=True), move


def _own(state: ModeState, before: fault.Closed | None, told: fault.Closed | None, at: float) -> ModeState:
    """If a row of such answers has ended, or begun anew, since others got better ones: those in it were calls' own."""
    if before is None or (told is not None and told.row.total > 1) or state.mode is Mode.HALT:
        return state
    return replace(state, own=added(state.own, int(at // SPAN_S), CALLS_S // SPAN_S, Count(0, sick=before.row.total)))


def _disproved(state: ModeState, answer: Answer) -> ModeState:
    """A good answer ends rows of answers that the account is closed, if its request left after the first of them."""
    unpaid, locked = state.unpaid, state.locked
    if unpaid is not None and answer.sent_at > unpaid.sent_at:
        state = _own(replace(state, unpaid=None), unpaid, None, answer.at)
    if locked is not None and answer.sent_at > locked.sent_at:
        state = _own(replace(state, locked=None), locked, None, answer.at)
    return state


def _own_share(state: ModeState) -> float:
    """Share, among the answers of the last 120 s, of those about the account that were single calls' own."""
    newest = max((counts[-1].number for counts in (state.calls, state.own) if counts), default=0)
    recent = tuple(one for one in state.own if one.number > newest - CALLS_S // SPAN_S)
    own, good = totals(recent)[1], totals(state.calls)[0]
    return (own + 0.5) / (own + good + 1)


def release(state: ModeState, at: float, who: str) -> tuple[ModeState, Move | None]:
    """A person gives the lane back to the law: a HALT by the law ends."""
    if state.mode is not Mode.HALT:
        return state, None
    after, move = _from_halt(state, at, "the lane was given back to the law")
    return after, replace(move, who=who)


def _to_halt(state: ModeState, at: float, cause: str, numbers: Mapping[str, float]) -> tuple[ModeState, Move]:
    after = replace(_changed(state, Mode.HALT, at), window=())
    return after, Move(from_mode=state.mode, to_mode=Mode.HALT, at=at, cause=cause, numbers=numbers)


def _from_halt(state: ModeState, at: float, cause: str) -> tuple[ModeState, Move]:
    after = replace(_changed(state, Mode.NORMAL, at), window=())
    return after, Move(from_mode=Mode.HALT, to_mode=Mode.NORMAL, at=at, cause=cause)


def _changed(state: ModeState, mode: Mode, at: float) -> ModeState:
    """After a change of mode all evidence is collected anew, except the written rule's counts."""
    away, reduced = mode is Mode.EMERGENCY, mode is Mode.REDUCED
    before = sick_part(state.evidence, at)
    return replace(
        state,
        mode=mode,
        since=at,
        fresh=(),
        evidence=(),
        row=fault.NO_ROW,
        sick_row=0,
        good_row=0,
        barred_row=0,
        barred=False,
        unpaid=state.unpaid if mode is Mode.HALT else None,
        locked=state.locked if mode is Mode.HALT else None,
        away_since=at if away else None,
        outages=(*(begun for begun in state.outages if at - begun < RELAPSE_S), at)[-6:] if away else state.outages,
        probes=1 if away else 0,
        share=REDUCED_SHARE if reduced else 1.0,
        trial=(at, before, 0, 0) if reduced else None,
    )


def _sick(state: ModeState, answer: Answer, thresholds: Thresholds) -> tuple[ModeState, Move | None]:
    row = fault.lengthened(state.row, answer.witness.call if answer.witness else None)
    state = replace(state, row=row, sick_row=fault.worth(row), sick_at=answer.at, good_row=0)
    match state.mode:
        case Mode.NORMAL:
            why = _too_sick(
                state, answer, thresholds.reduced_rate, thresholds.reduced_count, SICK_ROW, thresholds
            ) or _hourly(state, answer.at, thresholds)
            return _up(state, Mode.REDUCED, answer.at, why)
        case Mode.REDUCED:
            why = _too_sick(
                state, answer, thresholds.emergency_rate, thresholds.emergency_count, EMERGENCY_ROW, thresholds
            ) or _slower(state, answer.at, thresholds)
            return _up(state, Mode.EMERGENCY, answer.at, why)
        case _:
            return replace(state, probes=1), None


def _good(state: ModeState, at: float) -> tuple[ModeState, Move | None]:
    if state.mode is Mode.EMERGENCY:
        good_row = state.good_row + 1
        if good_row < min(GOOD_MOST, GOOD_ENOUGH * 2 ** max(0, len(state.outages) - 1)):
            return replace(state, good_row=good_row, probes=min(PROBES_MOST, state.probes * 2)), None
        why = (f"{good_row} good answers in a row to probes", {"good_row": float(good_row)})
        return _down(state, Mode.REDUCED, at, why)
    if state.mode is Mode.REDUCED:
        good, sick = totals(state.fresh)
        rate = in_percent(sick, good + sick)
        if any(good + sick >= least and rate <= most for least, most in WELL):
            why = (f"{sick} of {good + sick} answers sick since the last change ({rate:.3g} %)", _numbers(state, at))
            return _down(state, Mode.NORMAL, at, why)
    return state, None


_Why = tuple[str, Mapping[str, float]]


def _too_sick(
    state: ModeState, answer: Answer, rate: float, count: int, row: int, thresholds: Thresholds
) -> _Why | None:
    """Why the lane steps up; None: it does not."""
    numbers = _numbers(state, answer.at)
    if thresholds.literal or _low_volume(state, answer.at):
        _, sick = totals(last_minutes(state.window, answer.at, WINDOW_MIN))
        if sick >= count:
            why = f"{sick} sick answers in {WINDOW_MIN} min (threshold {count})"
            return why, {**numbers, "threshold": float(count)}
        good, sick = totals(last_minutes(state.fresh, answer.at, WINDOW_MIN))
        if good + sick >= RATE_LEAST and in_percent(sick, good + sick) >= rate:
            return _rate(sick, good + sick, f"threshold {rate:g} %"), {**numbers, "threshold": rate}
    if thresholds.literal:
        return None
    good, sick = totals(last_evidence(state.evidence, answer.at))
    answers = good + sick + answer.older
    bound = 100 * wilson(sick, answers)
    if answers >= EVIDENCE_LEAST and bound >= rate:
        why = _rate(sick, answers, f"at least {bound:.3g} % by Wilson, threshold {rate:g} %")
        return why, {**numbers, "threshold": rate, "wilson_percent": round(bound, 3), "older": float(answer.older)}
    if state.sick_row >= row + answer.older:
        return f"{state.sick_row} sick answers in a row", {**numbers, "threshold": float(row + answer.older)}
    return None


def _hourly(state: ModeState, at: float, thresholds: Thresholds) -> _Why | None:
    _, sick = totals(state.window)
    if sick <= HOURLY_SICK or not (thresholds.literal or _low_volume(state, at)):
        return None
    return f"{sick} sick answers in an hour", {**_numbers(state, at), "threshold": float(HOURLY_SICK)}


def _slower(state: ModeState, at: float, thresholds: Thresholds) -> _Why | None:
    """The written rule's other way to EMERGENCY: sick answers beyond the first threshold, and rising latency."""
    if not (thresholds.literal or _low_volume(state, at)):
        return None
    window = last_minutes(state.window, at, WINDOW_MIN)
    good, sick = totals(window)
    percent = in_percent(sick, good + sick)
    if good + sick < RATE_LEAST or percent <= thresholds.reduced_rate:
        return None
    if not rises([Slice(count.timed, count.latency_s) for count in window]):
        return None
    sick_too = _rate(sick, good + sick, f"threshold {thresholds.reduced_rate:g} %")
    return f"latency rises while {sick_too}", {**_numbers(state, at), "threshold": thresholds.reduced_rate}


def _rate(sick: int, answers: int, more: str) -> str:
    return f"{sick} of {answers} answers sick ({in_percent(sick, answers):.3g} %, {more})"


def _low_volume(state: ModeState, at: float) -> bool:
    """Whether the volume is low: at the last minute's rate, fewer than LOW_VOLUME answers in 15 minutes."""
    good, sick = totals(tuple(count for count in state.minute if count.number > at // SPAN_S - SPANS))
    span_s = min(60.0, max(1.0, at - (at if state.first_at is None else state.first_at)))
    return (good + sick) / span_s * 60 * WINDOW_MIN < LOW_VOLUME


def _numbers(state: ModeState, at: float) -> dict[str, float]:
    good, sick = totals(last_minutes(state.window, at, WINDOW_MIN))
    fresh_good, fresh_sick = totals(state.fresh)
    return {
        "sick": float(sick),
        "answers": float(good + sick),
        "sick_row": float(state.sick_row),
        "sick_percent": round(in_percent(fresh_sick, fresh_good + fresh_sick), 3),
        "answers_since_change": float(fresh_good + fresh_sick),
    }


def _up(state: ModeState, to_mode: Mode, at: float, why: _Why | None) -> tuple[ModeState, Move | None]:
    if why is None:
        return state, None
    # The row is kept: REDUCED begins at five in a row, EMERGENCY at ten in all.
    after = replace(_changed(state, to_mode, at), row=state.row, sick_row=state.sick_row)
    return after, Move(from_mode=state.mode, to_mode=to_mode, at=at, cause=why[0], numbers=why[1])


def _down(state: ModeState, to_mode: Mode, at: float, why: _Why) -> tuple[ModeState, Move]:
    after = replace(_changed(state, to_mode, at), window=())
    return after, Move(from_mode=state.mode, to_mode=to_mode, at=at, cause=why[0], numbers=why[1])


def _counted(state: ModeState, at: float, more: Count) -> ModeState:
    minute, span = int(at // 60), int(at // SPAN_S)
    trial = state.trial
    if trial is not None:
        trial = (trial[0], trial[1], trial[2] + more.good + more.sick, trial[3] + more.sick)
    return replace(
        state,
        window=added(state.window, minute, HOUR_MIN, more),
        fresh=added(state.fresh, minute, WINDOW_MIN, more),
        minute=added(state.minute, span, SPANS, more),
        evidence=added(state.evidence, span, EVIDENCE_S // SPAN_S, more),
        trial=trial,
    )


def measure(state: ModeState, now: float, sent: float) -> ModeState:
    """Note the rate of a lane without a pace while nothing holds it back: REDUCED is a share of that rate.

    Args:
        sent: Requests sent in all.
    """
    if state.mode is not Mode.NORMAL or sent == state.rate_sent:
        return state
    since = now - state.rate_at
    if since < 1.0:
        return state
    rate = max(0.0, sent - state.rate_sent) / since if state.rate_at else 0.0
    return replace(state, rate=rate, rate_at=now, rate_sent=sent)
