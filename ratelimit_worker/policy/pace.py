"""How fast may a lane go right now? A shadow of the provider's bucket (control law, *Pace*).

With rate-limit headers the shadow follows what they say (`_shadow`). Without, the provider's bucket is known to be
empty at each refusal, and between two such moments it gave out exactly what flowed in (`_empty_again`); between
refusals the lane probes. At the start it doubles until the first header or refusal. Never above what a person
configured.

Pure: a state, an observation, a time → a new state. The tuner (flow/tune.py) is its only writer; the scripts in
stores/lua spend at the set-points that come out of `set_points`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, sqrt

from ratelimit_worker.calls import DIMENSIONS, LaneLimits, Snapshot

START_PER_S = 4.0  #: requests/s of a lane of which nothing is known
DOUBLING_S = 0.7
START_WIDTH = 8  #: calls out at once before the first answer; one more for each answer
LEAST_TOLD_PER_S = 1e-6  #: a header that tells of less tells of nothing
FRESH_S = 15.0  #: a header older than this no longer governs
GUARD_S = 0.12  #: seconds of refill kept in hand while headers are fresh
REFILL_TRUST = 0.9  #: share of the refill since a header that is counted in its level
#: Depth of a configured dimension beyond one call, seconds of its rate: what a pump that is late may make good. 50/s
#: has depth 2, so at most 52 in any second; with depth 1 every late wake-up was lost for good (46/s of 50 measured).
CONFIGURED_BURST_S = 0.02
UNTOLD_BURST_S = 0.25  #: depth without headers, seconds of the rate
MEASURE_S = 0.5  #: the refill is measured at least this far apart
USED = 0.8  #: share of the pace that must have been sent for the time to count as used
USED_LEAST_S, USED_S = 0.5, 1.0  #: that is looked at from so much time on, and then anew
#: An estimate from empty to empty is believed from so many seconds and calls on.
EMPTY_S, EMPTY_CALLS = 0.6, 8.0
CAREFUL, PROBE = 0.98, 1.25  #: of the estimate: pace between probes, pace of the first second of one
HOLD_LEAST_S, HOLD_MOST_S = 1.5, 8.0  #: between probes
HOLD_CALLS, HOLD_SLOW_CALLS = 100.0, 20.0  #: calls of one hold where that is not too short or too long
MOVED = 0.18  #: an estimate that moved by more is probed again soon
CREDIT_MOST_S, CREDIT_PACE = 2.0, 1.6  #: what a pause has saved: at most so much refill, spent at so much of the pace
SAVED_BACK = 0.25  #: of the trust in it, for a pause that held
#: A refusal while headers say that enough is left: they are late or rounded, or it had no reason. For so long then,
#: seconds, and twice as long each time it happens again, no header raises the level, and none lowers the refill. The
#: bucket is taken to have been empty then, so what flows in behind the gate is spent at once after it: a refusal
#: without reason costs what flowed over in its gate, and no more.
DOUBT_S, DOUBT_MOST_S = 30.0, 1_800.0
#: Depth meanwhile, seconds of the refill: what a gate of a second has saved; and of the guard what is kept.
DOUBTED_DEPTH_S, DOUBTED_GUARD = 1.0, 0.5
_REMEMBERED = 256  #: refusals
_SAMPLE_S = 1.5  #: samples of what was sent are kept so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a call took along when it was released: its place in the order of sending."""

    seq: int
    sent_at: float  #: seconds, Redis clock
    sent: tuple[float, float, float, float]  #: units sent in all, this call and refused ones included, by dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One answer, as the lane's list keeps it."""

    at: float  #: seconds, Redis clock
    ticket: Ticket
    refused: bool = False
    crowded: bool = False  #: ... for calls at once, not for a rate, as the refusal says in words
    sick: bool = False
    good: bool = False
    quota: bool = False  #: nothing is left until somebody pays, or a day has passed
    barred: bool = False  #: the key was not accepted
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    retry_after_s: float | None = None
    refused_dimension: str | None = None
    cost: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  #: of the call, by dimension; told of refused ones
    older: int = 0  #: calls still out that were sent before this one; told of sick and refused ones
    stated: Mapping[str, float] = field(default_factory=dict)  #: units/s that a refusal names in words, by dimension


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in the order of sending."""

    seq: int
    sent: float  #: units of one dimension sent in all
    at: float  #: seconds, Redis clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """What is known of one dimension of a lane."""

    pace: float  #: units/s that the lane goes at
    depth: float = 1.0  #: most that may go at once
    guard: float = 0.0
    refill: float | None = None  #: R: units/s that the provider gives; None: not yet known
    # from headers
    limit: float | None = None  #: units per window; None: no header told it
    window_s: float = 60.0
    remaining: float = 0.0  #: of the newest snapshot
    newest: Mark | None = None  #: its ticket: `remaining` was counted when its request arrived, not with the answer
    header_at: float = -1e9  #: when the newest answer came: whether headers are fresh
    level: bool = False  #: the level is to be written to the bucket, once
    capped: bool = False  #: a person has set a ceiling, so what a header says may only lower the level
    largest: float = 0.0  #: largest `remaining` seen since the limit last changed
    measured: tuple[float, Mark] | None = None  #: (remaining, ticket) from which the refill is measured
    doubt_until: float = -1e9  #: headers are not to be trusted until then, seconds
    doubt_s: float = 0.0  #: how long the last doubt was
    # from refusals
    empty: Mark | None = None  #: the last moment at which the provider's bucket was known to be empty
    held_from: float = -1e9  #: since when the pace is the careful one, seconds
    hold_s: float = HOLD_LEAST_S
    probing_from: float | None = None
    stated: float | None = None  #: units/s that refusals name in words
    saved: float = 1.0  #: trust in what a pause has saved, 0 to 1: less for a shallow bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The gate was shut: what the provider's bucket saved meanwhile is to be spent."""

    since: float  #: of the refusal, seconds
    sent: tuple[float, float, float, float]  #: when the gate opened; until then as of the refusal
    opened_at: float | None = None
    until: float = 0.0  #: the credit is spent by then


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceState:
    """All that the law remembers of one lane."""

    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    ramping: bool = True  #: no header and no refusal yet
    doubled_at: float | None = None  #: last doubling; None: nothing was sent yet
    answers: int = 0  #: good ones while ramping
    refused: tuple[tuple[int, tuple[float, float, float, float]], ...] = ()  #: (seq, cost) of late, by seq
    samples: tuple[tuple[float, tuple[float, float, float, float]], ...] = ()  #: (time, units sent in all) of late
    used_from: tuple[float, float] = (-1e9, 0.0)  #: (time, requests sent) from which use of the pace is measured
    pause: Pause | None = None


