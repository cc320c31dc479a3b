"""In which mode is a lane, and by whom or what? Its own words, the same on every face. Pure.

"Provider away" is EMERGENCY by the law alone, where only probes go out; a lane that is new and does not know its pace
yet also bounds the calls that are out, and is "ramping up".
"""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import MANY, LaneState
from ratelimit_worker.flow.lane.decide import halted_by
from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.reports.words import moment

LADDER = tuple(Mode)  #: from most to least that may be sent


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeNow:
    """A lane's mode, and what belongs to it."""

    mode: Mode = Mode.NORMAL
    pinned: bool = False  #: by hand
    until_s: float | None = None  #: the pin ends then, seconds since the epoch; None: it does not by itself
    away: bool = False  #: the law takes the provider to be away: only probes go out
    halted: str = ""  #: in HALT by the law, for what: "key" or "quota"
    ramping: bool = False  #: the pace is not known yet, and grows until the first header or refusal

    @property
    def asides(self) -> tuple[str, ...]:
        """What belongs to the mode, a few words each: "pinned by hand", "provider away", "key not accepted"."""
        said = []
        if self.pinned:
            said.append("pinned by hand" + (f" until {moment(self.until_s)[5:]}" if self.until_s is not None else ""))
        if self.away:
            said.append("provider away")
        elif self.halted:
            said.append("key not accepted" if self.halted == "key" else "quota used up")
        elif self.ramping:
            said.append("ramping up")
        return tuple(said)

    def __str__(self) -> str:
        return f"{self.mode} ({', '.join(self.asides)})" if self.asides else self.mode.value


def mode_now(lane: LaneState, pin: Pin | None = None) -> ModeNow:
    """The mode of a lane, and of the pin that holds there.

    What bounds the calls that are out has a number of its own each. Where the tuner is an older worker, `at_once` alone
    says it, and only the mode tells what it means.
    """
    mode, pinned, points = lane.mode, lane.pinned, lane.points
    return ModeNow(
        mode=mode,
        pinned=pinned,
        until_s=pin.until if pin is not None and pinned else None,
        away=mode is Mode.EMERGENCY and not pinned and 0 < (points.probes or points.at_once) < MANY,
        halted=halted_by(lane),
        ramping=points.ramp > 0 and points.at_once > 0 and mode in {Mode.NORMAL, Mode.REDUCED},
    )


def severity(mode: Mode) -> int:
    """0: NORMAL; the less may be sent, the more."""
    return LADDER.index(mode)
