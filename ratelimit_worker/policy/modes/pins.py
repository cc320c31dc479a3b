"""Does a person say which mode holds? Pins, of one lane or of all, and which of them governs."""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit_worker.calls import Mode

ALL = "*"  #: stands for all lanes, also those that come later


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A mode by hand."""

    id: str
    mode: Mode | None  #: None: back to the law, though all lanes are pinned
    at: float  #: seconds, Redis clock
    who: str
    reason: str = ""
    until: float | None = None  #: seconds; None: until somebody gives the lane back
    everywhere: bool = False  #: all lanes, also those that come later
    ended_by: str = ""  #: who gave it back, before or at `until`


def lives(pin: Pin | None, now: float) -> bool:
    """Whether the pin holds at `now`."""
    return pin is not None and (pin.until is None or now < pin.until)


def governing(own: Pin | None, everywhere: Pin | None, now: float) -> Pin | None:
    """The pin that holds in a lane: the newest that lives, its own or that of all lanes; None: the law governs.

    The newest, not the narrowest: `halt` for all must also stop a lane that somebody pinned to EMERGENCY before.
    """
    living = [pin for pin in (everywhere, own) if pin is not None and lives(pin, now)]
    newest = max(living, key=lambda pin: pin.at, default=None)
    return newest if newest is not None and newest.mode is not None else None