def initial(limits: LaneLimits) -> PaceState:
    """The state of a lane of which only a person's word is known."""
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
    """Units/s that a person allows in a dimension; inf where nobody said."""
    told = {"requests": limits.rpm, "tokens": limits.tpm}.get(name)
    return inf if told is None else told / 60


def _depth(name: str, pace: float, limits: LaneLimits) -> float:
    """Most that may go at once where no header says how deep the provider's bucket is."""
    if name == "requests" and limits.rpm is not None:
        return 1.0 + pace * CONFIGURED_BURST_S
    return max(1.0, pace * UNTOLD_BURST_S)


# ── what an answer says ────────────────────────────────────────────────────────────────────────────────────────────


def observe(state: PaceState, seen: Observation, limits: LaneLimits, crowded: bool = False) -> PaceState:
    """The state after one more answer, in the order of the list.

    Args:
        crowded: It was refused for calls at once (policy/flight.py), which says nothing of a rate.
    """
    if seen.refused:
        refused = sorted({*state.refused, (seen.ticket.seq, seen.cost)})[-_REMEMBERED:]
        state = replace(state, refused=tuple(refused))
    told = {
        name: snapshot
        for name, snapshot in seen.snapshots.items()
        if name in DIMENSIONS and snapshot.limit / snapshot.window_s > LEAST_TOLD_PER_S
    }
    if told:
        dimensions = dict(state.dimensions)
        for name, snapshot in told.items():
            dimensions[name] = _shadow(state, name, snapshot, seen, limits)
        state = replace(state, dimensions=dimensions, ramping=False)
    if seen.refused:
        return state if crowded else _refused(state, seen, limits)
    return count_answers(state, int(seen.good))


