"""Is the provider sick, or does a person say so, and what may a lane send meanwhile?

The written rule: over 15 minutes, 15 % sick answers or 5 of them → REDUCED; 30 % or 10 → EMERGENCY; back by hysteresis,
one step at a time. Beside it, 5 sick answers in a row say that the provider is away, whatever the window holds: then
only probes go out, one at a time and a growing gap apart, each good answer doubles their number, and five end it. A
pinned mode wins over all of it, while the law goes on watching.

Pure: a state, an answer → a state, and a move on the ladder or none. `hold` says what follows for the lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ratelimit_worker.calls import Mode

WINDOW_MIN = 15  #: minutes that the written rule looks back, the current one included
SICK_ROW = 5  #: sick answers in a row: the provider is away (the same number stands in stores/lua/_lane.lua)
EMERGENCY_ROW = 10  #: sick answers in a row that mean EMERGENCY
RATE_LEAST = 5  #: answers without which a rate says nothing
LOW_VOLUME = 50  #: answers in the window from which a count of sick ones says nothing
GOOD_ENOUGH = 5  #: good answers in a row that end an outage
PROBES_MOST = 4  #: probes at once
GAP_SHARE, GAP_LEAST_S, GAP_MOST_S = 0.03, 0.5, 30.0  #: gap between probes: a share of the outage so far
ALL = "*"  #: stands for all lanes, also those that come later
#: (answers at least, sick ones at most in %): either ends REDUCED. The second: some always fail a tenth.
WELL = ((10, 10.0), (40, 13.5))
REDUCED_SHARE, PINNED_REDUCED_SHARE = 0.7, 0.5  #: of the pace
UNTOLD_PER_S = 4.0  #: least pace that a lane without one is reduced from, calls/s
HALT_GAP_S = 300.0  #: between probes while the law has halted a lane
MANY = 1_000_000  #: a width that bounds nothing but lets a gap hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When the law moves a lane, as a person has set it."""

    reduced_rate: float = 15.0  #: % of the answers since the last change
    reduced_count: int = 5  #: sick answers in the window
    emergency_rate: float = 30.0
    emergency_count: int = 10
    low_volume: float = LOW_VOLUME  #: answers in the window from which counts no longer hold; inf: they always do
    refusals_count: bool = False  #: 429s are sick too
    escalates: bool = True  #: False: nothing moves by itself, and no provider counts as away


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Calls per minute of a lane without adaptive pace, by mode; the last is every lane's pinned EMERGENCY."""

    normal: float = 60.0
    reduced: float = 30.0
    emergency: float = 10.0


