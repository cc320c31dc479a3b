"""What does the end of an attempt tell its lane? The verdict, and what was read from headers and error body.

`contracts.lesson` has the encodings; what is concluded from an observation is in `policy`.
"""

from __future__ import annotations

from ratelimit_worker.calls import Category, Failure, Response, Snapshot
from ratelimit_worker.contracts.lesson import NOTHING_READ, Observed, Reading, Ticket, Verdict
from ratelimit_worker.policy import headers as rate_limit_headers
from ratelimit_worker.policy.pace import Observation
from ratelimit_worker.ports import Health


def verdict_of(failure: Failure | None) -> Verdict:
    """The verdict on a failure; None stands for an answer."""
    if failure is None:
        return "good"
    match failure.category:
        case Category.RATE_LIMITED:
            return "refused"
        case Category.QUOTA_EXHAUSTED:
            return "quota"
        case Category.AUTH:
            return "barred"
        case _:
            return "sick" if failure.sick else "other"


def read(response: Response | None, verdict: Verdict, now_s: float) -> Reading:
    """Read what an answer says of the budget, and of a refusal its dimension and the rates that it states.

    Args:
        now_s: When it came, seconds since the epoch, Redis clock.
    """
    if response is None:
        return NOTHING_READ
    snapshots = rate_limit_headers.snapshots(response.headers, now_s=now_s)
    if verdict != "refused":
        return Reading(snapshots=snapshots) if snapshots else NOTHING_READ
    stated = rate_limit_headers.stated_limit(response.body)
    return Reading(
        snapshots=snapshots,
        refused_in=rate_limit_headers.refused_dimension(response.headers, response.body),
        crowded=rate_limit_headers.about_concurrency(response.body),
        stated={  # daily quotas are not rates
            name: one.limit / one.window_s for name, one in stated.items() if one.window_s <= 3600
        },
    )


def older(ticket: bytes, health: Health) -> int:
    """A lower bound on the calls still out that were sent before this ticket's call.

    All calls sent after it are assumed to be still out, which saves a look-up. For failures that come back faster than
    answers there are few of these.
    """
    return max(0, health.out - 1 - (health.seq - Ticket.decode(ticket).seq))


def sent_s(ticket: bytes) -> float:
    """When the request of this ticket left, seconds, Redis clock."""
    return Ticket.decode(ticket).sent_at


def decode(raw: bytes) -> Observation:
    """The observation of a list entry.

    Raises:
        msgspec.MsgspecError: it cannot be decoded (another version wrote it).
    """
    told = Observed.decode(raw)
    return Observation(
        at=told.at,
        ticket=Ticket.decode(told.ticket),
        refused=told.verdict == "refused",
        sick=told.verdict == "sick",
        good=told.verdict == "good",
        quota=told.verdict == "quota",
        barred=told.verdict == "barred",
        snapshots={
            name: Snapshot(limit=limit, window_s=window, remaining=remaining, reset_s=reset)
            for name, (limit, window, remaining, reset) in told.snapshots.items()
        },
        retry_after_s=told.retry_after_s,
        refused_dimension=told.dimension,
        cost=told.cost,
        older=told.older,
        stated=told.stated,
        witness=told.witness,
        crowded=told.crowded,
    )
