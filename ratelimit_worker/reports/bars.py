"""Bars in words: what holds a call back, as sentences for `explain` and as a few words for tables. Pure.

What the bar is, and until when, comes from the script that decides it (stores/lua/bar.lua); nothing is guessed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ratelimit_worker.plural import many
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports.words import count, moment, per_min, seconds, unknown_task

Paces = Mapping[str, float]  #: dimension → units a minute

_SHORT = {
    BarKind.DUE: "its time",
    BarKind.CLAIM: "another's answer",
    BarKind.TURN: "others before it",
    BarKind.RETRIES: "the retry budget",
    BarKind.SUSPECT: "another suspect",
    BarKind.NEWER: "a newer worker",
    BarKind.GATE: "gate",
    BarKind.PACE: "pace",
    BarKind.QUOTA: "quota of the day",
    BarKind.BUDGET: "budget of money",
    BarKind.BEGINS: "calls that no worker has begun",
    BarKind.PROBES: "probes that are out",
    BarKind.RAMP: "ramp",
    BarKind.FLIGHT: "calls in flight",
    BarKind.CONCURRENCY: "concurrency",
    BarKind.LENT: "its own calls on all slots",
    BarKind.TASK: "a worker that knows its task",
    BarKind.SLOTS: "slots",
    BarKind.PARENT: "parent",
}


def binding(bars: Sequence[Bar]) -> tuple[Bar, ...]:
    """The bars that decide: the one with the latest known end, and all whose end is not known."""
    last_s = max((bar.until_s for bar in bars if bar.until_s is not None), default=None)
    return tuple(bar for bar in bars if bar.until_s is None or bar.until_s == last_s)


def held_by(bars: Sequence[Bar] | None, at_s: float) -> str:
    """What holds a lane's next call back, in a few words such as "gate, 12.0 s"; "": nothing, or it is not known."""
    return "; ".join(_brief(bar, at_s) for bar in binding(bars or ()))


def _brief(bar: Bar, at_s: float) -> str:
    what = _SHORT[bar.kind]
    match bar:
        case Bar(kind=BarKind.GATE, detail="shut"):
            return "gate, shut"
        case Bar(kind=BarKind.GATE, detail="refused"):
            what = "gate after a refusal"
        case Bar(kind=BarKind.BUDGET):
            what = f"budget {bar.detail}, spent"
        case Bar(kind=BarKind.SLOTS, number=0):
            what = f"no worker on queue {bar.detail}"
        case Bar(kind=BarKind.SLOTS):
            what = f"slots of queue {bar.detail}"
        case Bar(kind=BarKind.PACE, detail=dimension) if dimension != "requests":
            what = f"pace of {dimension.replace('_', ' ')}"
        case Bar(kind=BarKind.PARENT, parent=Bar() as own):
            return f"parent {bar.detail}: {_brief(own, at_s)}"
    return what if bar.until_s is None else f"{what}, {seconds(max(0.0, bar.until_s - at_s))}"


def sentences(
    bars: Sequence[Bar],
    at_s: float,
    *,
    paces: Paces,
    parents: Mapping[str, Paces],
    tried: bool,
    pin_ends_s: float | None = None,
) -> tuple[str, ...]:
    """What holds a call back, a sentence each.

    Args:
        at_s: Now, seconds since the epoch, Redis clock.
        paces: Paces of the call's lane.
        parents: Paces of the lane's parents, by name.
        tried: Whether an attempt at the call was made before.
        pin_ends_s: When the lane's pin ends by itself, seconds since the epoch; None: no pin, or one without an end.
    """
    shown = binding(bars)
    turn = next((bar for bar in shown if bar.kind is BarKind.TURN), None)
    before = f"{many(turn.number, 'call goes', 'calls go')} before it" if turn is not None else "it is the next"
    said = []
    for bar in shown:
        if bar.kind is BarKind.DUE:
            left = seconds(max(0.0, (bar.until_s or at_s) - at_s))
            said.append(f"time: due in {left}, {'after a failed attempt' if tried else 'as its sender asked'}")
        elif bar.kind is BarKind.PARENT and bar.parent is not None:
            said.append(f"parent {bar.detail}: {_of_parent(bar.parent, at_s, parents.get(bar.detail, {}))}")
        elif bar.kind is BarKind.PACE and bar.until_s is not None:
            what = "" if bar.detail == "requests" else f" {bar.detail.replace('_', ' ')}"
            said.append(f"pace: {before}, at {_pace(bar.detail, paces)}{what}")
        elif bar.kind is BarKind.GATE and bar.detail == "shut" and pin_ends_s is not None:
            said.append(f"gate: the lane's gate opens in {seconds(max(0.0, pin_ends_s - at_s))}, when the pin ends")
        elif bar.kind is not BarKind.TURN:
            said.append(_sentence(bar, at_s))
    if turn is not None and not any(words.startswith("pace: ") for words in said):
        said.append(f"turn: {before}")
    return tuple(said)


