"""How long was each lane in which mode? A spell is the time between two changes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.policy.modes import ALL


class Spell(NamedTuple):
    """A time in which a lane was in one mode."""

    lane: str
    mode: Mode
    since_s: float  #: seconds since the epoch
    until_s: float
    cause: str  #: of the change that began it; "": it began before the window


def spells(lane: str, changes: Iterable[ModeChange], since_s: float, until_s: float) -> list[Spell]:
    """The times of a lane in another mode than NORMAL, oldest first.

    Args:
        changes: Oldest first; those of other lanes are ignored.
    """
    mine = [one for one in changes if one.lane in (lane, ALL)]
    found, mode, began_s, cause = list[Spell](), mine[0].from_mode if mine else Mode.NORMAL, since_s, ""
    for change in mine:
        if change.to_mode is not mode:
            found.append(Spell(lane, mode, began_s, change.at, cause))
            mode, began_s, cause = change.to_mode, change.at, change.cause
    found.append(Spell(lane, mode, began_s, until_s, cause))
    return [one for one in found if one.mode is not Mode.NORMAL and one.until_s > one.since_s]


def lengths_s(found: Sequence[Spell]) -> dict[Mode, float]:
    """Seconds in each mode except NORMAL, from less to more strict."""
    total: dict[Mode, float] = {}
    for mode in Mode:
        length_s = sum(one.until_s - one.since_s for one in found if one.mode is mode)
        if length_s > 0:
            total[mode] = length_s
    return total
