"""What does the law remember of a lane's health? Read here without the law itself, for those who only show it."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import LaneState, Memory
from ratelimit_worker.policy.modes import ModeState

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(ModeState).decode


def health_of(memory: Memory, lane: str) -> ModeState:
    """The health in a lane's memory; a new one if there is none, or if another version's cannot be read."""
    if memory.health:
        try:
            return _decode(memory.health)
        except msgspec.MsgspecError:
            log.warning("health.unreadable", extra={"lane": lane})
    return ModeState()


def halted_by(lane: LaneState) -> Literal["", "key", "quota"]:
    """Why the law has halted a lane: its key is not accepted, or its quota is used up; "": it has not."""
    if lane.mode is not Mode.HALT or lane.pinned or not lane.memory.health:
        return ""
    return "key" if health_of(lane.memory, "").barred else "quota"