def count_answers(state: PaceState, answers: int) -> PaceState:
    """The state after good answers that say nothing more: at the start they widen the lane."""
    return replace(state, answers=state.answers + answers) if state.ramping and answers else state


def unlearned(state: PaceState, limits: LaneLimits, now: float) -> PaceState:
    """The state without what refusals have taught: they were about calls at once. What headers say stays."""
    kept = {name: known for name, known in state.dimensions.items() if _governed(known, now)}
    fresh = dict(initial(limits).dimensions)
    if (requests := state.dimensions.get("requests")) is not None and limits.rpm is None and "requests" in fresh:
        pace = max(START_PER_S, 2 * requests.pace)
        fresh["requests"] = Dimension(pace=pace, depth=_depth("requests", pace, limits))
    ramping = not kept and limits.rpm is None and limits.adaptive
    return replace(state, dimensions=fresh | kept, ramping=ramping, doubled_at=now, answers=_REMEMBERED, pause=None)


def _between(state: PaceState, name: str, start: Mark, end: Mark) -> tuple[float, float]:
    """(units, calls) that the provider admitted between two moments, in the order of sending."""
    index = DIMENSIONS.index(name)
    turned_back = [cost[index] for seq, cost in state.refused if start.seq < seq <= end.seq]
    return end.sent - start.sent - sum(turned_back), float(end.seq - start.seq - len(turned_back))


def _shadow(state: PaceState, name: str, snapshot: Snapshot, seen: Observation, limits: LaneLimits) -> Dimension:
    """A dimension that follows the provider's own bucket (control law, points 1 and 2)."""
    told, top = snapshot.limit / snapshot.window_s, ceiling(name, limits)
    mark = _mark(name, seen)
    known = state.dimensions.get(name) or Dimension(pace=told)
    if known.newest is not None and mark.seq <= known.newest.seq:
        return known  # an older answer that came later says nothing new
    same = known.limit == snapshot.limit and known.window_s == snapshot.window_s and known.refill is not None
    refill = known.refill if same and known.refill is not None else told
    largest = max(known.largest, snapshot.remaining) if same else snapshot.remaining
    # Answers of models take seconds, and each its own time: between two moments of answering there is no rate, and a
    # level that is counted from there forgets what flowed in meanwhile (600/min at 4 s of latency went at 230/min).
    base = known.measured if same else None
    doubted = seen.at < known.doubt_until
    if doubted:
        refill, base = told, (snapshot.remaining, mark)
    elif base is None:
        base = (snapshot.remaining, mark)
    elif (since := mark.at - base[1].at) >= MEASURE_S:
        admitted, _ = _between(state, name, base[1], mark)
        measured = (snapshot.remaining - base[0] + admitted) / since
        full = snapshot.remaining >= largest * 0.98 - 1
        if not full and abs(measured - refill) * since > 2 * _unit(name, mark) + 0.05 * refill * since:
            refill = min(told, max(0.02 * told, 0.3 * refill + 0.7 * measured))
        base = (snapshot.remaining, mark)
    pace = min(refill, top)
    least = max(2.0 if name == "requests" else 1.3 * _unit(name, mark), 0.25 * refill)
    # A full bucket has told what it held when this call had been taken out of it.
    depth = max(least, min(largest + _unit(name, mark), DOUBTED_DEPTH_S * refill) if doubted else largest)
    return replace(
        known,
        pace=pace,
        depth=depth if top == inf else _depth(name, pace, limits),
        guard=GUARD_S * refill * (DOUBTED_GUARD if doubted else 1.0) if top == inf else 0.0,
        refill=refill,
        limit=snapshot.limit,
        window_s=snapshot.window_s,
        remaining=snapshot.remaining,
        newest=mark,
        header_at=seen.at,
        level=not seen.refused,  # the script has set it, to what one call needs
        capped=top < inf,
        largest=largest,
        measured=base,
        held_from=seen.at,
        probing_from=None,
    )


