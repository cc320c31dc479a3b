"""Pins: modes that a person has set for one lane or for all, and which of them holds."""

from __future__ import annotations

from msgspec import Struct

from ratelimit_worker.calls import Mode

ALL = "*"  #: stands for all lanes, also those that come later


class Pin(Struct, frozen=True, kw_only=True):
    """A mode by hand."""

    id: str
    mode: Mode | None  #: None: this lane follows the law although all lanes are pinned
    at: float  #: seconds, Redis clock
    who: str
    reason: str = ""
    until: float | None = None  #: seconds; None: until somebody gives the lane back
    everywhere: bool = False  #: for all lanes, also future ones
    ended_by: str = ""  #: who ended it, before or at `until`


def lives(pin: Pin | None, now: float) -> bool:
    """Whether the pin holds at `now`, seconds."""
    return pin is not None and (pin.until is None or now < pin.until)


def governing(own: Pin | None, everywhere: Pin | None, now: float) -> Pin | None:
    """The pin that holds in a lane: the newest of its own and that of all lanes; None: the law decides.

    The newest and not the lane's own, since `halt` for all must also stop a lane that was pinned to EMERGENCY before.
    """
    living = [pin for pin in (everywhere, own) if pin is not None and lives(pin, now)]
    newest = max(living, key=lambda pin: pin.at, default=None)
    return newest if newest is not None and newest.mode is not None else None
