"""Which lanes does the tuner look at without news of them, and in what order? Pure but for its memory.

Time alone may change a lane that was answered recently: a pace doubles, a pause ends, a probe goes faster. While there
are few such lanes, each is looked at in every turn. If there are many, those that need it most go first, and among
these the one that was looked at longest ago. Lanes with news go before all of them.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import chain, islice

from msgspec import Struct

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import LaneState

BUSY_S = 5.0  #: how long after its last answer a lane is looked at, seconds
USED = 0.8  #: share of its pace that a lane must use to count as going as fast as it may
USED_S = 1.0  #: the time over which that is measured, about, seconds


class Need(IntEnum):
    """How much a lane needs the next look; most needed first."""

    HELD = 0  #: it is held by a gate, a mode or a bound on calls at once, which time alone may end
    GOING = 1  #: it sends as fast as it may
    RESTING = 2  #: it sends less than it may


class _Watched(Struct, frozen=True):
    """A lane in use."""

    need: Need
    news_at: float  #: seconds, Redis clock
    looked_at: float
    used_from: tuple[float, float]  #: (seconds, requests sent) from which its use of the pace is measured


class Attention:
    """Lanes in use, in one row for each need; the one that was last looked at is at the end."""

    def __init__(self) -> None:
        self._rows: dict[Need, dict[str, _Watched]] = {need: {} for need in Need}

    def next(self, most: int, now: float) -> list[str]:
        """The lanes to look at now, in the order of their need.

        Args:
            now: Seconds, Redis clock; lanes that were not looked at for `BUSY_S` are forgotten.
        """
        for row in self._rows.values():
            for lane in list(islice(row, most)):
                if now - row[lane].looked_at <= BUSY_S:
                    break
                del row[lane]
        return list(islice(chain.from_iterable(self._rows[need] for need in Need), most))

    def note(self, lane: str, state: LaneState, now: float, *, news: bool, idle: bool = False) -> None:
        """Note that a lane was looked at.

        Args:
            state: The state that was found.
            news: There were observations of it.
            idle: It was looked at only because of its mode.
        """
        before = self._forget(lane)
        news_at = now if news or (before is None and not idle) else before.news_at if before else float("-inf")
        if now - news_at > BUSY_S:
            return
        sent = state.levels.sent[0]
        used_from = before.used_from if before is not None else (now, sent)
        need = need_of(state, now, used_from)
        if now - used_from[0] >= USED_S:
            used_from = (now, sent)
        self._rows[need][lane] = _Watched(need, news_at, now, used_from)

    def forget(self, lane: str) -> None:
        """Forget a lane that time alone does not change."""
        self._forget(lane)

    def _forget(self, lane: str) -> _Watched | None:
        found = (row.pop(lane) for row in self._rows.values() if lane in row)
        return next(found, None)


def need_of(state: LaneState, now: float, used_from: tuple[float, float]) -> Need:
    """How much a lane needs the next look.

    Args:
        now: Seconds, Redis clock.
        used_from: (seconds, requests sent) from which its use of the pace is measured.
    """
    points = state.points
    if points.gate_us > now * 1e6 or state.mode is not Mode.NORMAL or points.probes:
        return Need.HELD
    since, sent = now - used_from[0], state.levels.sent[0] - used_from[1]
    requests = points.paces.get("requests")
    if since <= 0 or requests is None:
        return Need.GOING if sent > 0 or since <= 0 else Need.RESTING
    return Need.GOING if sent > 0 and sent >= USED * requests.pace * since - 1 else Need.RESTING
