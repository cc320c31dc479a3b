"""How fast may a lane go right now? The law keeps a model (a shadow) of the provider's bucket.

With rate-limit headers the model follows them (`_shadow`). Without, the provider's bucket is known to be empty at each
refusal, so between two refusals exactly as much was admitted as flowed in (`_empty_again`). Only time in which the lane
went as fast as it was allowed is counted (`Dimension.busy_s`): while a gate is closed, slots are taken or no calls
come, what was not sent says nothing about the provider. Between refusals the lane probes for more, as often as it can
afford the refusal that ends each probe (`Dimension.allowed`). If the whole budget is there at once, and then nothing
for a while, it is a window (`_window`), and is spent when it opens. At the start the pace doubles until the first
header or refusal. The pace never exceeds what a person has configured.

Pure: state, observation and time in, a new state out. Only the tuner (flow/lane/tune.py) writes the state; the scripts
in stores/lua obey the set-points that `set_points` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from ratelimit_worker.calls import DIMENSIONS, LaneLimits, Snapshot
from ratelimit_worker.contracts.lane import Anchor, Pacing, encode_levels, encode_paces
from ratelimit_worker.contracts.lesson import Ticket, Witness
from ratelimit_worker.policy.headers import LEAST_RATE
from ratelimit_worker.policy.siblings import Counted
from ratelimit_worker.policy.unmoved import Unmoved, heard

START_PER_S = 4.0  #: requests/s of a lane of which nothing is known
DOUBLING_S = 0.7
DOUBLING_MOST_S = 1.0  #: slowest doubling of a window's opening rate; few slots or calls may have made it look slower
START_WIDTH = 8  #: calls out at once before the first answer; one more for each answer
FRESH_S = 15.0  #: a header older than this, seconds, is not followed any more
GUARD_S = 0.12  #: reserve that is not spent while headers are fresh, in seconds of refill
REFILL_TRUST = 0.9  #: share of the refill since a header that is added to its level
#: Depth of a configured dimension beyond one call, in seconds of its rate: so much can a late pump make up for. At 50/s
#: the depth is 2, so at most 52 leave in any second; with depth 1, every late wake-up was lost (46/s of 50 measured).
CONFIGURED_BURST_S = 0.02
UNTOLD_BURST_S = 0.25  #: depth without headers, seconds of the rate
#: Least and most time over which the refill is measured, seconds.
MEASURE_S, MEASURE_MOST_S = 0.5, 4.0
SILENT_S = 2.0  #: with answers further apart than this, a lower refill is not concluded
USED = 0.8  #: share of the pace that must have been sent for the time to count as busy
USED_LEAST_S, USED_S = 0.5, 1.0  #: that is judged after the first time, and begun anew after the second
#: An estimate between two moments at which the bucket was empty is accepted from so many seconds and calls on.
EMPTY_S, EMPTY_CALLS = 0.6, 8.0
FIRST = 0.9  #: factor on what was admitted until the first refusal, since the bucket was full at the start
#: An estimate far below the present one is accepted only after so many seconds, and so many times the uncertainty of
#: the two moments. A refused request arrived some time between its start and its refusal: with messages that travel for
#: 60 ms, 5/s was taken for 15/s, and 5,000 tokens/s for 505.
TELLING_S, TELLING_TIMES = 0.15, 4.0
CAREFUL, PROBE = 0.985, 1.25  #: pace ÷ estimate: between probes, and in the first second of a probe
#: Time between probes, longer after each that was refused and found nothing new.
HOLD_LEAST_S, HOLD_TIMES = 1.5, 2.5
HOLD_S, HOLD_CALLS, HOLD_MOST_S = 12.0, 30.0, 120.0  #: most seconds; longer for slow lanes, by a number of calls
TRIAL_S, TRIAL_CALLS = 0.7, 1.0  #: a probe without refusals doubles its pace after so many seconds and calls
PROBE_CALLS = 2.0  #: a probe at the highest recent limit sends at least so many calls more than by the estimate
HOLD_BELOW_S = 5.0  #: most time between probes if the limit is known to have been higher recently
#: A probe ends in a refusal, so a lane allows itself only so many refusals for each call; more if the limit is known to
#: have been higher recently.
ALLOWED, ALLOWED_BELOW, ALLOWED_MOST = 0.006, 0.03, 4.0
MOVED = 0.18  #: two measurements agree if they differ by less than this share
BELOW = 0.8  #: an estimate below this share of the highest recent one is probed more often
HIGH_S = 300.0  #: how long the highest estimate is remembered
HIGH_TRIES = 10  #: ... unless so many probes in a row have not reached it
HIGH_TIMES = 4.0  #: a probe begins at the highest recent estimate, but at most at so many times the present one
LEAST_PER_S = 1 / 30  #: calls/s of the lowest estimate: a probe in half a minute
#: A refusal means that a window's budget is spent if it asks for a wait of at least so many seconds, and at least as
#: long as the lane had been sending, and if at least so many calls would have gone in that time.
WINDOW_LEAST_S, WINDOW_CALLS = 2.0, 4.0
WINDOW_SAME = 0.4  #: if it then gives less than this share of the last budget, it is not a window
WINDOW_LATE_S = 0.2  #: its calls are sent this much later each time one was refused before the budget was spent
WINDOW_EARLY = 6  #: after so many such refusals it is not taken for a window any more
WINDOW_SPENT = 0.97  #: share of its budget that is spent at once; the rest is asked for at the mean rate
WINDOW_TAPER_S = 0.3  #: time constant with which the last calls of the budget slow down
CREDIT_MOST_S, CREDIT_PACE = 2.0, 1.6  #: credit after a pause: most seconds of refill, and the factor on the pace
SAVED_BACK = 0.25  #: part of the lost trust in that credit that is regained after a pause that held
HELD_S = 0.5  #: a pause has held if nothing is refused for so long after it
NARROW_S = 6.0  #: longest time in which calls go one by one; then their number doubles each `DOUBLING_S`
#: A refusal although headers say that enough is left: the headers are late or rounded, or the refusal had no reason.
#: For this time, doubled at each repetition, no header raises the level and none lowers the refill, seconds. The bucket
#: is taken to have been empty at the refusal, so what flows in while the gate is closed is spent right after: a refusal
#: without reason costs only what overflowed meanwhile.
DOUBT_S, DOUBT_MOST_S = 30.0, 1_800.0
#: Meanwhile: depth, in seconds of refill (what a gate of a second has saved); and the share of the guard that is kept.
DOUBTED_DEPTH_S, DOUBTED_GUARD = 1.0, 0.5
#: A call that goes exactly when a shallow bucket has refilled may arrive a little too early. So each refusal that
#: headers explain lowers the pace by this share, at most by the second; each good answer takes some of that back.
EDGE, EDGE_MOST, EDGE_KEPT = 0.01, 0.03, 0.98
_REMEMBERED = 256  #: refusals
_DOUBLINGS = 40
_NONE = (0.0, 0.0, 0.0, 0.0)
_SAMPLE_S = 1.5  #: samples of what was sent are kept so long
UNSEEN_S = 4.0  #: a lane that the tuner did not look at for so long may have sent nothing in that time

Sample = tuple[float, tuple[float, float, float, float]]  #: time, seconds, and units sent in all by then, by dimension


class Observation(Struct, frozen=True, kw_only=True):
    """One answer, from the lane's list of observations."""

    at: float  #: seconds, Redis clock
    ticket: Ticket
    refused: bool = False
    crowded: bool = False  #: ... for too many calls at once, as the refusal says in words
    sick: bool = False
    good: bool = False
    quota: bool = False  #: the quota is used up, until somebody pays or a day has passed
    barred: bool = False  #: the key was not accepted
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    retry_after_s: float | None = None
    refused_dimension: str | None = None
    cost: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  #: of the call, by dimension; set for refused calls
    older: int = 0  #: calls still out that were sent before this one; set for sick and refused ones
    stated: Mapping[str, float] = field(default_factory=dict)  #: rates that a refusal states, units/s by dimension
    witness: Witness | None = None  #: who asked


