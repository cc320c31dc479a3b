"""Was the promise kept? Judged from what provider, callers, database and workers saw; pure.

*lost*: accepted, and ended otherwise than by its own answer or an error that the fault allows. *stuck*: accepted, and
not ended when the rest was. *answered twice*: the provider answered it again, though it was in flight at no kill.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: An answer that left the provider is on its way to Redis for so long, at most, on a machine that is busy.
SETTLING_S = 2.0
#: Final outcomes of a call, as the database has them.
FINAL = frozenset({"answered", "failed"})
WINDOW_S = 5.0  #: the rate is counted over; shorter ones measure how busy the machine is


class Asked(NamedTuple):
    """One request as the provider saw it."""

    text: str
    at_s: float
    latency_s: float
    good: bool


class Row(NamedTuple):
    """One attempt as the database has it."""

    call_id: str
    number: int
    outcome: str


class Heard(NamedTuple):
    """How a call ended for its caller."""

    text: str
    end: str  #: "answered", "wrong answer", or an error's name

    @property
    def answered(self) -> bool:
        return self.end == "answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of one run of a fault."""

    accepted: Mapping[str, str]  #: call id -> text
    heard: Mapping[str, Heard]  #: call id -> how it ended; a call that is not there has not
    refused: Mapping[str, int]  #: error that `.delay()` raised -> how often
    asked: Sequence[Asked] = ()
    rows: Sequence[Row] = ()
    excused: Sequence[tuple[float, float]] = ()  #: from, until: what was in flight then may be asked again
    slots: int = 0  #: of the workers that live
    slots_used: int = 0  #: of these, those that took a call afterwards
    died: Sequence[str] = ()  #: workers that nobody killed, and that ended
    slowest_delay_s: float = 0.0
    recovered_s: float | None = None  #: from healed to the first good answer to a call; None: there was none
    rate: float | None = None  #: calls a second that the lane may send
    notes: Sequence[str] = ()  #: what a fault saw beside this, and what it should not have


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What may happen in a fault, beside that all is well."""

    errors: frozenset[str] = frozenset()  #: by which an accepted call may end
    refusals: frozenset[str] = frozenset()  #: that `.delay()` may raise
    delay_s: float = 10.0  #: longest `.delay()`; promises of 2 s have 3 here, for a busy machine
    recover_s: float = 60.0
    unrecorded: bool = False  #: rows may be missing: they were in what was lost
    twice: int = 0  #: calls that may be asked again although they were in flight at no kill
    deaths: int = 0  #: workers that may end by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The figures, and what of them breaks the promise."""

    accepted: int
    refused: int
    answered: int
    errors: Mapping[str, int]
    lost: int
    stuck: int
    again: int  #: answered twice, in flight at a kill
    twice: int  #: answered twice, and not
    rows_missing: int
    rows_doubled: int
    slots_lost: int
    most_in_window: int
    slowest_delay_s: float
    recovered_s: float | None
    broken: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> bool:
        return not self.broken


def judge(seen: Evidence, allowed: Allowed) -> Verdict:
    """The verdict on one run."""
    errors = Counter(heard.end for heard in seen.heard.values() if not heard.answered)
    lost = sum(n for end, n in errors.items() if end not in allowed.errors)
    stuck = [call_id for call_id in seen.accepted if call_id not in seen.heard]
    again, twice = repeated(seen.asked, seen.excused)
    missing, doubled = rows_of(seen)
    slots_lost = max(0, seen.slots - seen.slots_used)
    most = most_within([asked.at_s for asked in seen.asked], WINDOW_S)
    figures = Verdict(
        accepted=len(seen.accepted),
        refused=sum(seen.refused.values()),
        answered=sum(heard.answered for heard in seen.heard.values()),
        errors=dict(errors),
        lost=lost,
        stuck=len(stuck),
        again=again,
        twice=twice,
        rows_missing=missing,
        rows_doubled=doubled,
        slots_lost=slots_lost,
        most_in_window=most,
        slowest_delay_s=seen.slowest_delay_s,
        recovered_s=seen.recovered_s,
    )
    return _with_breaches(figures, seen, allowed)


def _with_breaches(figures: Verdict, seen: Evidence, allowed: Allowed) -> Verdict:
    broken = [
        f"{n} {what}"
        for n, what in (
            (figures.lost, "lost: " + ", ".join(sorted(set(figures.errors) - allowed.errors))),
            (figures.stuck, "stuck"),
            (max(0, figures.twice - allowed.twice), "answered twice"),
            (0 if allowed.unrecorded else figures.rows_missing, "rows missing"),
            (figures.rows_doubled, "rows doubled"),
            (figures.slots_lost, "slots lost"),
            (max(0, len(seen.died) - allowed.deaths), f"workers ended by themselves: {', '.join(seen.died)}"),
        )
        if n
    ]
    broken += [f"`.delay()` raised {name}" for name in seen.refused if name not in allowed.refusals]
    if not figures.accepted:
        broken.append("no call was accepted: nothing was shown")
    if figures.slowest_delay_s > allowed.delay_s:
        broken.append(f"`.delay()` took {figures.slowest_delay_s:.1f} s")
    if seen.recovered_s is None or seen.recovered_s > allowed.recover_s:
        broken.append("no recovery" if seen.recovered_s is None else f"recovered after {seen.recovered_s:.1f} s")
    if seen.rate is not None and figures.most_in_window > (most := most_allowed(seen.rate, seen.slots)):
        broken.append(f"{figures.most_in_window} requests in {WINDOW_S:.0f} s, more than {most:.0f}")
    broken += seen.notes
    names = figures.__dataclass_fields__
    return Verdict(**{name: getattr(figures, name) for name in names if name != "broken"}, broken=tuple(broken))


def repeated(asked: Sequence[Asked], excused: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """(calls answered again that were in flight at a kill, those that were not)."""
    by_text: dict[str, list[Asked]] = defaultdict(list)
    for one in sorted(asked, key=lambda one: one.at_s):
        by_text[one.text].append(one)
    again = twice = 0
    for runs in by_text.values():
        good = [n for n, one in enumerate(runs) if one.good]
        if not good or good[0] == len(runs) - 1:  # never answered, or not asked after its answer
            continue
        if all(_in_flight(runs[n], excused) for n in range(good[0], len(runs) - 1)):
            again += 1
        else:
            twice += 1
    return again, twice


def _in_flight(one: Asked, moments: Sequence[tuple[float, float]]) -> bool:
    until_s = one.at_s + one.latency_s + SETTLING_S
    return any(one.at_s <= end and begin <= until_s for begin, end in moments)


def rows_of(seen: Evidence) -> tuple[int, int]:
    """(calls that ended without a final row, calls with more than one)."""
    final = Counter(row.call_id for row in seen.rows if row.outcome in FINAL)
    missing = sum(call_id not in final for call_id in seen.heard)
    return missing, sum(n > 1 for n in final.values())


def most_within(times_s: Sequence[float], window_s: float) -> int:
    """The most of these that any window of this length holds."""
    ordered, first, most = sorted(times_s), 0, 0
    for last, at_s in enumerate(ordered):
        while at_s - ordered[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def most_allowed(rate: float, slots: int) -> float:
    """Requests that a window may hold: its rate, 6 % for the burst, and one for each slot that was held up."""
    return rate * WINDOW_S * 1.06 + slots + 1