def _mark(name: str, seen: Observation) -> Mark:
    ticket = seen.ticket
    return Mark(ticket.seq, ticket.sent[DIMENSIONS.index(name)], ticket.sent_at)


def _unit(name: str, mark: Mark) -> float:
    """Units of a call, in the mean of all."""
    return 1.0 if name == "requests" else max(1.0, mark.sent / max(1, mark.seq))


def _refused(state: PaceState, seen: Observation, limits: LaneLimits) -> PaceState:
    """After a 429: in the dimension that it names, else in all that are bound (control law, points 3 and 4)."""
    dimensions = dict(state.dimensions)
    named = seen.refused_dimension if seen.refused_dimension in DIMENSIONS else None
    for name in [named] if named is not None else list(dimensions):
        known = dimensions.get(name) or Dimension(pace=inf)
        if not _governed(known, seen.at):
            dimensions[name] = _empty_again(state, name, known, seen, limits)
        elif name in seen.snapshots and seen.snapshots[name].remaining >= seen.cost[DIMENSIONS.index(name)]:
            dimensions[name] = _doubt(known, seen.at)
    pause = state.pause
    if pause is None or pause.opened_at is not None:
        pause = Pause(since=seen.ticket.sent_at, sent=seen.ticket.sent)
    return replace(state, dimensions=dimensions, ramping=False, pause=pause)


def _doubt(known: Dimension, at: float) -> Dimension:
    """The header said that enough was left, and yet the call was refused."""
    if at < known.doubt_until:
        return replace(known, doubt_until=max(known.doubt_until, at + known.doubt_s))
    doubt_s = min(DOUBT_MOST_S, max(DOUBT_S, 2 * known.doubt_s))
    return replace(
        known, doubt_until=at + doubt_s, doubt_s=doubt_s, depth=max(1.0, DOUBTED_DEPTH_S * (known.refill or 0.0))
    )


def _empty_again(state: PaceState, name: str, known: Dimension, seen: Observation, limits: LaneLimits) -> Dimension:
    """The provider's bucket was empty when this request arrived: how much did it give out since it was so before?"""
    mark, at = _mark(name, seen), seen.at
    if known.empty is not None and mark.seq <= known.empty.seq:
        return known  # older news
    recent = _lately(state, name, mark)
    saved, shallow = known.saved, False
    if state.pause is not None and state.pause.opened_at is not None and at < state.pause.until:
        # The credit of a pause was being spent: did it exist?
        since = max(0.0, mark.at - state.pause.opened_at)
        got = mark.sent - state.pause.sent[DIMENSIONS.index(name)] - (known.refill or 0.0) * since
        due = _credit(known, state.pause.opened_at - state.pause.since)
        if got < 0.5 * due:
            saved, shallow = saved / 2, True
    before, stated = known.refill, seen.stated.get(name)
    if stated is not None and stated != known.stated:
        refill, empty = stated, mark  # believed at once, as a header's limit is; then measured
    elif before is None or known.empty is None:
        start = min(known.pace, recent or inf)
        if start == inf:  # of a dimension that only now turns out to be bound
            start = _unit(name, mark) * state.dimensions["requests"].pace if "requests" in state.dimensions else 1.0
        refill = 0.8 * start
        empty = mark
    elif shallow:
        refill, empty = before, mark  # it overflowed in the pause, so what it gave out says less than flowed in
    else:
        refill, empty = _from_empty(state, name, known.empty, mark, before)
        if empty is mark and 0.8 * recent > 1.3 * refill:
            refill = 0.8 * recent  # after a long quiet: the limit rose
    top = ceiling(name, limits)
    refill = min(max(refill, 1e-3), top)
    moved = before is None or abs(refill - before) > MOVED * before
    pace = CAREFUL * refill
    return replace(
        known,
        pace=pace,
        depth=max(_depth(name, pace, limits), _unit(name, mark)),
        guard=0.0,
        refill=refill,
        empty=empty,
        stated=stated,
        saved=saved,
        held_from=at,
        hold_s=HOLD_LEAST_S if moved else _hold_s(refill / _unit(name, mark)),
        probing_from=None,
    )