class Mark(Struct, frozen=True, omit_defaults=True):
    """A moment in the order of sending."""

    seq: int
    sent: float  #: units of one dimension sent in all
    at: float  #: seconds, Redis clock
    busy_s: float = 0.0  #: `Dimension.busy_s` at that moment


class Window(Struct, frozen=True, omit_defaults=True):
    """A budget that is available all at once, and when it is spent, not before the next window opens."""

    units: float
    every_s: float
    late_s: float = 0.0  #: delay of its opening
    otherwise: float = 0.0  #: the estimate if it turns out not to be a window, units/s
    early: int = 0  #: refusals since it opened, before the budget was spent
    doubling_s: float = DOUBLING_S  #: doubling time of its opening rate, as when the window was found


class Spell(Struct, frozen=True, omit_defaults=True):
    """When a lane began to send without a pause: time and counters of that moment."""

    at: float  #: seconds, Redis clock
    sent: tuple[float, float, float, float]
    turned_back: tuple[float, float, float, float]
    unseen_s: float = 0.0  #: how long the tuner had not looked before: it may have begun that much earlier


class Dimension(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one dimension of a lane."""

    pace: float  #: of the lane, units/s
    depth: float = 1.0  #: units that may leave back to back
    guard: float = 0.0
    refill: float | None = None  #: the provider's rate, units/s; None: not known yet
    # from headers
    limit: float | None = None  #: units per window; None: no header has given it
    window_s: float = 60.0
    remaining: float = 0.0  #: of the newest snapshot
    newest: Mark | None = None  #: when its request was sent; `remaining` is counted from there, and not from the answer
    header_at: float = -1e9  #: when the newest answer with headers came, seconds
    level: bool = False  #: the level is to be written into the bucket once
    capped: bool = False  #: a person has set a ceiling, so headers may only lower the level
    largest: float = 0.0  #: largest `remaining` seen since the limit last changed
    measured: tuple[float, Mark] | None = None  #: (remaining, moment) from which the flow is measured
    flow: float | None = None  #: measured inflow, units/s; less than the limit if others use the same budget
    share: float = 1.0  #: this lane's share of limit and `remaining`, if lanes share one budget (siblings.py)
    doubt_until: float = -1e9  #: until when headers are not trusted, seconds
    doubt_s: float = 0.0  #: how long the last doubt was
    edge: float = 0.0  #: share by which the pace stays below the headers' rate
    unmoved: Unmoved | None = None  #: whether headers move with what is sent; None: there were none
    # from refusals
    empty: Mark | None = None  #: the last moment at which the provider's bucket was known to be empty
    held_from: float = -1e9  #: since when the lane goes at the careful pace, seconds
    allowed: float = 2.0  #: refusals that probes may cause now
    probing_from: float | None = None
    failed: int = 0  #: probes in a row that found nothing new
    high: float = 0.0  #: highest recent estimate, units/s
    high_at: float = -1e9  #: when it was last reached, seconds
    busy_s: float = 0.0  #: a clock that runs only while the lane goes as fast as it is allowed, seconds
    owed: float = 0.0  #: units sent for which that clock has still to run
    window: Window | None = None
    stated: float | None = None  #: rate that refusals state in words, units/s
    saved: float = 1.0  #: trust that the provider's bucket fills during a pause, 0 to 1; low for a shallow bucket


class Pause(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The gate was closed: what flowed into the provider's bucket meanwhile is to be spent."""

    since: float  #: of the refusal, seconds
    sent: tuple[float, float, float, float]  #: units sent in all when the gate opened; before that, at the last look
    opened_at: float | None = None
    until: float = 0.0  #: when the credit is spent, seconds
    least_s: float = 0.0  #: least wait of the refused call, from its refusal
    seq: int = 0  #: number of the refused call
    gate: float | None = None  #: when the gate opens, seconds; None: not looked at yet


class PaceState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that the law remembers of one lane."""

    dimensions: Mapping[str, Dimension] = {}
    ramping: bool = True  #: no header and no refusal yet
    doubled_at: float | None = None  #: last doubling; None: nothing was sent yet
    answers: int = 0  #: good answers while ramping
    refused: tuple[tuple[int, tuple[float, float, float, float]], ...] = ()  #: (seq, cost) of recently refused calls
    turned_back: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  #: units of all refused calls
    samples: tuple[Sample, ...] = ()  #: recent ones
    used_from: tuple[float, float] = (-1e9, 0.0)  #: (time, requests sent) from which the use of the pace is measured
    pause: Pause | None = None
    spell: Spell | None = None
    stepped_at: float | None = None  #: when the state was last stepped, seconds
    narrow_from: float | None = None  #: since when calls go one by one, as only refusals come, seconds


def initial(limits: LaneLimits) -> PaceState:
    """The first state of a lane, from its configured limits."""
    dimensions: dict[str, Dimension] = {}
    if limits.rpm is not None:
        rate = limits.rpm / 60
        dimensions["requests"] = Dimension(pace=rate, depth=_depth("requests", rate, limits))
    elif limits.adaptive:
        dimensions["requests"] = Dimension(pace=START_PER_S, depth=_depth("requests", START_PER_S, limits))
    if limits.tpm is not None:
        rate = limits.tpm / 60
        dimensions["tokens"] = Dimension(pace=rate, depth=_depth("tokens", rate, limits))
    return PaceState(dimensions=dimensions, ramping=limits.rpm is None and limits.adaptive)


def ceiling(name: str, limits: LaneLimits) -> float:
    """The configured limit in a dimension, units/s; inf: none."""
    told = {"requests": limits.rpm, "tokens": limits.tpm}.get(name)
    return inf if told is None else told / 60


def _depth(name: str, pace: float, limits: LaneLimits) -> float:
    """Depth of a bucket while no header says how deep the provider's is."""
    if name == "requests" and limits.rpm is not None:
        return 1.0 + pace * CONFIGURED_BURST_S
    return max(1.0, pace * UNTOLD_BURST_S)


# ── what an answer says ────────────────────────────────────────────────────────────────────────────────────────────


def observe(state: PaceState, seen: Observation, limits: LaneLimits, crowded: bool = False) -> PaceState:
    """The state after one more answer, in the order of the list.

    Args:
        crowded: It was refused for too many calls at once (policy/flight.py), which says nothing about the rate.
    """
    if seen.refused:
        refused = sorted({*state.refused, (seen.ticket.seq, seen.cost)})[-_REMEMBERED:]
        one, two, three, four = (units + cost for units, cost in zip(state.turned_back, seen.cost, strict=True))
        state = replace(state, refused=tuple(refused), turned_back=(one, two, three, four))
    told = {
        name: snapshot
        for name, snapshot in seen.snapshots.items()
        if name in DIMENSIONS and snapshot.limit / snapshot.window_s >= LEAST_RATE
    }
    if told:
        dimensions = {name: _by_headers(state, name, snapshot, seen, limits) for name, snapshot in told.items()}
        state = replace(state, dimensions={**state.dimensions, **dimensions}, ramping=False)
    if seen.refused:
        if crowded:
            return state
        pause = state.pause
        if pause is not None and pause.gate is not None and seen.ticket.sent_at >= pause.gate:
            state = _open(state, seen.ticket.sent_at)
        return _refused(state, seen, limits)
    if seen.good and state.narrow_from is not None and seen.ticket.sent_at >= state.narrow_from:
        state = replace(state, narrow_from=None)
    return count_answers(state, int(seen.good))


def with_shares(state: PaceState, shares: Mapping[str, float]) -> PaceState:
    """The state of a lane that shares budgets with other lanes.

    Args:
        shares: By dimension, 0 to 1, from `siblings.Siblings.shares`; a missing one is 1.
    """
    dimensions = {
        name: known if known.share == shares.get(name, 1.0) else replace(known, share=shares.get(name, 1.0))
        for name, known in state.dimensions.items()
    }
    return replace(state, dimensions=dimensions)


def count_answers(state: PaceState, answers: int) -> PaceState:
    """The state after plain good answers: at the start they let more calls out at once."""
    return replace(state, answers=state.answers + answers) if state.ramping and answers else state


def unlearned(state: PaceState, limits: LaneLimits, now: float) -> PaceState:
    """The state without what refusals have taught, since they were for too many calls at once; headers stay."""
    kept = {name: known for name, known in state.dimensions.items() if _governed(known, now)}
    fresh = dict(initial(limits).dimensions)
    if (requests := state.dimensions.get("requests")) is not None and limits.rpm is None and "requests" in fresh:
        pace = max(START_PER_S, 2 * requests.pace)
        fresh["requests"] = Dimension(pace=pace, depth=_depth("requests", pace, limits))
    ramping = not kept and limits.rpm is None and limits.adaptive
    return replace(state, dimensions=fresh | kept, ramping=ramping, doubled_at=now, answers=_REMEMBERED, pause=None)


def _between(state: PaceState, name: str, start: Mark, end: Mark) -> tuple[float, float]:
    """(units, calls) that the provider admitted between two moments in the order of sending."""
    index = DIMENSIONS.index(name)
    turned_back = [cost[index] for seq, cost in state.refused if start.seq < seq <= end.seq]
    return end.sent - start.sent - sum(turned_back), float(end.seq - start.seq - len(turned_back))


def _told(snapshot: Snapshot) -> float:
    """The rate in a header, units/s."""
    return snapshot.limit / snapshot.window_s


def _by_headers(state: PaceState, name: str, snapshot: Snapshot, seen: Observation, limits: LaneLimits) -> Dimension:
    """Follow the headers, unless what is answered contradicts them: then the dimension is one without headers."""
    known = state.dimensions.get(name)
    late = known is not None and known.newest is not None and seen.ticket.seq <= known.newest.seq
    if known is not None and late and (known.unmoved is None or known.unmoved.moves(snapshot)):
        return known  # an older answer that came later says nothing new
    enough = seen.refused and not seen.crowded and snapshot.remaining >= seen.cost[DIMENSIONS.index(name)]
    unmoved = heard(
        known.unmoved if known is not None else None,
        snapshot,
        seen.ticket.sent_at,
        good=seen.good,
        refused_at=seen.at if enough else None,
    )
    if known is not None and late and not unmoved.foreign:
        return replace(known, unmoved=unmoved)
    if known is None or not unmoved.foreign:
        return replace(_shadow(state, name, snapshot, seen, limits), unmoved=unmoved)
    if known.limit is None:
        return replace(known, unmoved=unmoved)
    mark = _mark(name, seen)
    lately = _lately(state, name, mark) or START_PER_S * _unit(name, mark)
    refill = min(max(lately, LEAST_PER_S * _unit(name, mark)), ceiling(name, limits))
    pace = CAREFUL * refill
    return Dimension(pace=pace, depth=_depth(name, pace, limits), refill=refill, held_from=seen.at, unmoved=unmoved)


def _shadow(state: PaceState, name: str, snapshot: Snapshot, seen: Observation, limits: LaneLimits) -> Dimension:
    """Follow the provider's bucket by its headers."""
    told, top = _told(snapshot), ceiling(name, limits)
    mark = _mark(name, seen)
    known = state.dimensions.get(name) or Dimension(pace=told)
    same = known.limit == snapshot.limit and known.window_s == snapshot.window_s and known.flow is not None
    flow = known.flow if same and known.flow is not None else told
    largest = max(known.largest, snapshot.remaining) if same else snapshot.remaining
    # Answers of models take seconds, and each a different time. So no rate can be taken from times of answers, and a
    # level counted from them would miss what flowed in before (600/min at 4 s of latency became 230/min).
    base = known.measured if same else None
    doubted = seen.at < known.doubt_until
    if base is None:
        base = (snapshot.remaining, mark)
    elif (since := mark.at - base[1].at) >= MEASURE_S:
        admitted, _ = _between(state, name, base[1], mark)
        measured = (snapshot.remaining - base[0] + admitted) / since
        full = snapshot.remaining >= largest * 0.98 - 1
        # After a pause the bucket may have been full, and what overflowed is not counted anywhere.
        heard = known.newest.at if known.newest is not None else base[1].at
        silent = mark.at - heard > SILENT_S and base[0] + flow * since >= largest and measured < flow
        off = abs(measured - flow) * since > 2 * _unit(name, mark) + 0.05 * flow * since
        if off and not full and not silent:
            flow = min(told, max(0.02 * told, 0.3 * flow + 0.7 * measured))
        if off or full or silent or since >= MEASURE_MOST_S:  # a small difference shows with time
            base = (snapshot.remaining, mark)
    # What sibling lanes send is missing from the flow: at that flow, the lane that came first would keep nearly all.
    refill = told * known.share if doubted or known.share < 1 else flow
    pace = min(refill, top)
    least = max(2.0 if name == "requests" else 1.3 * _unit(name, mark), 0.25 * refill)
    # `remaining` of a full bucket is what it held after this call was taken from it.
    deepest = min(largest + _unit(name, mark), DOUBTED_DEPTH_S * refill) if doubted else largest
    depth = max(least, deepest * known.share)
    return replace(
        known,
        pace=pace,
        flow=flow,
        depth=depth if top == inf else _depth(name, pace, limits),
        guard=GUARD_S * refill * (DOUBTED_GUARD if doubted else 1.0) if top == inf else 0.0,
        refill=refill,
        limit=snapshot.limit,
        window_s=snapshot.window_s,
        remaining=snapshot.remaining,
        newest=mark,
        header_at=seen.at,
        level=not seen.refused,  # after a refusal the script has set it already
        capped=top < inf,
        largest=largest,
        measured=base,
        held_from=seen.at,
        probing_from=None,
        edge=known.edge * EDGE_KEPT if seen.good else known.edge,
    )


def _mark(name: str, seen: Observation) -> Mark:
    ticket = seen.ticket
    return Mark(ticket.seq, ticket.sent[DIMENSIONS.index(name)], ticket.sent_at)


def _unit(name: str, mark: Mark) -> float:
    """Mean units of a call, over all."""
    return 1.0 if name == "requests" else max(1.0, mark.sent / max(1, mark.seq))


def _refused(state: PaceState, seen: Observation, limits: LaneLimits) -> PaceState:
    """After a 429: in the dimension that it names, else in all that have a limit."""
    dimensions = dict(state.dimensions)
    named = seen.refused_dimension if seen.refused_dimension in DIMENSIONS else None
    for name in [named] if named is not None else list(dimensions):
        known = dimensions.get(name) or Dimension(pace=inf)
        if not _governed(known, seen.at):
            dimensions[name] = _empty_again(state, name, known, seen, limits)
        elif name in seen.snapshots and seen.snapshots[name].remaining >= seen.cost[DIMENSIONS.index(name)]:
            dimensions[name] = _doubt(known, seen.at)
        elif name in seen.snapshots:
            dimensions[name] = replace(known, edge=min(EDGE_MOST, known.edge + EDGE))
    pause, narrow_from = state.pause, state.narrow_from
    if pause is None or pause.opened_at is not None:
        if pause is not None and not _let_through(state, pause, seen.ticket):
            narrow_from = seen.at
        pause = Pause(since=seen.ticket.sent_at, sent=seen.ticket.sent, seq=seen.ticket.seq)
        pause = replace(pause, least_s=max(pause.least_s, _least_wait_s(seen.retry_after_s)))
    return replace(state, dimensions=dimensions, ramping=False, pause=pause, narrow_from=narrow_from)


def _let_through(state: PaceState, pause: Pause, ticket: Ticket) -> int:
    """Calls admitted between the refusal that began a pause and another one; 0: the wait was too short."""
    turned_back = sum(pause.seq < seq <= ticket.seq for seq, _ in state.refused)
    return ticket.seq - pause.seq - turned_back


def _doubt(known: Dimension, at: float) -> Dimension:
    """Doubt headers: they said that enough was left, and yet the call was refused."""
    if at < known.doubt_until:
        return replace(known, doubt_until=max(known.doubt_until, at + known.doubt_s))
    doubt_s = min(DOUBT_MOST_S, max(DOUBT_S, 2 * known.doubt_s))
    return replace(
        known, doubt_until=at + doubt_s, doubt_s=doubt_s, depth=max(1.0, DOUBTED_DEPTH_S * (known.refill or 0.0))
    )


def _had_credit(name: str, known: Dimension, pause: Pause, opened_at: float, mark: Mark) -> bool:
    """A call was refused while the credit of a pause was being spent: was there a credit? True: it cannot be told."""
    if pause.least_s >= opened_at - pause.since - 0.5:
        return True
    since = max(0.0, mark.at - opened_at)
    got = mark.sent - pause.sent[DIMENSIONS.index(name)] - (known.refill or 0.0) * since
    return got >= 0.5 * _credit(known, opened_at - pause.since)


def _empty_again(state: PaceState, name: str, known: Dimension, seen: Observation, limits: LaneLimits) -> Dimension:
    """The provider's bucket was empty when this request arrived: how much was admitted since it was last empty?"""
    mark, at = _mark(name, seen), seen.at
    if known.empty is not None and mark.seq <= known.empty.seq:
        return known  # it was sent earlier than the newest one
    pause = state.pause
    if pause is None or pause.opened_at is not None:
        known = replace(known, allowed=max(0.0, known.allowed - 1.0), owed=known.depth)
    saved, measured = known.saved, False
    if pause is not None and pause.opened_at is not None:
        if at < pause.until and not _had_credit(name, known, pause, pause.opened_at, mark):
            saved = saved / 2
        if _let_through(state, pause, seen.ticket):
            known = replace(known, busy_s=known.busy_s + _saved_s(known, pause))
    behind = 0.0
    if state.stepped_at is not None:
        behind = mark.at - max(state.stepped_at, pause.gate if pause is not None and pause.gate is not None else 0.0)
    # The next request would have been admitted after the stated wait, so units are counted from and to such moments.
    wait_s = _least_wait_s(seen.retry_after_s)
    mark = replace(mark, busy_s=max(0.0, known.busy_s + min(behind, _SAMPLE_S)) + wait_s)
    windowed = _window(state, name, known, seen, limits)
    if windowed is not None:
        return replace(windowed, empty=mark)
    recent = _lately(state, name, mark)
    before, stated = known.refill, seen.stated.get(name)
    if stated is not None and stated != known.stated:
        refill, empty = stated, mark  # accepted at once, as a header's limit is, and measured from then on
    elif before is not None and (known.empty is None or known.window is not None):
        refill, empty = before, mark  # the estimate is a mean, or from a time when the bucket was not empty
        if known.window is not None and (since_start := _since_start(state, name, mark, seen)) < inf:
            refill = since_start
    elif before is None or known.empty is None:
        start = min(known.pace, recent or inf, FIRST * _since_start(state, name, mark, seen) / 0.8)
        if start == inf:  # this dimension had no known limit so far
            start = _unit(name, mark) * state.dimensions["requests"].pace if "requests" in state.dimensions else 1.0
        refill = 0.8 * start
        empty = mark
    else:
        refill, empty = _from_empty(state, name, known, mark, exact=wait_s % 1 > 0, unsure_s=(at - mark.at) / 2)
        measured = empty is mark and refill != before
        if (doublings := _doublings(known, mark.at, _unit(name, mark))) >= 2:
            refill, empty = max(refill, PROBE * before * 2.0 ** (doublings - 1.5)), mark  # the limit rose
    refill = min(max(refill, LEAST_PER_S * _unit(name, mark)), ceiling(name, limits))
    pace = CAREFUL * refill
    return replace(
        _remember(known, refill, at, measured),
        pace=pace,
        depth=max(_untold_depth(name, pace, known, limits), _unit(name, mark)),
        guard=0.0,
        refill=refill,
        empty=empty,
        stated=stated,
        saved=saved,
        held_from=at,
        probing_from=None,
        window=None,
    )


def _remember(known: Dimension, refill: float, at: float, measured: bool) -> Dimension:
    """The highest recent limit: two measurements in a row must agree on it, and it is forgotten after a while."""
    before = known.refill
    same = before is not None and abs(refill - before) <= MOVED * before
    known = replace(known, failed=known.failed + (known.probing_from is not None) if same else 0)
    if at - known.high_at > HIGH_S or known.failed > HIGH_TRIES:
        known = replace(known, high=0.0, high_at=at)
    if measured and same and refill >= BELOW * known.high:
        return replace(known, high=max(refill, known.high), high_at=at)
    return known


def _window(state: PaceState, name: str, known: Dimension, seen: Observation, limits: LaneLimits) -> Dimension | None:
    """The dimension with a window, if the refusal means that a window's budget is spent; None: it is a bucket."""
    spell, wait_s, index = state.spell, seen.retry_after_s or 0.0, DIMENSIONS.index(name)
    if spell is None:
        return None
    mark, before = _mark(name, seen), known.window
    began = spell.at - (0.0 if before else spell.unseen_s)
    ran_s = mark.at - began
    units = mark.sent - spell.sent[index] - (state.turned_back[index] - spell.turned_back[index])
    calls = units / _unit(name, mark)
    every_s = seen.at + wait_s - began
    if before is not None and ran_s < 0:
        return known  # it was on its way when the window's budget was spent
    spent = wait_s >= max(WINDOW_LEAST_S, ran_s)
    if before is not None and calls < 1 and spent:  # the wait was too short, so it says nothing of a window
        otherwise = min(before.otherwise, ceiling(name, limits))
        return replace(known, window=None, refill=otherwise, pace=CAREFUL * otherwise, held_from=seen.at)
    if before is not None and not spent:
        if calls < 1 or units >= WINDOW_SPENT * before.units:
            return known  # the window is not open yet, or nearly spent
        if state.pause is not None and state.pause.opened_at is None:
            return known  # it was on its way when the first was refused: these count as one refusal
        if before.early >= WINDOW_EARLY:
            return None
        return replace(known, window=replace(before, late_s=before.late_s + WINDOW_LATE_S, early=before.early + 1))
    if not spent or calls * wait_s / every_s < WINDOW_CALLS or (before and units < WINDOW_SAME * before.units):
        return None
    refill = min(units / every_s, ceiling(name, limits))
    otherwise = before.otherwise if before else known.refill or 0.8 * min(known.pace, units / max(ran_s, 1.0))
    doubling_s = before.doubling_s if before else _doubling_s(calls, ran_s)
    known = replace(
        _remember(known, refill, seen.at, True),
        window=Window(units, every_s, before.late_s if before else 0.0, max(refill, otherwise), 0, doubling_s),
        refill=refill,
    )
    return replace(
        known,
        pace=_opening(known, _unit(name, mark)),
        depth=_unit(name, mark),
        guard=0.0,
        held_from=seen.at,
        probing_from=None,
    )


def _from_empty(
    state: PaceState, name: str, known: Dimension, mark: Mark, exact: bool, unsure_s: float
) -> tuple[float, Mark]:
    """The estimate after another moment at which the bucket was empty, and the moment from which the next one counts.

    Only busy time counts (`Dimension.busy_s`): what was not asked for could not be refused. If refusals give the wait
    to the millisecond, both moments are known to a fraction of a call, else to one call. In time they are known to half
    of the way there and back, `unsure_s`.
    """
    refill, empty = known.refill or 0.0, known.empty or mark
    units, calls = _between(state, name, empty, mark)
    since, unit = mark.busy_s - empty.busy_s, _unit(name, mark)
    if calls < 1 or units <= 0:
        return refill, mark  # the wait was too short
    if since < max(TELLING_S, TELLING_TIMES * unsure_s):
        return refill, empty
    if exact:  # after its wait this call would have fitted, and after the earlier wait the earlier one
        index = DIMENSIONS.index(name)
        costs = dict(state.refused)
        units = max(0.0, units + costs.get(mark.seq, _NONE)[index] - costs.get(empty.seq, _NONE)[index])
    expected = refill * since / unit
    doubt = (0.75 if exact else 1.5) + 0.5 * sqrt(expected) + 2 * refill * unsure_s / unit
    telling = abs(units / unit - expected) > doubt
    if telling and (since >= EMPTY_S or units < refill * since):
        return units / since, mark
    if since >= EMPTY_S and calls >= EMPTY_CALLS:
        return refill + calls / (calls + EMPTY_CALLS) * (units / since - refill), mark
    return refill, empty


def _least_wait_s(told_s: float | None) -> float:
    """Least wait of a refused call by its Retry-After; whole seconds were rounded up, so they count one less."""
    return 0.0 if told_s is None else told_s if told_s % 1 else max(0.0, told_s - 1.0)


def _since_start(state: PaceState, name: str, mark: Mark, seen: Observation) -> float:
    """Most units/s that were admitted since the lane began to send; the bucket was full then."""
    spell, index = state.spell, DIMENSIONS.index(name)
    if spell is None:
        return inf
    since = mark.at - spell.at + _least_wait_s(seen.retry_after_s)
    units = mark.sent - spell.sent[index] - (state.turned_back[index] - spell.turned_back[index])
    return units / since if units > 0 and since > 0 else inf


def _lately(state: PaceState, name: str, mark: Mark) -> float:
    """Units/s that were admitted in the second before a moment; 0: unknown."""
    index = DIMENSIONS.index(name)
    before = [(at, sent[index]) for at, sent in state.samples if at <= mark.at]
    if not before:
        return 0.0
    at, sent = next((sample for sample in reversed(before) if sample[0] <= mark.at - 1.0), before[0])
    since = mark.at - at
    if since < 0.2:
        return 0.0
    share = mark.sent - sent
    turned_back = sum(cost[index] for seq, cost in state.refused if mark.seq - share / _unit(name, mark) < seq)
    return max(0.0, share - turned_back) / since


def _saved_s(known: Dimension, pause: Pause) -> float:
    """Seconds of refill that flowed into the provider's bucket in a pause, until it was full."""
    shut_s = (pause.opened_at or pause.since) - pause.since
    return min(shut_s, max(pause.least_s, known.saved * CREDIT_MOST_S))


def _credit(known: Dimension, pause_s: float) -> float:
    """Units that flowed into the provider's bucket in a pause, beyond those in ours."""
    refill = known.refill or 0.0
    return max(0.0, known.saved * refill * min(CREDIT_MOST_S, pause_s) - min(known.depth, refill * pause_s))


def _untold_depth(name: str, pace: float, known: Dimension, limits: LaneLimits) -> float:
    """Depth of a dimension without headers; less if the provider's bucket is shallow."""
    depth = _depth(name, pace, limits)
    return depth if limits.rpm is not None and name == "requests" else max(1.0, known.saved * depth)


# ── what time alone changes ────────────────────────────────────────────────────────────────────────────────────────


def step(
    state: PaceState,
    now: float,
    sent: tuple[float, float, float, float],
    limits: LaneLimits,
    gate: float = 0.0,
    careful: bool = False,
) -> PaceState:
    """The state some time later; called about ten times a second. Doubling at the start, credit after a pause, probes.

    Args:
        now: Seconds, Redis clock.
        sent: Units sent in all, by dimension.
        gate: When the gate opens, seconds; 0: it is open.
        careful: The provider is sick: do not probe for more.
    """
    state = _count_use(state, now, sent, gate)
    samples = (*(sample for sample in state.samples if sample[0] > now - _SAMPLE_S), (now, sent))
    spell = _spell(state, samples, gate)
    if spell is None:  # a new lane has just sent its first calls
        spell = Spell(now, sent if sent[0] > START_WIDTH else (0.0, 0.0, 0.0, 0.0), state.turned_back)
    state = replace(state, samples=samples, spell=spell, stepped_at=now)
    if state.doubled_at is None:
        state = replace(state, doubled_at=now, used_from=(now, sent[0]))
    if gate > now:
        narrow_from = state.narrow_from if state.narrow_from is None else gate
        pause = state.pause
        if pause is not None and pause.opened_at is None:
            pause = replace(pause, gate=gate, sent=sent)
        state = replace(state, used_from=(now, sent[0]), narrow_from=narrow_from, pause=pause)
        return state if spell.at < gate else _before_it_opens(state, limits)
    if state.ramping:
        return _double(state, now, sent[0], limits)
    state = _open(state, now)
    if state.narrow_from is not None and now - state.narrow_from > NARROW_S:
        state = replace(state, narrow_from=None)
    used = not careful and _used(state, now, sent[0])
    dimensions = {name: _probe(state, name, known, now, used, limits) for name, known in state.dimensions.items()}
    changed = any(known.pace != state.dimensions[name].pace for name, known in dimensions.items())
    if changed or now - state.used_from[0] >= USED_S:
        state = replace(state, used_from=(now, sent[0]))
    return replace(state, dimensions=dimensions)


def _spell(state: PaceState, samples: Sequence[Sample], gate: float) -> Spell | None:
    """When the lane began to send: after the last pause, or when the gate opens. A time in which the tuner did not look
    counts as a pause if only a few calls have gone since, because the tuner skips lanes without news and looks again
    at the first answer."""
    now, sent = samples[-1]
    if samples[0][0] <= now - _SAMPLE_S + 0.2 and samples[0][1] == sent:
        return Spell(max(now, gate), sent, state.turned_back)
    before_at, before = state.samples[-1] if state.samples else samples[0]
    if now - before_at > UNSEEN_S and sent[0] - before[0] <= START_WIDTH:
        at = gate if before_at < gate <= now else now
        return Spell(at, before, state.turned_back, at - before_at)
    return state.spell


def _count_use(state: PaceState, now: float, sent: tuple[float, float, float, float], gate: float) -> PaceState:
    """Advance `busy_s`: while the gate is open, by the time that the units sent take at the pace.

    Times in which a gate, a mode, taken slots or missing calls kept the lane from sending must not count.
    """
    if state.stepped_at is None or not state.samples:
        return state
    shut_from = max(state.stepped_at, state.pause.since) if state.pause is not None else state.stepped_at
    open_s = now - state.stepped_at - max(0.0, min(gate, now) - shut_from)
    calls = max(0.0, sent[0] - state.samples[-1][1][0])
    dimensions = {}
    for name, known in state.dimensions.items():
        index = DIMENSIONS.index(name)
        owed = known.owed + max(0.0, sent[index] - state.samples[-1][1][index])
        used_s = min(max(0.0, open_s), owed / max(known.pace, 1e-9))
        share = ALLOWED_BELOW if (known.refill or 0.0) < BELOW * known.high else ALLOWED
        dimensions[name] = replace(
            known,
            busy_s=known.busy_s + used_s,
            owed=min(owed - used_s * known.pace, max(known.depth, _mean(state, name))),
            allowed=min(ALLOWED_MOST, known.allowed + share * calls),
        )
    return replace(state, dimensions=dimensions)


def _double(state: PaceState, now: float, sent: float, limits: LaneLimits) -> PaceState:
    requests = state.dimensions.get("requests")
    if requests is None or state.doubled_at is None or now - state.doubled_at < DOUBLING_S:
        return state
    since = now - state.doubled_at
    used = sent - state.used_from[1] >= USED * requests.pace * since - 1
    state = replace(state, doubled_at=now, used_from=(now, sent))
    if not used:
        return state
    pace = min(2 * requests.pace, ceiling("requests", limits))
    faster = replace(requests, pace=pace, depth=_depth("requests", pace, limits))
    return replace(state, dimensions={**state.dimensions, "requests": faster})


def _open(state: PaceState, now: float) -> PaceState:
    """The gate is open: until when is the credit of the pause spent?"""
    pause = state.pause
    if pause is None:
        return state
    if pause.opened_at is None:
        opened_at = min(now, pause.gate or now)
        waits = [
            _credit(known, opened_at - pause.since) / known.refill
            for known in state.dimensions.values()
            if known.refill and not _governed(known, now)  # a header may give a limit that rounds to 0
        ]
        until = opened_at + max(waits, default=0.0) / (CREDIT_PACE - 1)
        return replace(state, pause=replace(pause, opened_at=opened_at, until=until))
    if now < max(pause.until, pause.opened_at + HELD_S):
        return state
    dimensions = dict(state.dimensions)
    held = pause.until > pause.opened_at
    for name, known in dimensions.items():
        if not _governed(known, now):
            saved = min(1.0, known.saved + SAVED_BACK) if held else known.saved
            dimensions[name] = replace(known, saved=saved, busy_s=known.busy_s + _saved_s(known, pause))
    return replace(state, pause=None, dimensions=dimensions)


def calls_per_s(state: PaceState) -> float:
    """Calls/s of mean cost that the pace allows; inf: it sets no bound."""
    return min((known.pace / max(1.0, _mean(state, name)) for name, known in state.dimensions.items()), default=inf)


def _used(state: PaceState, now: float, sent: float) -> bool:
    """Whether the lane has been sending as fast as it may; if it asks for less, there is no need to probe."""
    at, before = state.used_from
    if now - at < USED_LEAST_S:
        return True
    slowest = min((known.pace / max(1.0, _mean(state, name)) for name, known in state.dimensions.items()), default=0.0)
    return sent - before >= USED * slowest * (now - at) - 1


def _mean(state: PaceState, name: str) -> float:
    """Mean units of a call in this dimension, over all that were sent."""
    if name == "requests" or not state.samples:
        return 1.0
    sent = state.samples[-1][1]
    return sent[DIMENSIONS.index(name)] / max(1.0, sent[0])


def _probe(state: PaceState, name: str, known: Dimension, now: float, used: bool, limits: LaneLimits) -> Dimension:
    """Without headers: go carefully for a while, then faster until refused."""
    refill = known.refill
    if refill is None or _governed(known, now):
        return known
    if known.window is not None:
        return _through_window(state, name, known, known.window, now, limits)
    pause = state.pause
    spending = pause is not None and pause.opened_at is not None and now < pause.until
    waited_s = now - known.held_from
    if spending:
        pace = CREDIT_PACE * refill
    elif known.probing_from is None and (
        waited_s < HOLD_LEAST_S or (known.allowed < 1 and waited_s < _hold_s(known, _mean(state, name))) or not used
    ):
        pace = CAREFUL * refill
        if not used:
            known = replace(known, held_from=now)
    elif known.probing_from is None:
        pace, known = _trial(known, 0), replace(known, probing_from=now)
    elif used and _asks_on(known, now, _mean(state, name)):
        pace = _trial(known, _doublings(known, now, _mean(state, name)))
    else:
        # There are not enough slots or calls for more, or it is as fast as the highest: what was not refused is the
        # rate.
        refill = max(refill, min(_lately(state, name, _here(state, name, now)), ceiling(name, limits)))
        empty = known.empty if refill == known.refill else None
        known = _remember(known, refill, now, False)
        known = replace(known, refill=refill, empty=empty, probing_from=None, held_from=now, failed=1)
        pace = CAREFUL * refill
    return _paced(name, known, pace, limits)


def _asks_on(known: Dimension, now: float, unit: float) -> bool:
    """Whether a probe has still to send the credit of a pause and its first calls."""
    refill, since_s = known.refill or 0.0, now - (known.probing_from or now)
    above = (known.high - refill) if known.high <= HIGH_TIMES * refill else (HIGH_TIMES - 1) * refill
    return above * since_s < max(CREDIT_MOST_S * refill, PROBE_CALLS * unit)


def _trial(known: Dimension, doublings: int) -> float:
    """The pace of a probe: the highest recent limit, if that is more; else it doubles."""
    refill = known.refill or 0.0
    if known.high > PROBE * refill:
        return min(known.high, HIGH_TIMES * refill)
    return PROBE * refill * 2.0**doublings


def _doublings(known: Dimension, now: float, unit: float) -> int:
    """How often a probe without refusals has doubled its pace; a few calls must go each time."""
    if known.probing_from is None or known.refill is None:
        return 0
    left_s, pace, doublings = now - known.probing_from, PROBE * known.refill, 0
    while (left_s := left_s - max(TRIAL_S, TRIAL_CALLS * unit / pace)) >= 0 and doublings < _DOUBLINGS:
        pace, doublings = 2 * pace, doublings + 1
    return doublings


def _hold_s(known: Dimension, unit: float) -> float:
    """Seconds between probes while `allowed` has no refusal left."""
    refill = known.refill or 0.0
    slow_s = min(HOLD_MOST_S, max(HOLD_S, HOLD_CALLS * unit / refill))
    most_s = HOLD_BELOW_S if refill < BELOW * known.high else slow_s
    return float(min(HOLD_LEAST_S * HOLD_TIMES**known.failed, most_s))


def _through_window(
    state: PaceState, name: str, known: Dimension, window: Window, now: float, limits: LaneLimits
) -> Dimension:
    """Spend a window's budget when it opens, as fast as at the start; then probe for more at its mean rate."""
    spell, index = state.spell, DIMENSIONS.index(name)
    if spell is None or now - spell.at > 1.05 * window.every_s + 0.5:
        # Nothing was refused all that time.
        return replace(
            known, window=None, refill=min(window.otherwise, ceiling(name, limits)), empty=None, held_from=now
        )
    spent = state.samples[-1][1][index] - spell.sent[index] - (state.turned_back[index] - spell.turned_back[index])
    doublings = min(_DOUBLINGS, int(max(0.0, now - spell.at - window.late_s) / window.doubling_s))
    opening = START_PER_S * _mean(state, name) * 2.0**doublings
    mean = CAREFUL * (known.refill or 0.0)
    left = max(mean, (window.units - spent) / WINDOW_TAPER_S)
    return _paced(name, known, mean if spent >= WINDOW_SPENT * window.units else min(opening, left), limits)


def _doubling_s(calls: float, ran_s: float) -> float:
    """The doubling time of the start, seconds, from calls and time. A sliding window gives its budget back in the order
    in which it was spent, so doubling faster the next time would be refused."""

    def gone(doubling_s: float) -> float:
        doublings = min(_DOUBLINGS, int(ran_s / doubling_s))
        last_s = ran_s - doublings * doubling_s
        return START_PER_S * (doubling_s * (2.0**doublings - 1) + last_s * 2.0**doublings)

    fast_s, slow_s = DOUBLING_S, DOUBLING_MOST_S
    for _ in range(20):
        middle_s = (fast_s + slow_s) / 2
        fast_s, slow_s = (middle_s, slow_s) if gone(middle_s) > calls else (fast_s, middle_s)
    return slow_s


def _before_it_opens(state: PaceState, limits: LaneLimits) -> PaceState:
    """A spent window opens as slowly as it did at first, whatever the last pace was. With headers the lane goes at
    their rate and ignores the measured inflow: into a sliding window nothing flows while it is spent.
    """
    dimensions = dict(state.dimensions)
    for name, known in state.dimensions.items():
        if known.window is not None:
            dimensions[name] = _paced(name, known, _opening(known, _mean(state, name)), limits)
        elif known.limit is not None and known.flow is not None:
            told = max(LEAST_RATE, known.limit / known.window_s)
            pace = min(told * known.share, ceiling(name, limits))
            dimensions[name] = replace(known, pace=pace, refill=told * known.share, flow=told, measured=None)
    return replace(state, dimensions=dimensions)


def _opening(known: Dimension, unit: float) -> float:
    return min(START_PER_S * unit, CAREFUL * (known.refill or inf))


def _here(state: PaceState, name: str, now: float) -> Mark:
    """The present moment in the order of sending."""
    sent = state.samples[-1][1]
    return Mark(int(sent[0]), sent[DIMENSIONS.index(name)], now)


def _paced(name: str, known: Dimension, pace: float, limits: LaneLimits) -> Dimension:
    pace = min(pace, ceiling(name, limits))
    return known if pace == known.pace else replace(known, pace=pace, depth=_untold_depth(name, pace, known, limits))


# ── what the scripts spend at ──────────────────────────────────────────────────────────────────────────────────────


class Paces(NamedTuple):
    """What the law writes into a lane, by dimension."""

    paces: Mapping[str, Pacing]
    anchors: Mapping[str, Anchor]  #: of levels, if a new header says how full the bucket is
    headers_govern: bool

    def encode(self) -> dict[str, float | str | bytes]:
        """Fields that pace a lane anew."""
        return encode_paces(self.paces, self.headers_govern) | encode_levels(self.anchors)


NOT_PACED = Paces({}, {}, False)  #: of a lane that is unlimited


def set_points(
    state: PaceState, now: float, turned_back: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
) -> tuple[PaceState, Paces]:
    """The paces that scripts obey. After a new header also an anchor of the level: how many units will have been
    admitted in all when the provider's bucket is empty.

    Args:
        turned_back: Units of all refused calls, by dimension.
    Returns:
        The state, in which those anchors count as written, and what to write.
    """
    paces: dict[str, Pacing] = {}
    anchors: dict[str, Anchor] = {}
    dimensions = dict(state.dimensions)
    for name, known in state.dimensions.items():
        index = DIMENSIONS.index(name)
        governed = _governed(known, now)
        guard = min(known.depth / 4, known.guard) if governed else 0.0
        paces[name] = Pacing(known.pace * (1.0 - known.edge) if governed else known.pace, known.depth, guard)
        if known.level and known.newest is not None:
            since = [cost[index] for seq, cost in state.refused if seq > known.newest.seq]
            admitted = known.newest.sent - (turned_back[index] - sum(since))
            refilled = REFILL_TRUST * (known.refill or 0.0) * max(0.0, now - known.newest.at)
            units = known.remaining * known.share + admitted + refilled
            anchors[name] = Anchor(units, lowers=known.capped or now < known.doubt_until)
            dimensions[name] = replace(known, level=False)
    govern = any(_governed(known, now) and now >= known.doubt_until for known in state.dimensions.values())
    return replace(state, dimensions=dimensions), Paces(paces, anchors, govern)


def ramp(state: PaceState) -> int:
    """Most calls out at once while the provider's rate is unknown, or only refusals come; 0: no bound."""
    if state.narrow_from is not None and state.stepped_at is not None:
        return int(2.0 ** (max(0.0, state.stepped_at - state.narrow_from) // DOUBLING_S))
    return START_WIDTH + state.answers if state.ramping else 0


def counted(state: PaceState, now: float, sent: tuple[float, float, float, float]) -> dict[str, Counted]:
    """The lane's figures in each dimension that fresh headers govern, for its siblings.

    Args:
        sent: Units sent in all, by dimension.
    """
    return {
        name: Counted(
            limit=known.limit,
            window_s=known.window_s,
            measured=known.limit / known.window_s if known.flow is None else known.flow,
            pace=known.pace,
            sent=sent[DIMENSIONS.index(name)],
        )
        for name, known in state.dimensions.items()
        if known.limit is not None and _governed(known, now)
    }


def _governed(known: Dimension, now: float) -> bool:
    """Whether headers say how this dimension stands."""
    return known.limit is not None and now - known.header_at < FRESH_S
