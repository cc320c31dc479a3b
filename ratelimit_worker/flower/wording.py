"""Words and sentences for the pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.flower.board import PAGE, Order, View
from ratelimit_worker.plural import many
from ratelimit_worker.policy.modes import ALL
from ratelimit_worker.reports import words
from ratelimit_worker.reports.live import ClusterState, LaneState


def gate(lane: LaneState) -> str:
    """ "open", "opens in 12.0 s", "shut"."""
    if math.isinf(lane.gate_s):
        return "shut"
    return f"opens in {words.seconds(lane.gate_s)}" if lane.gate_s > 0 else "open"


def waiting(lane: LaneState) -> str:
    """The number of calls that wait for a permit, and of those that wait for a time."""
    later = f" + {words.count(lane.due_later)} later" if lane.due_later else ""
    return f"{words.count(lane.waiting)}{later}"


def attempts(number: int) -> str:
    """ "1 attempt", "2 attempts"."""
    return many(number, "attempt")


def lane_name(name: str) -> str:
    """A lane's name, or "all lanes"."""
    return "all lanes" if name == ALL else name


def used(state: ClusterState) -> str:
    """Requests of the lanes on the page in the last minute, in words."""
    counts = [lane.used_per_min for lane in state.lanes]
    return words.count(None if None in counts else sum(count or 0 for count in counts))


def strictest(state: ClusterState) -> Mode:
    """The strictest mode of all lanes that match; NORMAL if there are none."""
    modes = [mode for mode in Mode if state.modes.get(mode)]
    return modes[-1] if modes else Mode.NORMAL


def found(state: ClusterState) -> int:
    """The number of lanes that match, on all pages."""
    return sum(state.modes.values())


def shown(state: ClusterState, view: View) -> str:
    """Which lanes are on the page, such as "Lanes 51 to 100 of 10,000 with “gpt” in their names"."""
    count, named = words.count(found(state)), f" with “{view.find}” in their names" if view.find else ""
    first, last = state.skipped + 1, state.skipped + len(state.lanes)
    modes = ", ".join(f"{words.count(lanes)} {mode}" for mode, lanes in sorted(state.modes.items()))
    return f"Lanes {words.count(first)} to {words.count(last)} of {count}{named} ({modes})"


def page_of(state: ClusterState) -> int:
    """The page that is shown, from 1."""
    return state.skipped // PAGE + 1


def pages(state: ClusterState) -> int:
    """How many pages there are."""
    return max(1, -(-found(state) // PAGE))


def done(order: Order, changes: Sequence[ModeChange]) -> str:
    """What a button has done, in a sentence."""
    which = "All lanes" if order.lane is None else f"Lane {order.lane}"
    verb = "are" if order.lane is None else "is"
    if order.mode is None:
        said = f"{which} {verb} given back to the law"
        return f"{said}." if changes else f"{said}; nothing was pinned."
    ends = next((change.until for change in changes if change.until is not None), None)
    until = "until Auto" if ends is None else f"until {words.moment(ends)}"
    return f"{which} {verb} pinned to {order.mode} {until}."