def _from_empty(state: PaceState, name: str, empty: Mark, mark: Mark, refill: float) -> tuple[float, Mark]:
    """The estimate after another empty moment, and from which one the next is counted."""
    units, calls = _between(state, name, empty, mark)
    since, unit = mark.at - empty.at, _unit(name, mark)
    units = max(0.0, units)
    if since <= 0:
        return refill, empty
    expected = refill * since
    telling = abs(units - expected) / unit > 2 * sqrt(expected / unit) + 1
    if since >= EMPTY_S and (calls >= EMPTY_CALLS or telling):
        return units / since, mark
    measured = units / since
    if measured < refill:
        weight = max(0.0, calls) / (max(0.0, calls) + 4)
        return refill + weight * (measured - refill), empty
    return refill, empty


def _lately(state: PaceState, name: str, mark: Mark) -> float:
    """Units/s that were admitted in the second before a moment; 0 where nothing is known of it."""
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


def _hold_s(calls_per_s: float) -> float:
    slow_s = HOLD_SLOW_CALLS / calls_per_s
    return min(max(HOLD_CALLS / calls_per_s, HOLD_LEAST_S), max(HOLD_MOST_S, slow_s))


def _credit(known: Dimension, pause_s: float) -> float:
    """Units that the provider's bucket has saved in a pause, beyond what ours has."""
    refill = known.refill or 0.0
    return max(0.0, known.saved * refill * min(CREDIT_MOST_S, pause_s) - min(known.depth, refill * pause_s))


# ── what time alone changes ────────────────────────────────────────────────────────────────────────────────────────


def step(
    state: PaceState,
    now: float,
    sent: tuple[float, float, float, float],
    limits: LaneLimits,
    gate: float = 0.0,
    careful: bool = False,
) -> PaceState:
    """The state some time later, about ten times a second: doubling at the start, credit after a pause, probes.

    Args:
        now: Seconds, Redis clock.
        sent: Units sent in all, by dimension.
        gate: No call starts before, seconds; 0: it is open.
        careful: No upward probes: the provider is sick.
    """
    samples = (*(sample for sample in state.samples if sample[0] > now - _SAMPLE_S), (now, sent))
    state = replace(state, samples=samples)
    if state.doubled_at is None:
        state = replace(state, doubled_at=now, used_from=(now, sent[0]))
    if gate > now:
        return replace(state, used_from=(now, sent[0]))
    if state.ramping:
        return _double(state, now, sent[0], limits)
    state = _open(state, now, sent)
    used = not careful and _used(state, now, sent[0])
    dimensions = {name: _probe(state, name, known, now, used, limits) for name, known in state.dimensions.items()}
    changed = any(known.pace != state.dimensions[name].pace for name, known in dimensions.items())
    if changed or now - state.used_from[0] >= USED_S:
        state = replace(state, used_from=(now, sent[0]))
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


def _open(state: PaceState, now: float, sent: tuple[float, float, float, float]) -> PaceState:
    """The gate is open: how long will it take to spend what the pause has saved?"""
    pause = state.pause
    if pause is None:
        return state
    if pause.opened_at is None:
        waits = [
            _credit(known, now - pause.since) / known.refill
            for known in state.dimensions.values()
            if known.refill and not _governed(known, now)  # a header may tell of a limit that rounds to nothing
        ]
        until = now + max(waits, default=0.0) / (CREDIT_PACE - 1)
        return replace(state, pause=replace(pause, opened_at=now, sent=sent, until=until))
    if now < pause.until:
        return state
    dimensions = dict(state.dimensions)
    if pause.until > pause.opened_at:  # it held
        for name, known in dimensions.items():
            if known.saved < 1 and not _governed(known, now):
                dimensions[name] = replace(known, saved=min(1.0, known.saved + SAVED_BACK))
    return replace(state, pause=None, dimensions=dimensions)


