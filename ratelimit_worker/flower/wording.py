"""What does the page say? Sentences and words for what is shown and done."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.flower.board import Order
from ratelimit_worker.policy.modes import ALL
from ratelimit_worker.reports import words
from ratelimit_worker.reports.live import ClusterState, LaneState


def gate(lane: LaneState) -> str:
    """ "open", "opens in 12.0 s", "shut"."""
    if math.isinf(lane.gate_s):
        return "shut"
    return f"opens in {words.seconds(lane.gate_s)}" if lane.gate_s > 0 else "open"


def waiting(lane: LaneState) -> str:
    """How many wait for a permit, and how many for a time."""
    later = f" + {words.count(lane.due_later)} later" if lane.due_later else ""
    return f"{words.count(lane.waiting)}{later}"


def lane_name(name: str) -> str:
    """A lane's name, or that it stands for all."""
    return "all lanes" if name == ALL else name


def used(state: ClusterState) -> str:
    """Requests of all lanes in the last minute."""
    counts = [lane.used_per_min for lane in state.lanes]
    return words.count(None if None in counts else sum(count or 0 for count in counts))


def strictest(state: ClusterState) -> Mode:
    """The mode of the lane that may send least; NORMAL where there is no lane."""
    ladder = list(Mode)
    return max((lane.mode for lane in state.lanes), key=ladder.index, default=Mode.NORMAL)


def done(order: Order, changes: Sequence[ModeChange]) -> str:
    """What a button has done, in a sentence."""
    which = "All lanes" if order.lane is None else f"Lane {order.lane}"
    verb = "are" if order.lane is None else "is"
    if order.mode is None:
        return f"{which} {verb} left to the law." if changes else f"{which} {verb} left to the law; nothing was pinned."
    ends = next((change.until for change in changes if change.until is not None), None)
    until = "until Auto" if ends is None else f"until {words.moment(ends)}"
    return f"{which} {verb} pinned to {order.mode} {until}."
