"""Is the provider sick, or does a person say so, and what may a lane send meanwhile?

Evidence, by default: NORMAL → REDUCED when the sick share of the last 30 s is 15 % even at its Wilson lower bound, or
at 5 sick answers in a row; REDUCED → EMERGENCY at 30 % or 10 in a row. Failures come back faster than answers, so calls
that are still out count as healthy in the share, and lengthen the row that is needed. The written rule, at low
volume or where the policy is literal: 15 % or 5 sick answers in 15 minutes, 30 % or 10. What an answer is worth as
evidence depends on who asked (`policy.fault`): one call, task or process that always fails is not its provider. Back
by hysteresis, a step at a time: from EMERGENCY by half-open probes, from REDUCED when nearly all is well; by time
alone where nothing is sent. A lane that has no quota or no key is in HALT, which stands beside that ladder. A pinned
mode wins over all of it, while the law goes on watching.

Pure: a state, an answer → a state, and a move on the ladder or none. `hold` says what follows for the lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import NamedTuple

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import MANY
from ratelimit_worker.contracts.lesson import Witness
from ratelimit_worker.policy import fault
from ratelimit_worker.policy.trend import Slice, Trend, latency_trend

WINDOW_MIN, HOUR_MIN = 15, 60  #: minutes that the written rule looks back, the current one included
HOURLY_SICK = 20  #: more of them in an hour mean REDUCED at low volume
RATE_LEAST = 5  #: answers without which the written rule's rate says nothing
LOW_VOLUME = 50  #: answers in 15 minutes, at the rate of the last one, from which a count of sick ones says nothing
SICK_ROW = 5  #: sick answers in a row that mean REDUCED (the same number stands in stores/lua/shared/record.lua)
EMERGENCY_ROW = 10  #: sick answers in a row that mean EMERGENCY
#: A lane of which no sick answer came for so long steps down, seconds: from REDUCED; from EMERGENCY, which is probed as
#: long as anything waits, once nothing is out.
QUIET_S: Mapping[Mode, float] = {Mode.REDUCED: 60.0, Mode.EMERGENCY: 300.0}
SPAN_S, SPANS = 5, 12  #: a minute in spans
EVIDENCE_S = 30  #: window of the sick share, seconds
CALLS_S = 120  #: window in which calls are looked at, each once, seconds
EVIDENCE_LEAST = 20  #: answers without which it says nothing
Z = 1.64  #: of the Wilson lower bound: 95 % one-sided (Wilson 1927)
GOOD_ENOUGH = 5  #: good answers in a row that end an outage
#: A provider that falls over again as soon as it is up: each outage within so many seconds needs twice as many good
#: answers to end as the one before, at most so many.
RELAPSE_S, GOOD_MOST = 60.0, 80
PROBES_MOST = 4  #: probes at once
GAP_SHARE, GAP_LEAST_S, GAP_MOST_S = 0.03, 0.6, 30.0  #: gap between probes: a share of the outage so far
ALL = "*"  #: stands for all lanes, also those that come later
#: (answers at least, sick ones at most in %): either ends REDUCED. The second: some always fail a tenth.
WELL = ((10, 10.0), (40, 13.5))
REDUCED_SHARE, PINNED_REDUCED_SHARE = 0.7, 0.5  #: of the pace
#: REDUCED is an experiment: so often (seconds) it is asked whether the sick share has fallen to this part of what it
#: was; where it has not, the errors are not of our making, and this share of the pace is given back.
TRIAL_S, TRIAL_FALL, TRIAL_BACK, TRIAL_LEAST = 4.0, 0.75, 0.1, 5
UNTOLD_PER_S = 4.0  #: least pace that a lane without one is reduced from, calls/s
HALT_GAP_S = 300.0  #: between probes while the law has halted a lane
#: A key that is replaced is soon accepted, and asking costs nothing: probes begin close together and have this share of
#: the time so far between them; beyond GAP_MOST_S it is HALT_GAP_S.
KEY_GAP_SHARE, KEY_GAP_LEAST_S = 0.2, 5.0
BARRED_ROW = 5  #: answers in a row, and no good one since, that say that the key is worth nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When the law moves a lane, as a person has set it."""

    reduced_rate: float = 15.0  #: % of the answers since the last change, or of the last 30 s
    reduced_count: int = 5  #: sick answers in 15 minutes
    emergency_rate: float = 30.0
    emergency_count: int = 10
    literal: bool = False  #: the written rule at any volume
    refusals_count: bool = False  #: 429s are sick too
    escalates: bool = True  #: False: nothing moves by itself, and no provider counts as away


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Calls per minute of a lane without adaptive pace, by mode; the last is every lane's pinned EMERGENCY."""

    normal: float = 60.0
    reduced: float = 30.0
    emergency: float = 10.0


