"""What should an operator do? Advice from recorded figures, each with its reason. Pure.

A rule gives advice only if its figures are beyond the bounds below, and names these figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from msgspec import Struct

WAITED_SHARE, WAITED_MIN = 0.05, 10  #: minutes in which calls waited throughout: least share of all, and least number
IDLE_BELOW, FULL_ABOVE = 0.70, 0.85  #: share of what was allowed that was used in those minutes
FEWEST_CALLS = 10  #: of a function; also least number of its hits, and of its misses
FAILS_SHARE = 0.95  #: of a function's calls
REFUSED_SHARE = 0.10  #: of a lane's attempts
FEWEST_REFUSED = 20
EATS_SHARE = 0.50  #: of all that was spent, by one tenant of several
WASTED_SHARE = 0.05  #: of what was spent
ASKED_AGAIN_SHARE = 0.10  #: of a function's calls that found a kept answer: from then on misses count as repetitions
EVICTED_SHARE = 0.20  #: evictions for each miss from which on the cache is too small, and not the TTL too short


class Kind(StrEnum):
    """What is advised, in the order in which advice is given."""

    FIX_FUNCTION = "fix_function"
    RAISE_WORKERS = "raise_workers"
    HIGHER_TIER = "higher_tier"
    LOWER_RATE = "lower_rate"
    LIMIT_TENANT = "limit_tenant"
    FEWER_FAILURES = "fewer_failures"
    RAISE_TTL = "raise_ttl"
    MORE_CACHE = "more_cache"


class Advice(Struct, frozen=True, kw_only=True):
    """One thing to do."""

    kind: Kind
    subject: str  #: the lane, function or tenant; "": all
    do: str  #: a sentence
    why: str  #: a sentence, with figures


class LaneMinutes(Struct, frozen=True, kw_only=True):
    """A slice of time in a lane."""

    minutes: float
    used_per_min: float
    allowed_per_min: float | None  #: requests that the lane might send; None: no bound
    waited: bool  #: calls waited in each of its minutes
    normal: bool  #: the lane was in NORMAL throughout


class LaneFacts(Struct, frozen=True, kw_only=True):
    """A lane in the window."""

    name: str
    attempts: int
    refused: int  #: of these, 429s
    slices: Sequence[LaneMinutes] = ()


class FunctionFacts(Struct, frozen=True, kw_only=True):
    """A function in the window."""

    name: str
    calls: int  #: that ended
    answered: int
    categories: Sequence[tuple[str, int]] = ()  #: (category, number) of its attempts' failures, most frequent first
    hits: int = 0  #: calls that got a kept answer
    misses: int = 0  #: calls that looked for one, found none, and were sent
    evicted: int = 0  #: answers that were evicted


class SpenderFacts(Struct, frozen=True, kw_only=True):
    """A tenant in the window."""

    name: str
    share: float  #: of all that was spent (of attempts, where no price is known), 0 to 1
    spent: str  #: in words


class Facts(Struct, frozen=True, kw_only=True):
    """All figures on which advice is based."""

    lanes: Sequence[LaneFacts] = ()
    functions: Sequence[FunctionFacts] = ()
    tenants: Sequence[SpenderFacts] = ()
    wasted_share: float = 0.0  #: share of the cost that went to attempts without an answer, 0 to 1
    wasted: str = ""  #: the same in words
    category: str = ""  #: the most frequent one of attempts that were not answered


def advice(facts: Facts) -> tuple[Advice, ...]:
    """What to do, the most urgent kind first."""
    found = [*_functions(facts.functions), *_lanes(facts.lanes), *_tenants(facts.tenants), *_wasted(facts)]
    order = list(Kind)
    return tuple(sorted(found, key=lambda one: order.index(one.kind)))


def _functions(functions: Iterable[FunctionFacts]) -> Iterator[Advice]:
    for one in functions:
        failed = one.calls - one.answered
        if one.calls >= FEWEST_CALLS and failed >= FAILS_SHARE * one.calls:
            met = f", mostly {one.categories[0][0]}" if one.categories else ""
            yield Advice(
                kind=Kind.FIX_FUNCTION,
                subject=one.name,
                do=f"Mend {one.name}, or stop calling it.",
                why=f"{failed:,} of its {one.calls:,} calls failed{met}.",
            )
        asked = one.hits + one.misses
        if one.hits < FEWEST_CALLS or one.misses < FEWEST_CALLS or one.hits < ASKED_AGAIN_SHARE * asked:
            continue
        if one.evicted >= EVICTED_SHARE * one.misses:
            yield Advice(
                kind=Kind.MORE_CACHE,
                subject=one.name,
                do=f"Give the cache more room (MAISD_CACHE_SIZE_MB, MAISD_MAX_CACHE_ENTRIES): {one.name} would use it.",
                why=f"{one.evicted:,} of its answers were evicted early, and {one.misses:,} calls found none.",
            )
        else:
            yield Advice(
                kind=Kind.RAISE_TTL,
                subject=one.name,
                do=f"Keep answers of {one.name} for longer (cache_ttl=…), if they stay true.",
                why=f"{one.hits:,} of {asked:,} calls found a kept answer; the others were sent, and hardly any answer "
                "had gone for want of room.",
            )


def _lanes(lanes: Iterable[LaneFacts]) -> Iterator[Advice]:
    for lane in lanes:
        if lane.refused >= max(FEWEST_REFUSED, REFUSED_SHARE * lane.attempts):
            yield Advice(
                kind=Kind.LOWER_RATE,
                subject=lane.name,
                do=f"Find out who else uses the key of {lane.name}, or tell the lane its limit (limits set).",
                why=f"The provider refused {lane.refused:,} of {lane.attempts:,} requests with 429: more is sent to it "
                "than it gives.",
            )
        yield from _waiting(lane)


def _waiting(lane: LaneFacts) -> Iterator[Advice]:
    """Whether calls waited because workers, or because budget was lacking."""
    watched = sum(one.minutes for one in lane.slices)
    waited = [one for one in lane.slices if one.waited and one.normal and one.allowed_per_min]
    for few, kind in ((True, Kind.RAISE_WORKERS), (False, Kind.HIGHER_TIER)):
        some = (
            [one for one in waited if _used_share(one) <= IDLE_BELOW]
            if few
            else [one for one in waited if _used_share(one) >= FULL_ABOVE]
        )
        minutes = sum(one.minutes for one in some)
        if minutes < max(WAITED_MIN, WAITED_SHARE * watched):
            continue
        used = sum(one.used_per_min * one.minutes for one in some) / minutes
        allowed = sum((one.allowed_per_min or 0.0) * one.minutes for one in some) / minutes
        figures = (
            f"in {minutes:,.0f} of {watched:,.0f} minutes calls waited while {used:,.0f} of {allowed:,.0f} "
            "allowed requests a minute were sent"
        )
        if few:
            do = f"Start more workers, or give them more slots, for {lane.name}."
            why = f"Its budget was not used up: {figures}."
        else:
            do = f"Ask for a higher tier (or a second key) for {lane.name}, or send less urgent calls at quiet times."
            why = f"Its budget was used up: {figures}."
        yield Advice(kind=kind, subject=lane.name, do=do, why=why)


def _used_share(one: LaneMinutes) -> float:
    return one.used_per_min / one.allowed_per_min if one.allowed_per_min else 0.0


def _tenants(tenants: Sequence[SpenderFacts]) -> Iterator[Advice]:
    if len(tenants) < 2:
        return
    for one in tenants:
        if one.share >= max(EATS_SHARE, 1.5 / len(tenants)):
            name = one.name or "(none)"
            yield Advice(
                kind=Kind.LIMIT_TENANT,
                subject=one.name,
                do=f"Look at what tenant {name} asks for; a weight or a lane of its own keeps it from the others.",
                why=f"It took {one.share * 100:.0f} % of all: {one.spent}, of {len(tenants):,} tenants.",
            )


def _wasted(facts: Facts) -> Iterator[Advice]:
    if facts.wasted_share >= WASTED_SHARE:
        met = f"; most of them met {facts.category}" if facts.category else ""
        yield Advice(
            kind=Kind.FEWER_FAILURES,
            subject="",
            do="Avoid attempts that are charged and give no answer.",
            why=f"{facts.wasted} went to them, {facts.wasted_share * 100:.0f} % of all that was spent{met}.",
        )
