"""The mode of a lane, and who or what set it, in the words that all commands and pages use. Pure.

"Provider away" means that the law has set EMERGENCY and only probes are sent. A new lane that does not know its pace
yet also limits the calls that are out: it is "ramping up".
"""

from __future__ import annotations

from msgspec import Struct

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import MANY, LaneState
from ratelimit_worker.flow.lane.health import halted_by
from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.reports.words import moment

LADDER = tuple(Mode)  #: from most to least that may be sent


class ModeNow(Struct, frozen=True, kw_only=True):
    """A lane's mode, with who set it and why."""

    mode: Mode = Mode.NORMAL
    pinned: bool = False  #: whether a person has set it
    until_s: float | None = None  #: when the pin ends, seconds since the epoch; None: no pin, or one without an end
    away: bool = False  #: whether the provider is away, according to the law: only probes are sent
    halted: str = ""  #: why the law has halted it: "key" or "quota"; "": it has not
    ramping: bool = False  #: whether the pace is not known yet; the ramp grows until the first header or refusal

    @property
    def asides(self) -> tuple[str, ...]:
        """Notes on the mode, a few words each: "pinned by hand", "provider away", "key not accepted"."""
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
    """The mode of a lane, with the pin that is in force for it.

    Each limit on the calls that are out has a field of its own. A tuner of an older version writes only `at_once`,
    whose meaning depends on the mode.
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
    """0 for NORMAL; higher for stricter modes."""
    return LADDER.index(mode)