class Count(NamedTuple):
    """Answers of one minute, or of one span."""

    number: int  #: of the minute or span, since the epoch
    good: int = 0
    sick: int = 0
    timed: int = 0  #: good ones of which the latency is known
    latency_s: float = 0.0  #: of these together, seconds


Counts = tuple[Count, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeState:
    """What the law remembers of one lane's health. Bounded: windows of an hour in minutes and of a minute in spans."""

    mode: Mode = Mode.NORMAL
    since: float = 0.0  #: last change, seconds; requests sent before it prove nothing
    first_at: float | None = None  #: the first answer ever
    window: Counts = ()  #: minutes since the last step down: what the written counts look at
    fresh: Counts = ()  #: minutes since the last change: what the written rates look at
    minute: Counts = ()  #: spans of the last minute: how much is going on
    evidence: Counts = ()  #: spans since the last change: the sick share of the last 30 s
    calls: Counts = ()  #: spans of 120 s, whatever the mode: good answers, and calls whose first attempt was sick
    tasks: fault.Parties = ()
    processes: fault.Parties = ()
    row: fault.Row = fault.NO_ROW  #: sick answers in a row that are believed
    sick_row: int = 0  #: what `row` is worth
    sick_at: float = 0.0  #: when the last of these came, seconds
    good_row: int = 0  #: good answers in a row to probes
    barred_row: int = 0  #: answers in a row that did not accept the key
    barred: bool = False  #: in HALT: because of the key; else the quota is used up
    away_since: float | None = None  #: of the outage, seconds; None: the provider is there
    outages: tuple[float, ...] = ()  #: when the late ones began, seconds; at most six
    width: int = 0  #: probes at once; 0: no bound
    share: float = 1.0  #: of the pace, in REDUCED
    trial: tuple[float, float, int, int] | None = None  #: (begun at, sick share before, answers, sick ones) in REDUCED
    rate: float = 0.0  #: calls/s that a lane without pace sent at last, in NORMAL
    rate_at: float = 0.0
    rate_sent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the law looks at in one answer. Neither sick nor good nor one of the last two: it changes nothing."""

    at: float  #: when it came, seconds
    sent_at: float  #: when its request left
    sick: bool = False
    good: bool = False
    quota: bool = False  #: nothing is left until somebody pays, or a day has passed
    barred: bool = False  #: the key was not accepted
    older: int = 0  #: calls still out that were sent before it
    witness: Witness | None = None  #: who asked; None: not told


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step on the ladder, and why."""

    from_mode: Mode
    to_mode: Mode
    at: float
    cause: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    who: str = "law"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A mode by hand."""

    id: str
    mode: Mode | None  #: None: back to the law, though all lanes are pinned
    at: float  #: seconds, Redis clock
    who: str
    reason: str = ""
    until: float | None = None  #: seconds; None: until somebody gives the lane back
    everywhere: bool = False  #: all lanes, also those that come later
    ended_by: str = ""  #: who gave it back, before or at `until`


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What a mode does to a lane."""

    share: float = 1.0  #: of the pace
    rpm: float | None = None  #: most calls per minute
    probes: int = 0  #: calls out at once; 0: no bound; `MANY`: as many as go, with the gap
    gap_s: float = 0.0  #: between two calls
    pause_s: float = 0.0  #: nothing starts for so long when it begins
    shut: bool = False  #: nothing is sent

    @property
    def binds(self) -> bool:
        """Whether it holds back a lane that has no pace of its own."""
        return self.shut or self.probes > 0 or self.rpm is not None


# ── the law ────────────────────────────────────────────────────────────────────────────────────────────────────────


def observe(state: ModeState, answer: Answer, thresholds: Thresholds) -> tuple[ModeState, Move | None]:
    """The state after one more answer, and the step that it caused."""
    if not thresholds.escalates:
        return state, None
    at = answer.at
    if state.first_at is None and (answer.sick or answer.good):
        state = replace(state, first_at=answer.sent_at)
    state = _heard(state, answer)
    if answer.quota and state.mode is not Mode.HALT:
        return _to_halt(state, at, "the provider says that the quota is used up", {})
    if answer.sent_at < state.since:
        return state, None  # it says how the provider was
    if answer.barred:
        row = state.barred_row + 1
        state = replace(state, barred_row=row)
        if row < BARRED_ROW or state.mode is Mode.HALT:
            return state, None
        cause = f"{row} answers in a row did not accept the key"
        after, move = _to_halt(state, at, cause, {"barred_row": float(row)})
        return replace(after, barred=True), move
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
    """The state after good answers of which no more is known: they count only where all is well.

    Args:
        at: When they are counted, seconds.
    """
    if not answers or state.mode is not Mode.NORMAL:
        return state  # when their requests left is not known, so they prove nothing
    first_at = at if state.first_at is None else state.first_at
    state = replace(state, calls=_add(state.calls, int(at // SPAN_S), CALLS_S // SPAN_S, Count(0, good=answers)))
    return _counted(replace(state, first_at=first_at, barred_row=0), at, Count(0, good=answers))


def step(state: ModeState, now: float) -> ModeState:
    """What time alone changes: REDUCED gives pace back where the errors are not of our making."""
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
    """The state of a lane that nobody uses: a mode ends by itself where no sick answer came for long.

    Args:
        out: Calls that are out; None: not known. While a probe may be, EMERGENCY stays.
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
    """Of the calls of late, the share whose first attempt was sick; 0 to 1.

    Of the last 30 s or of the last 120, whichever is more: a share that rises is seen at once, and is not forgotten
    while the last calls of a batch still wait for their next attempt. One sick answer is left out: it may be that of
    the call which asks how others fare.
    """
    spans = (EVIDENCE_S // SPAN_S, CALLS_S // SPAN_S)
    windows = [_totals(tuple(one for one in state.calls if one.number > now // SPAN_S - most)) for most in spans]
    return max(max(0, sick - 1) / max(1, good + sick - 1) for good, sick in windows)


def _heard(state: ModeState, answer: Answer) -> ModeState:
    """What is remembered of calls, tasks and processes, whatever the mode and whenever the request left."""
    if not (answer.sick or answer.good):
        return state
    who, at = answer.witness, answer.at
    if not (answer.sick and who is not None and who.again):
        more = Count(0, int(answer.good), int(answer.sick))
        state = replace(state, calls=_add(state.calls, int(at // SPAN_S), CALLS_S // SPAN_S, more))
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
    """Whether a sick answer is one more in the shares: a call's first, and others of it where several calls fail."""
    if witness is None or not witness.again:
        return True
    return fault.worth(fault.lengthened(state.row, witness.call)) > fault.worth(state.row)


def _doubted(state: ModeState, answer: Answer) -> bool:
    """Whether a sick answer says more about who asked than about the provider."""
    who = answer.witness
    return who is not None and (
        who.suspect
        or fault.doubted(state.tasks, who.task, answer.at)
        or fault.doubted(state.processes, who.process, answer.at)
    )


def release(state: ModeState, at: float, who: str) -> tuple[ModeState, Move | None]:
    """A person gives the lane back: what the law has halted goes on."""
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
    """In another mode all is looked at anew, but for the window of the counts."""
    away, reduced = mode is Mode.EMERGENCY, mode is Mode.REDUCED
    before = _share(state.evidence, at)
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
        away_since=at if away else None,
        outages=(*(begun for begun in state.outages if at - begun < RELAPSE_S), at)[-6:] if away else state.outages,
        width=1 if away else 0,
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
            return replace(state, width=1), None


def _good(state: ModeState, at: float) -> tuple[ModeState, Move | None]:
    if state.mode is Mode.EMERGENCY:
        good_row = state.good_row + 1
        if good_row < min(GOOD_MOST, GOOD_ENOUGH * 2 ** max(0, len(state.outages) - 1)):
            return replace(state, good_row=good_row, width=min(PROBES_MOST, state.width * 2)), None
        why = (f"{good_row} good answers in a row to probes", {"good_row": float(good_row)})
        return _down(state, Mode.REDUCED, at, why)
    if state.mode is Mode.REDUCED:
        good, sick = _totals(state.fresh)
        rate = _percent(sick, good + sick)
        if any(good + sick >= least and rate <= most for least, most in WELL):
            why = (f"{sick} of {good + sick} answers sick since the last change ({rate:.3g} %)", _numbers(state, at))
            return _down(state, Mode.NORMAL, at, why)
    return state, None


_Why = tuple[str, Mapping[str, float]]


def _too_sick(
    state: ModeState, answer: Answer, rate: float, count: int, row: int, thresholds: Thresholds
) -> _Why | None:
    """Why the lane has to step up; None: it has not."""
    numbers = _numbers(state, answer.at)
    if thresholds.literal or _low_volume(state, answer.at):
        _, sick = _totals(_since(state.window, answer.at, WINDOW_MIN))
        if sick >= count:
            why = f"{sick} sick answers in {WINDOW_MIN} min (threshold {count})"
            return why, {**numbers, "threshold": float(count)}
        good, sick = _totals(_since(state.fresh, answer.at, WINDOW_MIN))
        if good + sick >= RATE_LEAST and _percent(sick, good + sick) >= rate:
            return _rate(sick, good + sick, f"threshold {rate:g} %"), {**numbers, "threshold": rate}
    if thresholds.literal:
        return None
    good, sick = _totals(_recent(state.evidence, answer.at))
    answers = good + sick + answer.older
    bound = 100 * wilson(sick, answers)
    if answers >= EVIDENCE_LEAST and bound >= rate:
        why = _rate(sick, answers, f"at least {bound:.3g} % by Wilson, threshold {rate:g} %")
        return why, {**numbers, "threshold": rate, "wilson_percent": round(bound, 3), "older": float(answer.older)}
    if state.sick_row >= row + answer.older:
        return f"{state.sick_row} sick answers in a row", {**numbers, "threshold": float(row + answer.older)}
    return None


def _hourly(state: ModeState, at: float, thresholds: Thresholds) -> _Why | None:
    _, sick = _totals(state.window)
    if sick <= HOURLY_SICK or not (thresholds.literal or _low_volume(state, at)):
        return None
    return f"{sick} sick answers in an hour", {**_numbers(state, at), "threshold": float(HOURLY_SICK)}


def _slower(state: ModeState, at: float, thresholds: Thresholds) -> _Why | None:
    """The written rule's other way to EMERGENCY: sick beyond the first threshold, and getting slower."""
    if not (thresholds.literal or _low_volume(state, at)):
        return None
    window = _since(state.window, at, WINDOW_MIN)
    good, sick = _totals(window)
    percent = _percent(sick, good + sick)
    if good + sick < RATE_LEAST or percent <= thresholds.reduced_rate:
        return None
    if latency_trend([Slice(count.timed, count.latency_s) for count in window]) is not Trend.DEGRADING:
        return None
    sick_too = _rate(sick, good + sick, f"threshold {thresholds.reduced_rate:g} %")
    return f"latency rises while {sick_too}", {**_numbers(state, at), "threshold": thresholds.reduced_rate}


def _rate(sick: int, answers: int, more: str) -> str:
    return f"{sick} of {answers} answers sick ({_percent(sick, answers):.3g} %, {more})"


def wilson(part: int, whole: int) -> float:
    """Lower bound of a share, 0 to 1: what it is at least, with 95 % (score interval; Wilson 1927)."""
    if whole <= 0:
        return 0.0
    share, z2 = part / whole, Z * Z
    middle = share + z2 / (2 * whole)
    spread = Z * sqrt(share * (1 - share) / whole + z2 / (4 * whole * whole))
    return max(0.0, (middle - spread) / (1 + z2 / whole))


def _low_volume(state: ModeState, at: float) -> bool:
    """Whether, at the rate of the last minute, fewer answers would come in 15 than make a count say nothing."""
    good, sick = _totals(tuple(count for count in state.minute if count.number > at // SPAN_S - SPANS))
    span_s = min(60.0, max(1.0, at - (at if state.first_at is None else state.first_at)))
    return (good + sick) / span_s * 60 * WINDOW_MIN < LOW_VOLUME


def _numbers(state: ModeState, at: float) -> dict[str, float]:
    good, sick = _totals(_since(state.window, at, WINDOW_MIN))
    fresh_good, fresh_sick = _totals(state.fresh)
    return {
        "sick": float(sick),
        "answers": float(good + sick),
        "sick_row": float(state.sick_row),
        "sick_percent": round(_percent(fresh_sick, fresh_good + fresh_sick), 3),
        "answers_since_change": float(fresh_good + fresh_sick),
    }


def _up(state: ModeState, to_mode: Mode, at: float, why: _Why | None) -> tuple[ModeState, Move | None]:
    if why is None:
        return state, None
    # The row goes on: from NORMAL at five in a row to EMERGENCY at ten in all.
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
        window=_add(state.window, minute, HOUR_MIN, more),
        fresh=_add(state.fresh, minute, WINDOW_MIN, more),
        minute=_add(state.minute, span, SPANS, more),
        evidence=_add(state.evidence, span, EVIDENCE_S // SPAN_S, more),
        trial=trial,
    )


def _add(counts: Counts, number: int, most: int, more: Count) -> Counts:
    """The counts with more, without what is too old. Answers come nearly in order: a late one counts now."""
    newest = max(number, counts[-1].number) if counts else number
    kept = tuple(count for count in counts if count.number > newest - most)
    last = kept[-1] if kept and kept[-1].number == newest else Count(newest)
    rest = kept[:-1] if kept and kept[-1].number == newest else kept
    summed = Count(
        newest, last.good + more.good, last.sick + more.sick, last.timed + more.timed, last.latency_s + more.latency_s
    )
    return (*rest, summed)


def _since(counts: Counts, at: float, minutes: int) -> Counts:
    return tuple(count for count in counts if count.number > at // 60 - minutes)


def _recent(counts: Counts, at: float) -> Counts:
    return tuple(count for count in counts if count.number > at // SPAN_S - EVIDENCE_S // SPAN_S)


def _share(counts: Counts, at: float) -> float:
    good, sick = _totals(_recent(counts, at))
    return sick / (good + sick) if good + sick else 0.0


def _totals(counts: Counts) -> tuple[int, int]:
    return sum(count.good for count in counts), sum(count.sick for count in counts)


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def measure(state: ModeState, now: float, sent: float) -> ModeState:
    """Note how fast a lane without pace goes while nothing holds it back: what REDUCED is a share of.

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


# ── pins ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def lives(pin: Pin | None, now: float) -> bool:
    """Whether the pin holds at `now`."""
    return pin is not None and (pin.until is None or now < pin.until)


def governing(own: Pin | None, everywhere: Pin | None, now: float) -> Pin | None:
    """The pin that holds in a lane: the newest that lives, its own or that of all lanes; None: the law governs.

    The newest, not the narrowest: `halt` for all must also stop a lane that somebody pinned to EMERGENCY before.
    """
    living = [pin for pin in (everywhere, own) if pin is not None and lives(pin, now)]
    newest = max(living, key=lambda pin: pin.at, default=None)
    return newest if newest is not None and newest.mode is not None else None


# ── what a mode does ───────────────────────────────────────────────────────────────────────────────────────────────


def hold(
    state: ModeState, pin: Pin | None, now: float, *, rates: Rates, adaptive: bool = True, paced: bool = True
) -> Hold:
    """What the mode does to a lane now.

    Args:
        pin: The one that governs.
        now: Seconds.
        adaptive: False: fixed rates.
        paced: False: the lane has no pace of its own, so shares are of what it sent at last.
    """
    if pin is not None:
        return _pinned(state, pin, now, rates, adaptive, paced)
    if state.mode is Mode.HALT:
        return Hold(probes=1, gap_s=_halt_gap_s(state, now))
    if not adaptive and paced:
        return Hold(rpm=_fixed(state.mode, rates))
    if state.mode is Mode.REDUCED:
        return _reduced(state, state.share, paced)
    return _probes(state, now)


def _halt_gap_s(state: ModeState, now: float) -> float:
    gap_s = max(KEY_GAP_LEAST_S, KEY_GAP_SHARE * (now - state.since)) if state.barred else HALT_GAP_S
    return gap_s if gap_s <= GAP_MOST_S else HALT_GAP_S


def _probes(state: ModeState, now: float) -> Hold:
    """Half-open probes while the provider is away; else nothing."""
    if state.away_since is None:
        return Hold()
    gap_s = min(GAP_MOST_S, max(GAP_LEAST_S, GAP_SHARE * (now - state.away_since)))
    return Hold(probes=state.width, gap_s=0.0 if state.good_row else gap_s)


def _pinned(state: ModeState, pin: Pin, now: float, rates: Rates, adaptive: bool, paced: bool) -> Hold:
    match pin.mode:
        case Mode.HALT:
            return Hold(shut=True)
        case Mode.EMERGENCY:
            # What was released before and has not begun must go back, or it would come on top: so a pause at first.
            # Then pace and gap both hold, since a person may set the lane's pace meanwhile.
            gap_s = 60.0 / rates.emergency
            if now - pin.at < gap_s:
                return Hold(rpm=rates.emergency, pause_s=gap_s)
            return Hold(rpm=rates.emergency, probes=MANY, gap_s=gap_s)
        case Mode.REDUCED if not adaptive and paced:
            return Hold(rpm=_fixed(Mode.REDUCED, rates))
        case Mode.REDUCED:  # a ceiling: an outage is probed as in a lane that nobody pinned
            probes, reduced = _probes(state, now), _reduced(state, PINNED_REDUCED_SHARE, paced)
            return replace(reduced, probes=probes.probes, gap_s=probes.gap_s)
        case _:
            return Hold(rpm=None if adaptive or not paced else rates.normal)


def _reduced(state: ModeState, share: float, paced: bool) -> Hold:
    return Hold(share=share) if paced else Hold(rpm=60.0 * share * max(UNTOLD_PER_S, state.rate))


def _fixed(mode: Mode, rates: Rates) -> float:
    return {Mode.NORMAL: rates.normal, Mode.REDUCED: min(rates.normal, rates.reduced)}.get(
        mode, min(rates.normal, rates.emergency)
    )
