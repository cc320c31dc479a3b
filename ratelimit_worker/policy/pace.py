"""How fast may a lane go right now?

The law in small: rate-limit headers where the provider sends them (points 1 and 2 of the control law), else a start at
4 requests/s that doubles each second until the first refusal, then ×0.8 on a refusal (at most once a second) and ×1.05
for each second without one in which the rate was used. Never above what a person configured.

Pure: a state, an observation, a time → a new state. The tuner (flow/tune.py) is its only writer; the scripts in
stores/lua spend at the set-points that come out of `set_points`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ratelimit_worker.calls import DIMENSIONS, LaneLimits, Snapshot

START_PER_S = 4.0  #: requests/s of a lane of which nothing is known
DOUBLING_S = 1.0
CUT, CREEP = 0.8, 1.05
FRESH_S = 15.0  #: a header older than this no longer governs
GUARD_S = 0.12  #: seconds of refill kept in hand while headers are fresh
REFILL_TRUST = 0.9  #: share of the refill since a header that is counted in its level
#: Depth of a configured dimension beyond one call, seconds of its rate: what a pump that is late may make good. 50/s
#: has depth 2, so at most 52 in any second; with depth 1 every late wake-up was lost for good (46/s of 50 measured).
CONFIGURED_BURST_S = 0.02
UNTOLD_BURST_S = 0.25  #: depth without headers, seconds of the rate
MEASURE_S = 0.5  #: the refill is measured at least this far apart
USED = 0.8  #: share of the pace that must have been sent for the second to count as used


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a call took along when it was released: its place in the order of sending."""

    seq: int
    sent_at: float  #: seconds, Redis clock
    sent: tuple[float, float, float, float]  #: units sent in all, this call included, by dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One answer, as the lane's list keeps it."""

    at: float  #: seconds, Redis clock
    ticket: Ticket
    refused: bool = False
    sick: bool = False
    good: bool = False
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    retry_after_s: float | None = None
    refused_dimension: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """What is known of one dimension of a lane."""

    pace: float  #: units/s that the lane goes at
    depth: float = 1.0  #: most that may go at once
    guard: float = 0.0
    refill: float | None = None  #: units/s that the provider gives, from headers
    limit: float | None = None  #: the header's limit, units per window
    remaining: float | None = None  #: of the newest snapshot
    sent: float = 0.0  #: units sent when that snapshot's ticket was drawn
    ticket_seq: int = -1
    header_at: float = -1e9  #: when the newest answer came: whether headers are fresh
    told_at: float = -1e9  #: when its request left: `remaining` was counted then, at admission, not with the answer
    level: float | None = None  #: to be written to the bucket, once
    largest: float = 0.0  #: largest `remaining` seen since the limit last changed
    measured_from: tuple[float, float, float] | None = None  #: (remaining, sent, time) of the last measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceState:
    """All that the law remembers of one lane."""

    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    started_at: float | None = None  #: first observation, seconds
    doubled_at: float = -1e9  #: last doubling or creep
    cut_at: float = -1e9  #: last ×0.8
    refused_at: float = -1e9
    ramping: bool = True
    sent_at_step: float = 0.0  #: requests sent at the last step, to see whether the rate was used


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
    return PaceState(dimensions=dimensions, ramping=limits.rpm is None)


def ceiling(name: str, limits: LaneLimits) -> float | None:
    """Units/s that a person allows in a dimension; None: not said."""
    told = {"requests": limits.rpm, "tokens": limits.tpm}.get(name)
    return None if told is None else told / 60


def _depth(name: str, pace: float, limits: LaneLimits) -> float:
    """Most that may go at once where no header says how deep the provider's bucket is."""
    if name == "requests" and limits.rpm is not None:
        return 1.0 + pace * CONFIGURED_BURST_S
    return max(1.0, pace * UNTOLD_BURST_S)


def observe(state: PaceState, seen: Observation, limits: LaneLimits) -> PaceState:
    """The state after one more answer, in the order of the list."""
    dimensions = dict(state.dimensions)
    for name, snapshot in seen.snapshots.items():
        if name in DIMENSIONS and snapshot.limit > 0:
            dimensions[name] = _shadow(dimensions.get(name), name, snapshot, seen, limits)
    state = replace(state, dimensions=dimensions, started_at=seen.at if state.started_at is None else state.started_at)
    if seen.refused:
        state = _refused(state, seen, limits)
    return state