def _sentence(bar: Bar, at_s: float) -> str:
    match bar.kind:
        case BarKind.CLAIM:
            return f"the answer of call {bar.detail}, which asks the same"
        case BarKind.RETRIES:
            return "retries: it was tried before, others wait, and the lane's retry budget is spent"
        case BarKind.SUSPECT:
            return "turn: its worker died, and another such call runs; they go one at a time"
        case BarKind.NEWER:
            return "version: a worker of a newer version has to release it"
        case BarKind.GATE:
            return f"gate: the lane's gate {_opens(bar, at_s)}"
        case BarKind.PACE:
            return "pace: the lane is closed (0/min)"
        case BarKind.QUOTA:
            return f"quota: {count(bar.number)} {bar.detail} a day are used up until {_next_day(bar)}"
        case BarKind.BUDGET:
            period, until = "month" if bar.number == 2 else "day", "" if bar.until_s is None else moment(bar.until_s)
            return f"money: the budget {bar.detail!r} of this {period} is spent; there is money again {until}"
        case BarKind.BEGINS:
            return f"room: {many(bar.number, 'call is', 'calls are')} released and not begun by a worker yet"
        case BarKind.PROBES:
            return f"mode: only probes go out, and as many are out as may be ({count(bar.number)})"
        case BarKind.RAMP:
            return f"ramp: the lane does not know its pace yet, and {_out(bar.number)}"
        case BarKind.FLIGHT:
            return f"flight: {_out(bar.number)}, as many as the provider answers well"
        case BarKind.CONCURRENCY:
            return f"room: {_out(bar.number, ' of the lane')}, and its concurrency is reached"
        case BarKind.LENT:
            return f"room: {_out(bar.number, ' of the lane')}, and others have the slots that are free"
        case BarKind.TASK:
            return f"room: {unknown_task(bar.detail, bar.queue)}"
        case BarKind.SLOTS if bar.number == 0:
            return f"room: no worker takes calls from queue {bar.detail!r}"
        case BarKind.SLOTS:
            return f"room: no slot is free for this lane on queue {bar.detail!r}, which has {count(bar.number)}"
        case _:
            return str(bar.kind)


def _out(number: int, of: str = "") -> str:
    return many(number, f"call{of} is out", f"calls{of} are out")


def _of_parent(bar: Bar, at_s: float, paces: Paces) -> str:
    match bar.kind:
        case BarKind.PACE if bar.until_s is not None:
            return f"{_pace(bar.detail, paces)} {bar.detail.replace('_', ' ')}, shared by its lanes in turn"
        case BarKind.TURN:
            return f"it is the turn of another of its lanes; {many(bar.number, 'waits', 'wait')} there"
        case BarKind.CONCURRENCY:
            return f"{_out(bar.number, ' of its lanes')}, and its concurrency is reached"
        case BarKind.GATE:
            return f"its gate {_opens(bar, at_s)}"
        case BarKind.PACE:
            return "it is closed (0/min)"
        case _:
            return _sentence(bar, at_s).partition(": ")[2]


def _next_day(bar: Bar) -> str:
    if bar.until_s is None or round(bar.until_s) % 86_400 == 0:
        return "the next UTC day"
    return f"the next day of its zone, {moment(bar.until_s)[5:]}"


def _opens(bar: Bar, at_s: float) -> str:
    if bar.until_s is None:
        return "does not open by itself"
    why = {"refused": ", after a refusal", "mode": ", which the mode keeps between calls"}.get(bar.detail, "")
    return f"opens {_in(bar, at_s)}{why}"


def _in(bar: Bar, at_s: float) -> str:
    return f"in {seconds(max(0.0, (bar.until_s or at_s) - at_s))}"


def _pace(dimension: str, paces: Paces) -> str:
    return per_min(paces.get(dimension))
