"""When is a call that has no answer yet taken to hang? Three questions, in the order in which time asks them.

lent     It has been out for longer than its task and model usually take: its slot is no longer kept from other lanes.
         A wrong guess costs a thread, and the call itself goes on.
sick     It has been out for several times as long: the lane hears of it now, and not only when it times out.
overdue  Its deadline has passed by more than a grace, so whoever was to keep its time-out does not: it is given up.

Pure.
"""

from __future__ import annotations

from ratelimit_worker.policy.timeout import Latencies, most_s, p99_s

#: The least time after which a call's slot is lent, seconds; it is all where nothing of its task and model was answered
#: yet.
LEAST_LENT_S = 0.5
#: Of the p99, and no sooner than so many seconds.
SICK_TIMES, LEAST_SICK_S = 3.0, 10.0
#: After the deadline, for a client whose clock or last read is late, seconds.
GRACE_S = 10.0


def lent_after_s(known: Latencies | None) -> float:
    """Seconds after which a call keeps its slot from nobody else."""
    usual_s = p99_s(known)
    return max(LEAST_LENT_S, (most_s(known) if usual_s is None else usual_s) or 0.0)


def sick_after_s(known: Latencies | None) -> float | None:
    """Seconds after which a call without an answer is a sick answer; None: too little is known to say so."""
    usual_s = p99_s(known)
    return None if usual_s is None else max(LEAST_SICK_S, SICK_TIMES * usual_s)


def is_overdue(now_s: float, deadline_s: float) -> bool:
    """Whether a call should have ended long ago; both in seconds since the epoch."""
    return now_s > deadline_s + GRACE_S