def _shadow(known: Dimension | None, name: str, snapshot: Snapshot, seen: Observation, limits: LaneLimits) -> Dimension:
    """A dimension that follows the provider's own bucket (control law, points 1 and 2)."""
    index = DIMENSIONS.index(name)
    told = snapshot.limit / snapshot.window_s
    top = ceiling(name, limits)
    if known is None or known.refill is None:
        known = Dimension(pace=told, refill=told, limit=snapshot.limit, largest=snapshot.remaining)
    if seen.ticket.seq <= known.ticket_seq:
        return known  # an older answer that came later says nothing new
    refill = known.refill if known.limit == snapshot.limit and known.refill is not None else told
    largest = max(known.largest, snapshot.remaining) if known.limit == snapshot.limit else snapshot.remaining
    # Answers of models take seconds, and each its own time: between two moments of answering there is no rate, and a
    # level that is counted from there forgets what flowed in meanwhile (600/min at 4 s of latency went at 230/min).
    sent, at = seen.ticket.sent[index], seen.ticket.sent_at
    base = known.measured_from if known.limit == snapshot.limit else None
    if base is None:
        base = (snapshot.remaining, sent, at)
    elif at - base[2] >= MEASURE_S:
        measured = (snapshot.remaining - base[0] + sent - base[1]) / (at - base[2])
        full = snapshot.remaining >= largest * 0.98 - 1
        if not full and abs(measured - refill) * (at - base[2]) > 2 + 0.05 * refill * (at - base[2]):
            refill = min(told, max(0.02 * told, 0.3 * refill + 0.7 * measured))
        base = (snapshot.remaining, sent, at)
    pace = refill if top is None else min(refill, top)
    return Dimension(
        pace=pace,
        depth=max(2.0 if name == "requests" else 1.0, largest, 0.25 * refill)
        if top is None
        else _depth(name, pace, limits),
        guard=GUARD_S * refill if top is None else 0.0,
        refill=refill,
        limit=snapshot.limit,
        remaining=snapshot.remaining,
        sent=sent,
        ticket_seq=seen.ticket.seq,
        header_at=seen.at,
        told_at=at,
        largest=largest,
        measured_from=base,
        level=snapshot.remaining,
    )


def _refused(state: PaceState, seen: Observation, limits: LaneLimits) -> PaceState:
    """×0.8, at most once a second, where no header says better."""
    state = replace(state, refused_at=seen.at, ramping=False)
    requests = state.dimensions.get("requests")
    if requests is None or _governed(requests, seen.at) or seen.at - state.cut_at < 1.0:
        return state
    pace = requests.pace * CUT
    slower = replace(requests, pace=pace, depth=_depth("requests", pace, limits))
    return replace(state, dimensions={**state.dimensions, "requests": slower}, cut_at=seen.at, doubled_at=seen.at)


def step(state: PaceState, now: float, sent: float, limits: LaneLimits) -> PaceState:
    """What time alone changes, about ten times a second: doubling at the start, creeping later.

    Args:
        now: Seconds, Redis clock.
        sent: Requests released in all.
    """
    requests = state.dimensions.get("requests")
    if requests is None or state.started_at is None or _governed(requests, now):
        return replace(state, doubled_at=now, sent_at_step=sent) if requests is not None else state
    since = now - max(state.doubled_at, state.started_at)
    if since < DOUBLING_S:
        return state
    used = sent - state.sent_at_step >= USED * requests.pace * since
    if not used or now - state.refused_at < 1.0:
        return replace(state, doubled_at=now, sent_at_step=sent)
    top = ceiling("requests", limits)
    pace = requests.pace * (2.0 if state.ramping else CREEP)
    pace = pace if top is None else min(pace, top)
    faster = replace(requests, pace=pace, depth=_depth("requests", pace, limits), guard=0.0)
    return replace(state, dimensions={**state.dimensions, "requests": faster}, doubled_at=now, sent_at_step=sent)


def set_points(state: PaceState, now: float) -> tuple[PaceState, dict[str, float]]:
    """Fields of the lane's hash by dimension: p pace, d depth, g guard, and where a new header says so a, the anchor
    of the level: units that will have been sent in all when the provider's bucket is empty. The script subtracts what
    has been sent by then, so calls that leave between decision and writing are counted.

    Returns:
        The state without the anchors that are written, and the fields.
    """
    fields: dict[str, float] = {}
    dimensions = dict(state.dimensions)
    for name, known in state.dimensions.items():
        number = DIMENSIONS.index(name) + 1
        fields[f"p{number}"], fields[f"d{number}"] = known.pace, known.depth
        fields[f"g{number}"] = min(known.depth / 4, known.guard) if _governed(known, now) else 0.0
        if known.level is not None:
            refilled = REFILL_TRUST * (known.refill or 0.0) * max(0.0, now - known.told_at)
            fields[f"a{number}"] = known.level + known.sent + refilled
            dimensions[name] = replace(known, level=None)
    return replace(state, dimensions=dimensions), fields


def _governed(known: Dimension, now: float) -> bool:
    return known.refill is not None and now - known.header_at < FRESH_S
