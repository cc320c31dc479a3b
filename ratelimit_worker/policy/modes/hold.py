"""What may a lane send in its mode? A share of its pace, a rate, probes, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import HALT_GAP_S, MANY
from ratelimit_worker.policy.modes.pins import Pin
from ratelimit_worker.policy.modes.state import ModeState

PINNED_REDUCED_SHARE = 0.5  #: of the pace, in a REDUCED by hand
GAP_SHARE, GAP_LEAST_S, GAP_MOST_S = 0.03, 0.6, 30.0  #: gap between probes: a share of the outage so far
UNTOLD_PER_S = 4.0  #: least pace that a lane without one is reduced from, calls/s
#: A key that is replaced is soon accepted, and asking costs nothing: probes begin close together and have this share of
#: the time so far between them; beyond GAP_MOST_S it is HALT_GAP_S.
KEY_GAP_SHARE, KEY_GAP_LEAST_S = 0.2, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Calls per minute of a lane without adaptive pace, by mode; the last is every lane's pinned EMERGENCY."""

    normal: float = 60.0
    reduced: float = 30.0
    emergency: float = 10.0


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
    return Hold(probes=state.probes, gap_s=0.0 if state.good_row else gap_s)


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