@dataclass(frozen=True, slots=True)
class Minute:
    """Answers of one minute."""

    minute: int  #: since the epoch
    good: int = 0
    sick: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeState:
    """What the law remembers of one lane's health. Bounded: two windows of at most 15 minutes."""

    mode: Mode = Mode.NORMAL
    since: float = 0.0  #: last change, seconds; requests sent before it prove nothing
    window: tuple[Minute, ...] = ()  #: since the last step down: what the counts look at
    fresh: tuple[Minute, ...] = ()  #: since the last change: what the rates look at
    sick_row: int = 0
    good_row: int = 0  #: good answers in a row to probes
    away_since: float | None = None  #: seconds; None: the provider is there
    width: int = 0  #: probes at once; 0: no bound
    rate: float = 0.0  #: calls/s that a lane without pace sent at last, in NORMAL
    rate_at: float = 0.0
    rate_sent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step on the ladder, and why."""

    from_mode: Mode
    to_mode: Mode
    at: float
    cause: str
    numbers: Mapping[str, float] = field(default_factory=dict)


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
    width: int = 0  #: calls out at once; 0: no bound
    gap_s: float = 0.0  #: between two calls
    pause_s: float = 0.0  #: nothing starts for so long when it begins
    shut: bool = False  #: nothing is sent

    @property
    def binds(self) -> bool:
        """Whether it holds back a lane that has no pace of its own."""
        return self.shut or self.width > 0 or self.rpm is not None


# ── the law ────────────────────────────────────────────────────────────────────────────────────────────────────────


def provider_away(sick_row: int, mode: Mode = Mode.NORMAL, escalates: bool = True) -> bool:
    """Whether the lane knows its provider to be sick, so that a sick answer uses no try.

    Args:
        sick_row: Sick answers in a row up to now.
        mode: In which the law has the lane.
        escalates: False where NORMAL is pinned or escalation is off: no probes guard the provider then, so calls must
            back off by themselves.
    """
    return escalates and (sick_row >= SICK_ROW or mode is Mode.EMERGENCY)


def observe(
    state: ModeState, *, at: float, sent_at: float, sick: bool, good: bool, thresholds: Thresholds
) -> tuple[ModeState, Move | None]:
    """The state after one more answer, and the step that it caused.

    Args:
        at: When the answer came, seconds.
        sent_at: When its request left; answers to requests sent before the last change prove nothing.
        sick, good: Neither: a refusal, or the caller's own mistake; it changes nothing.
    """
    if not (sick or good) or not thresholds.escalates:
        return state, None
    if sent_at < max(state.since, state.away_since or 0.0):
        return state, None
    state = _counted(state, at, good=int(not sick), sick=int(sick))
    return _sick(state, at, thresholds) if sick else _good(state, at)


def count_good(state: ModeState, at: float, answers: int) -> ModeState:
    """The state after good answers of which no more is known: they count only where all is well.

    Args:
        at: When they are counted, seconds.
    """
    if not answers or state.mode is not Mode.NORMAL or state.away_since is not None:
        return state  # when their requests left is not known, so they prove nothing
    return _counted(state, at, good=answers)


def _sick(state: ModeState, at: float, thresholds: Thresholds) -> tuple[ModeState, Move | None]:
    row = state.sick_row + 1
    state = replace(state, sick_row=row, good_row=0)
    if state.away_since is not None or row >= SICK_ROW:
        state = replace(state, away_since=at if state.away_since is None else state.away_since, width=1)
    match state.mode:
        case Mode.NORMAL:
            why = _too_sick(state, thresholds.reduced_rate, thresholds.reduced_count, SICK_ROW, thresholds)
            return _up(state, Mode.REDUCED, at, why)
        case Mode.REDUCED:
            why = _too_sick(state, thresholds.emergency_rate, thresholds.emergency_count, EMERGENCY_ROW, thresholds)
            return _up(state, Mode.EMERGENCY, at, why)
        case _:
            return state, None


def _good(state: ModeState, at: float) -> tuple[ModeState, Move | None]:
    state = replace(state, sick_row=0)
    if state.away_since is not None:
        good_row = state.good_row + 1
        if good_row < GOOD_ENOUGH:
            return replace(state, good_row=good_row, width=min(PROBES_MOST, state.width * 2)), None
        state = replace(state, good_row=0, away_since=None, width=0)
        if state.mode is Mode.EMERGENCY:
            why = (f"{good_row} good answers in a row to probes", {"good_row": float(good_row)})
            return _down(state, Mode.REDUCED, at, why)
        # It was a short one: what failed until now says nothing about now.
        return replace(state, fresh=(Minute(int(at // 60), good=good_row),)), None
    if state.mode is Mode.REDUCED:
        good, sick = _totals(state.fresh)
        rate = _percent(sick, good + sick)
        if any(good + sick >= least and rate <= most for least, most in WELL):
            why = (f"{sick} of {good + sick} answers sick since the last change ({rate:.3g} %)", _numbers(state))
            return _down(state, Mode.NORMAL, at, why)
    return state, None


_Why = tuple[str, Mapping[str, float]]


def _too_sick(state: ModeState, rate: float, count: int, row: int, thresholds: Thresholds) -> _Why | None:
    """Why the lane has to step up; None: it has not."""
    good, sick = _totals(state.window)
    fresh_good, fresh_sick = _totals(state.fresh)
    answers = fresh_good + fresh_sick
    percent = _percent(fresh_sick, answers)
    numbers = _numbers(state)
    if sick >= count and good + sick < thresholds.low_volume:
        return f"{sick} sick answers in {WINDOW_MIN} min (threshold {count})", {**numbers, "threshold": float(count)}
    if answers >= RATE_LEAST and percent >= rate:
        return (
            f"{fresh_sick} of {answers} answers sick ({percent:.3g} %, threshold {rate:g} %)",
            {**numbers, "threshold": rate},
        )
    if state.sick_row >= row:
        return f"{state.sick_row} sick answers in a row", {**numbers, "threshold": float(row)}
    return None


def _numbers(state: ModeState) -> dict[str, float]:
    good, sick = _totals(state.window)
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
    after = replace(state, mode=to_mode, since=at, fresh=())
    if to_mode is Mode.EMERGENCY:  # half-open probes, also where good answers came in between
        after = replace(after, away_since=at if state.away_since is None else state.away_since, width=1, good_row=0)
    return after, Move(from_mode=state.mode, to_mode=to_mode, at=at, cause=why[0], numbers=why[1])


def _down(state: ModeState, to_mode: Mode, at: float, why: _Why) -> tuple[ModeState, Move]:
    after = replace(state, mode=to_mode, since=at, fresh=(), window=())
    return after, Move(from_mode=state.mode, to_mode=to_mode, at=at, cause=why[0], numbers=why[1])


def _counted(state: ModeState, at: float, *, good: int = 0, sick: int = 0) -> ModeState:
    minute = int(at // 60)
    return replace(
        state,
        window=_add(state.window, minute, good=good, sick=sick),
        fresh=_add(state.fresh, minute, good=good, sick=sick),
    )


def _add(window: tuple[Minute, ...], minute: int, *, good: int, sick: int) -> tuple[Minute, ...]:
    """The window with more answers, without what is too old. Answers come nearly in order: a late one counts now."""
    newest = max(minute, window[-1].minute) if window else minute
    kept = tuple(bucket for bucket in window if bucket.minute > newest - WINDOW_MIN)
    last = kept[-1] if kept and kept[-1].minute == newest else Minute(newest)
    counted = replace(last, good=last.good + good, sick=last.sick + sick)
    return (*(bucket for bucket in kept if bucket is not last), counted)


def _totals(window: tuple[Minute, ...]) -> tuple[int, int]:
    return sum(bucket.good for bucket in window), sum(bucket.sick for bucket in window)


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
        return Hold(width=1, gap_s=HALT_GAP_S)
    if not adaptive and paced:
        return Hold(rpm=_fixed(state.mode, rates))
    if state.away_since is not None:
        gap_s = min(GAP_MOST_S, max(GAP_LEAST_S, GAP_SHARE * (now - state.away_since)))
        return Hold(width=state.width, gap_s=0.0 if state.good_row else gap_s)
    if state.mode is Mode.REDUCED:
        return _reduced(state, REDUCED_SHARE, paced)
    return Hold()


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
            return Hold(rpm=rates.emergency, width=MANY, gap_s=gap_s)
        case Mode.REDUCED if not adaptive and paced:
            return Hold(rpm=_fixed(Mode.REDUCED, rates))
        case Mode.REDUCED:
            return _reduced(state, PINNED_REDUCED_SHARE, paced)
        case _:
            return Hold(rpm=None if adaptive or not paced else rates.normal)


def _reduced(state: ModeState, share: float, paced: bool) -> Hold:
    return Hold(share=share) if paced else Hold(rpm=60.0 * share * max(UNTOLD_PER_S, state.rate))


def _fixed(mode: Mode, rates: Rates) -> float:
    return {Mode.NORMAL: rates.normal, Mode.REDUCED: min(rates.normal, rates.reduced)}.get(
        mode, min(rates.normal, rates.emergency)
    )
