"""A change of mode is recorded as an event in the history, under the same id whoever records it, and logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2s

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.policy import modes
from ratelimit_worker.policy.modes import ALL, Move, Pin
from ratelimit_worker.ports import ModeLog

log = logging.getLogger(__name__)


def tell(mode_log: ModeLog, change: ModeChange) -> None:
    """Append a mode change to the outbox, for the history, and log it.

    Raises:
        StoreUnavailable: the outbox accepts none; nothing was recorded.
    """
    mode_log.append_mode_change(change)
    log.log(
        logging.INFO if change.to_mode is Mode.NORMAL else logging.WARNING,
        "mode.changed",
        extra={
            "lane": change.lane,
            "from_mode": change.from_mode.value,
            "to_mode": change.to_mode.value,
            "cause": change.cause,
            "numbers": dict(change.numbers),
            "who": change.who,
            "reason": change.reason,
            "until": change.until,
        },
    )


def began(lane: str, before: Mode, pin: Pin, now: float) -> ModeChange:
    """The event of a pin that takes effect in a lane; its id is the same whoever records it."""
    return ModeChange(
        id=_digest("pinned", pin.id, lane),
        lane=lane,
        from_mode=before,
        to_mode=pin.mode or before,
        at=now,
        cause="all lanes were pinned" if pin.everywhere else "the lane was pinned",
        who=pin.who,
        reason=pin.reason,
        until=pin.until,
    )


def ended_everywhere(pin: Pin, now: float) -> ModeChange:
    """The one event for all lanes that a pin of all lanes has ended."""
    return ended(ALL, pin.mode or Mode.NORMAL, Mode.NORMAL, pin.id, {ALL: pin}, now)


def ended(lane: str, before: Mode, after: Mode, held: str, pins: Mapping[str, Pin], now: float) -> ModeChange:
    """The event of a pin that has ended in a lane."""
    entries = [pin for pin in (pins.get(lane), pins.get(ALL)) if pin is not None]
    ended = next((pin for pin in entries if pin.id == held), None)
    own = pins.get(lane)
    if own is not None and own.mode is None and modes.lives(own, now):
        who, reason, cause = own.who, own.reason, "the lane was given back to the law"
    elif ended is not None and ended.ended_by:
        who, reason, cause = ended.ended_by, ended.reason, "the lane was given back to the law"
    else:
        who, reason = "law", ""
        cause = f"the pin of {ended.who} has ended" if ended is not None else "the pin has ended"
    return ModeChange(
        id=_digest("ended", held, lane, str(own.id) if own is not None and own.mode is None else ""),
        lane=lane,
        from_mode=before,
        to_mode=after,
        at=now,
        cause=cause,
        who=who,
        reason=reason,
    )


def moved(lane: str, move: Move) -> ModeChange:
    """The event of a step that the law has taken."""
    return ModeChange(
        id=_digest("moved", lane, repr(move.at), move.from_mode, move.to_mode),
        lane=lane,
        from_mode=move.from_mode,
        to_mode=move.to_mode,
        at=move.at,
        cause=move.cause,
        numbers=move.numbers,
        who=move.who,
    )


def _digest(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return blake2s(text, digest_size=16).hexdigest()
