"""Are rate-limit headers about the budget from which a lane's calls are taken?

A gateway may send its own limit, or always the same line. Two things show it, as long as `remaining` does not move:
more is answered than the limit lets through, or calls are refused again and again although enough is said to be left.
Such headers are not followed until they move.

Pure: the state of one dimension and one more answer in, the new state out.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import Snapshot

#: Least time of that, since headers may be late, seconds; less if refusals show it, since each is a lost request.
LEAST_S, LEAST_REFUSED_S = 3.0, 1.0
#: Answers beyond those that the limit lets through, as a number and as a share of the limit, since `remaining` may be
#: rounded. Half of them are enough if a call was refused too.
EXCESS, EXCESS_SHARE = 8.0, 0.1
#: A refusal although enough is left counts as so many answers; at the second number the headers are not followed.
REFUSAL_ANSWERS, REFUSALS_MOST = 30.0, 100.0
MOVES = 4  #: headers are followed again after so many in a row, each with another `remaining` than the one before


class Unmoved(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The headers of one dimension since `remaining` last moved."""

    limit: float
    remaining: float
    since: float  #: when the first such request was sent, seconds
    at: float  #: when the newest was sent, seconds
    excess: float = 0.0  #: answers beyond the limit's rate
    refusals: float = 0.0  #: refusals although enough is said to be left, in answers
    refused_at: float = -1e9  #: when the last of those came, seconds
    moved: int = 0  #: headers in a row with another `remaining` than the one before
    foreign: bool = False  #: they are about another budget, or about none

    def moves(self, snapshot: Snapshot) -> bool:
        """Whether these headers have another limit or another `remaining`."""
        return (self.limit, self.remaining) != (snapshot.limit, snapshot.remaining)


def heard(
    before: Unmoved | None, snapshot: Snapshot, sent_at: float, *, good: bool, refused_at: float | None = None
) -> Unmoved:
    """The state after one more answer with headers.

    Args:
        before: The state before it; None: these headers are the first.
        sent_at: When its request was sent, seconds.
        good: It was a good answer.
        refused_at: When it came, seconds, if it was refused although enough is said to be left; else None.
    """
    if before is None:
        return Unmoved(limit=snapshot.limit, remaining=snapshot.remaining, since=sent_at, at=sent_at)
    if before.moves(snapshot):
        moved = before.moved + 1
        return Unmoved(
            limit=snapshot.limit,
            remaining=snapshot.remaining,
            since=sent_at,
            at=max(before.at, sent_at),
            moved=moved,
            foreign=before.foreign and moved < MOVES,
        )
    told = snapshot.limit / snapshot.window_s
    excess = max(0.0, before.excess - told * max(0.0, sent_at - before.at)) + good
    refusals, last = max(0.0, before.refusals - good), before.refused_at
    if refused_at is not None and sent_at > last:  # refusals of requests that were on their way together count once
        refusals, last = refusals + REFUSAL_ANSWERS, refused_at
    now = replace(
        before,
        since=min(before.since, sent_at),
        at=max(before.at, sent_at),
        excess=excess,
        refusals=refusals,
        refused_at=last,
        moved=0,
    )
    return replace(now, foreign=before.foreign or _contradicted(now))


def _contradicted(now: Unmoved) -> bool:
    unmoved_s = now.at - now.since
    if now.refusals >= REFUSALS_MOST and unmoved_s >= LEAST_REFUSED_S:
        return True
    excess = EXCESS + EXCESS_SHARE * now.limit
    return unmoved_s >= LEAST_S and now.excess >= (excess / 2 if now.refusals > 0 else excess)
