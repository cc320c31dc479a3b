"""When does a call without an answer count as hanging? Pure.

silent   It has been out for longer than its task and model usually take, or so many of its lane's calls are out
         without any answer that this cannot be chance: its slot is lent to other lanes.
sick     It has been out for several times as long as usual: it counts as a sick answer now, and not when it times out.
overdue  Its deadline has passed by more than a grace, so its time-out does not work: it is given up.

A wrong guess costs one more thread while the call lasts; the call itself goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ratelimit_worker.policy.timeout import Latencies, p99_s, slower_share

#: A call that has been out for less never counts as silent, seconds; one of a task and model without any answer so far
#: does after this time.
LEAST_OUT_S = 0.25
#: A silence that would be less probable than this if all were well is not chance.
CHANCE = 0.01
#: Sick: so many times the p99, and at least so many seconds.
SICK_TIMES, LEAST_SICK_S = 3.0, 10.0
#: Overdue: seconds after the deadline, since a client's clock or last read may be late.
GRACE_S = 10.0


class Out(Struct, frozen=True, kw_only=True):
    """A call that a worker runs."""

    tag: str
    lane: str
    out_s: float  #: since it left
    quiet_s: float  #: the part of `out_s` since a call of its lane last ended in this worker
    known: Latencies | None  #: latencies of its task and model


def silent(calls: Sequence[Out]) -> set[str]:
    """Tags of the calls that are silent."""
    found: set[str] = set()
    lanes: dict[str, list[Out]] = {}
    for call in calls:
        if call.out_s > LEAST_OUT_S:
            lanes.setdefault(call.lane, []).append(call)
    for alike in lanes.values():
        chance = 1.0
        for call in alike:
            slower = slower_share(call.known, call.out_s)
            if slower <= CHANCE:
                found.add(call.tag)
            then = slower_share(call.known, max(0.0, call.out_s - call.quiet_s))
            chance *= slower / then if then > 0 else 1.0  # a call beyond all known latencies adds nothing
        if chance <= CHANCE:
            found.update(call.tag for call in alike)
    return found


def sick_after_s(known: Latencies | None) -> float | None:
    """Seconds after which a call without an answer counts as a sick answer; None: too little is known."""
    usual_s = p99_s(known)
    return None if usual_s is None else max(LEAST_SICK_S, SICK_TIMES * usual_s)


def sick(calls: Sequence[Out]) -> set[str]:
    """Tags of calls that count as sick answers: of lanes all of whose calls have been out for that long."""
    late: dict[str, set[str]] = {}
    well: set[str] = set()
    for call in calls:
        after_s = sick_after_s(call.known)
        if after_s is not None and call.out_s > after_s:
            late.setdefault(call.lane, set()).add(call.tag)
        else:
            well.add(call.lane)
    return {tag for lane, tags in late.items() if lane not in well for tag in tags}


def is_overdue(now_s: float, deadline_s: float) -> bool:
    """Whether a call should have ended long ago; both times in seconds since the epoch."""
    return now_s > deadline_s + GRACE_S
