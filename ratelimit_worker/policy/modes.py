"""Is the provider sick, and what may a lane send meanwhile?

In small: after 5 sick answers in a row the provider counts as away. Then only probes go out: one at a time, a growing
gap apart, and each good answer doubles their number; five good ones end it. The full ladder (NORMAL, REDUCED,
EMERGENCY, HALT) takes this place later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SICK_ROW = 5  #: sick answers in a row (control law; the same number stands in stores/lua/_lane.lua)
GOOD_ENOUGH = 5  #: good answers that end an outage
GAP_SHARE, GAP_LEAST_S, GAP_MOST_S = 0.03, 0.5, 30.0  #: gap between probes: a share of the outage so far


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeState:
    """What is remembered of one lane's health."""

    sick_row: int = 0
    away_since: float | None = None  #: seconds, Redis clock; None: the provider is there
    good_row: int = 0
    width: int = 0  #: probes at once; 0: no bound


def provider_away(sick_row: int) -> bool:
    """Whether so many sick answers in a row mean that the provider is away."""
    return sick_row >= SICK_ROW


def observe(state: ModeState, *, at: float, sent_at: float, sick: bool, good: bool) -> ModeState:
    """The state after one more answer.

    Args:
        at: When the answer came, seconds.
        sent_at: When its request left; answers to requests sent before the outage was known prove nothing.
    """
    if sick:
        row = state.sick_row + 1
        if state.away_since is not None:
            stale = sent_at < state.away_since
            return state if stale else replace(state, sick_row=row, good_row=0, width=1)
        if provider_away(row):
            return replace(state, sick_row=row, away_since=at, good_row=0, width=1)
        return replace(state, sick_row=row)
    if not good:
        return state
    if state.away_since is None:
        return replace(state, sick_row=0)
    if sent_at < state.away_since:
        return state
    good_row = state.good_row + 1
    if good_row >= GOOD_ENOUGH:
        return ModeState()
    return replace(state, sick_row=0, good_row=good_row, width=state.width * 2)


def set_points(state: ModeState, now: float) -> dict[str, float | str]:
    """Fields of the lane's hash: width (probes at once, 0 none) and gap (µs between probes)."""
    if state.away_since is None:
        return {"width": 0, "gap": 0}
    gap_s = min(GAP_MOST_S, max(GAP_LEAST_S, GAP_SHARE * (now - state.away_since)))
    return {"width": state.width, "gap": 0 if state.good_row else int(gap_s * 1e6)}
