"""What may a lane send in its mode? A share of its pace, a rate, probes, or nothing."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import HALT_FIRST_GAP_S, HALT_GAP_S, MANY
from ratelimit_worker.policy.modes.pins import Pin
from ratelimit_worker.policy.modes.state import ModeState

PINNED_REDUCED_SHARE = 0.5  #: share of the pace in a REDUCED that a person has set
GAP_SHARE, GAP_LEAST_S, GAP_MOST_S = 0.03, 0.6, 30.0  #: gap between probes: share of the outage so far, and its bounds
UNTOLD_PER_S = 4.0  #: least pace that REDUCED starts from in a lane without a pace, calls/s
#: In a HALT for a bad key the gap between probes is this share of the time so far, since a new key is often there soon
#: and asking costs nothing; once it would exceed GAP_MOST_S it is HALT_GAP_S.
KEY_GAP_SHARE, KEY_GAP_LEAST_S = 0.2, 5.0
#: In a HALT for a used-up quota the gap grows from HALT_FIRST_GAP_S by this factor with each answer that says so, to at
#: most GAP_MOST_S; once so many calls were told so it is HALT_GAP_S. Each probe is another call if there is one: until
#: several were told so, it may be one call's own quota.
UNPAID_TIMES, UNPAID_SURE = 3.0, 6


class Rates(Struct, frozen=True, kw_only=True):
    """Calls per minute by mode, of lanes without adaptive pace; the last also of any lane in a pinned EMERGENCY."""

    normal: float = 60.0
    reduced: float = 30.0
    emergency: float = 10.0


class Hold(Struct, frozen=True, kw_only=True):
    """What a mode does to a lane."""

    share: float = 1.0  #: share of the pace
    rpm: float | None = None  #: most calls per minute
    probes: int = 0  #: most calls out at once; 0: no bound; `MANY`: any number, with the gap
    gap_s: float = 0.0  #: between two calls
    pause_s: float = 0.0  #: nothing is sent for this long when the mode begins
    shut: bool = False  #: nothing is sent

    @property
    def binds(self) -> bool:
        """Whether it holds back a lane that has no pace."""
        return self.shut or self.probes > 0 or self.rpm is not None


def hold(
    state: ModeState, pin: Pin | None, now: float, *, rates: Rates, adaptive: bool = True, paced: bool = True
) -> Hold:
    """What the mode does to a lane now.

    Args:
        pin: The pin that holds.
        now: Seconds.
        adaptive: False: rates are fixed.
        paced: False: the lane has no pace, so shares are of the rate at which it last sent.
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
    if state.barred:
        gap_s = max(KEY_GAP_LEAST_S, KEY_GAP_SHARE * (now - state.since))
        return gap_s if gap_s <= GAP_MOST_S else HALT_GAP_S
    told = state.unpaid
    if told is None or told.row.total >= UNPAID_SURE:
        return HALT_GAP_S
    return min(GAP_MOST_S, HALT_FIRST_GAP_S * UNPAID_TIMES ** (told.row.total + told.again - 1))


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
            # A pause at first, so that released calls which have not begun go back and do not come on top of the rate.
            # Then both pace and gap hold, since a person may change the lane's pace meanwhile.
            gap_s = 60.0 / rates.emergency
            if now - pin.at < gap_s:
                return Hold(rpm=rates.emergency, pause_s=gap_s)
            return Hold(rpm=rates.emergency, probes=MANY, gap_s=gap_s)
        case Mode.REDUCED if not adaptive and paced:
            return Hold(rpm=_fixed(Mode.REDUCED, rates))
        case Mode.REDUCED:  # only a ceiling: in an outage it is probed as without a pin
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