def calls_per_s(state: PaceState) -> float:
    """Calls/s that the pace allows, of mean cost; inf: it does not bind."""
    return min((known.pace / max(1.0, _mean(state, name)) for name, known in state.dimensions.items()), default=inf)


def _used(state: PaceState, now: float, sent: float) -> bool:
    """Whether the lane has been going as fast as it may: who asks for less need not know how much there is."""
    at, before = state.used_from
    if now - at < USED_LEAST_S:
        return True
    slowest = min((known.pace / max(1.0, _mean(state, name)) for name, known in state.dimensions.items()), default=0.0)
    return sent - before >= USED * slowest * (now - at) - 1


def _mean(state: PaceState, name: str) -> float:
    """Units of a call in this dimension, in the mean of all that were sent."""
    if name == "requests" or not state.samples:
        return 1.0
    sent = state.samples[-1][1]
    return sent[DIMENSIONS.index(name)] / max(1.0, sent[0])


def _probe(state: PaceState, name: str, known: Dimension, now: float, used: bool, limits: LaneLimits) -> Dimension:
    """Without headers: careful for a while, then faster until refused (control law, point 5)."""
    refill = known.refill
    if refill is None or _governed(known, now):
        return known
    pause = state.pause
    if pause is not None and pause.opened_at is not None and now < pause.until:
        times = CREDIT_PACE
    elif known.probing_from is None and now - known.held_from < known.hold_s:
        times = CAREFUL
    elif not used:
        times, known = CAREFUL, replace(known, probing_from=None, held_from=now)
    elif known.probing_from is None:
        times, known = PROBE, replace(known, probing_from=now)
    else:
        times = PROBE * 2.0 ** int(now - known.probing_from)
    pace = min(times * refill, ceiling(name, limits))
    return known if pace == known.pace else replace(known, pace=pace, depth=_depth(name, pace, limits))


# ── what the scripts spend at ──────────────────────────────────────────────────────────────────────────────────────


def set_points(
    state: PaceState, now: float, turned_back: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
) -> tuple[PaceState, dict[str, float]]:
    """Fields of the lane's hash by dimension: p pace, d depth, g guard, and where a new header says so a, the anchor
    of the level: units that will have been admitted in all when the provider's bucket is empty. The script subtracts
    what has been sent by then and was not refused, so calls that leave between decision and writing are counted. m is
    the same where headers are in doubt or a person has set a ceiling: it may only lower the level.

    Args:
        turned_back: Units of all refused calls, by dimension.
    Returns:
        The state without the anchors that are written, and the fields.
    """
    fields: dict[str, float] = {}
    dimensions = dict(state.dimensions)
    for name, known in state.dimensions.items():
        index = DIMENSIONS.index(name)
        number = index + 1
        fields[f"p{number}"], fields[f"d{number}"] = known.pace, known.depth
        fields[f"g{number}"] = min(known.depth / 4, known.guard) if _governed(known, now) else 0.0
        if known.level and known.newest is not None:
            since = [cost[index] for seq, cost in state.refused if seq > known.newest.seq]
            admitted = known.newest.sent - (turned_back[index] - sum(since))
            refilled = REFILL_TRUST * (known.refill or 0.0) * max(0.0, now - known.newest.at)
            letter = "m" if known.capped or now < known.doubt_until else "a"
            fields[f"{letter}{number}"] = known.remaining + admitted + refilled
            dimensions[name] = replace(known, level=False)
    told = any(_governed(known, now) and now >= known.doubt_until for known in state.dimensions.values())
    fields["told"] = float(told)
    return replace(state, dimensions=dimensions), fields


def ramp(state: PaceState) -> int:
    """Calls out at once while nothing is known of the provider; 0: no bound."""
    return START_WIDTH + state.answers if state.ramping else 0


def _governed(known: Dimension, now: float) -> bool:
    """Whether headers say how this dimension stands."""
    return known.limit is not None and now - known.header_at < FRESH_S
