"""When is a call that has no answer yet taken to hang, and whose slots are lent to others? Pure.

silent   It has been out for longer than its task and model take, or so many of its lane's calls are out without any
         answer that this is no chance: their slots are no longer kept from other lanes.
sick     It has been out for several times as long as usual: the lane hears of it now, not only when it times out.
overdue  Its deadline has passed by more than a grace, so whoever was to keep its time-out does not: it is given up.

A wrong guess costs a thread for as long as a call takes, and the call itself goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ratelimit_worker.policy.timeout import Latencies, p99_s, slower_share

#: Nothing is said of a call that has been out for less, seconds. Of a task and model that never answered it is enough.
LEAST_OUT_S = 0.25
#: A silence that is less likely than this, if all were well, is no chance.
CHANCE = 0.01
#: Of the p99, and no sooner than so many seconds.
SICK_TIMES, LEAST_SICK_S = 3.0, 10.0
#: After the deadline, for a client whose clock or last read is late, seconds.
GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """A call that a worker runs."""

    tag: str
    lane: str
    out_s: float  #: since it left
    quiet_s: float  #: of these, those since a call of its lane ended in this worker; all of them, where none did
    known: Latencies | None  #: of its task and model


def silent(calls: Sequence[Out]) -> set[str]:
    """Tags of those calls that hang, by what is known of how long their like take."""
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
            chance *= slower / then if then > 0 else 1.0  # one that hangs already says nothing more
        if chance <= CHANCE:
            found.update(call.tag for call in alike)
    return found


def sick_after_s(known: Latencies | None) -> float | None:
    """Seconds after which a call without an answer is a sick answer; None: too little is known to say so."""
    usual_s = p99_s(known)
    return None if usual_s is None else max(LEAST_SICK_S, SICK_TIMES * usual_s)


def sick(calls: Sequence[Out]) -> set[str]:
    """Tags of those that count as sick answers: of lanes all of whose calls are out for so long."""
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
    """Whether a call should have ended long ago; both in seconds since the epoch."""
    return now_s > deadline_s + GRACE_S
