"""Whose fault is a sick answer: the provider's, or that of one call, task or process?

A provider that is away fails everybody. So what counts against it comes from several calls, and from tasks and
processes that it answers otherwise; a call whose attempts fail while others are answered uses up its tries; and a call
that fails while nobody else is answered cannot be told from its provider: it costs no try, and waits ever longer.

Pure: what an answer says of who asked → what it is worth as evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log
from typing import NamedTuple
from zlib import crc32

from ratelimit_worker.contracts.lane import ANSWERED_EVERY_S

#: A task or process is doubted only while another was answered within so many seconds: in an outage nobody is.
LATE_S = 5.0
#: Failures in a row, none answered between, from which a task or process that was answered before is doubted.
DOUBT_ROW = 3
PARTIES_MOST = 32  #: tasks, and processes, that are remembered of a lane
CALLS_MOST = 32  #: calls of a row that are counted one by one
#: An answer so long before a call's first attempt still says that the provider was there, seconds.
SLACK_S = 5.0
#: A call is given up for its tries when chance alone would fail it so often, at most, were it as good as the others.
CHANCE = 1e-6
#: Failures while others were answered that are enough for a call that has failed long before, when nobody was.
PROOF = 4
#: Bound of the wait of a call that fails alone: a share of the time since its first failure, and never below so many
#: seconds. Under 5 % an outage delays nobody by more than 5 %; a lone call sends some 40 requests into 30 s.
ALONE_SHARE, ALONE_LEAST_S = 0.05, 1.5


def digest(name: str) -> int:
    """A name in four bytes: enough to tell apart the few that are compared, and no name leaves its process."""
    return crc32(name.encode("utf-8", "surrogatepass"))


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Failing:
    """The sick answers that a call has had in a row. Seconds, Redis clock."""

    first_at: float  #: when the first came
    sent_at: float  #: when the request of the last left
    row: int
    first_sent: float = inf  #: when the request of the first left


@dataclass(frozen=True, slots=True)
class Lately:
    """How the calls of a lane fared of late, as the scripts and the tuner note it. Seconds, Redis clock."""

    good_at: float = 0.0  #: when one was answered last; 0: never
    good_sent: float = 0.0  #: when that one's request had left
    share: float = 0.0  #: of the calls, those whose first attempt was sick
    several: bool = (
        False  #: since the last answer several calls had sick ones, not counting those that are no witnesses
    )


#: Nobody can say: a call that fails uses up its tries.
UNKNOWN = Lately(good_at=inf, good_sent=inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A sick answer of one call, beside what the lane's other calls got."""

    alone_s: float | None = None  #: nobody else was answered, for so long since its first failure; None: others were
    row: int = 1  #: sick answers of the call in a row, this one included
    share: float = 0.0  #: of the other calls' first attempts, those that were sick


#: As if the lane had answered all others.
OTHERS_FARE_WELL = Compared()


def compared(at: float, sent_at: float, failing: Failing | None, lately: Lately, *, guarded: bool = True) -> Compared:
    """How a call's sick answer stands beside the others.

    Args:
        at: When it came, seconds, Redis clock, as all times here.
        sent_at, failing: As of `others_answered`.
        guarded: The lane may go into a mode in which only probes go out. Where it may not (NORMAL is pinned, escalation
            is off), nothing keeps waiting calls from flooding a sick provider but their tries.
    """
    row = failing.row + 1 if failing is not None else 1
    if not guarded or others_answered(lately.good_at, sent_at, failing) or _stands_alone(failing, lately):
        return Compared(row=row, share=lately.share)
    return Compared(alone_s=max(0.0, at - failing.first_at) if failing is not None else 0.0, row=row)


def others_answered(good_at: float, sent_at: float, failing: Failing | None) -> bool:
    """Whether the provider answered others since the call's attempt before this one.

    The attempt before, not this one: a failure may come back faster than any answer. The first has none before it.

    Args:
        good_at: When the lane was last answered, seconds; 0: never.
        sent_at: When the attempt left that failed.
        failing: The call's failures before it.
    """
    since = failing.sent_at if failing is not None else sent_at - SLACK_S
    return good_at + ANSWERED_EVERY_S >= since


def _stands_alone(failing: Failing | None, lately: Lately) -> bool:
    """Whether a request that left after the first one of the call was answered, and nobody speaks for an outage since.

    So the last lines of a batch are given up when they are bad. By the time of sending: at the beginning of an outage
    old answers still come in, but whatever leaves after a request that met the outage meets it too.
    """
    return failing is not None and lately.good_sent > failing.first_sent and not lately.several


def alone_bound_s(alone_s: float, cap_s: float) -> float:
    """The widest wait of a call that has failed alone for so long, seconds.

    Args:
        cap_s: Of its category's backoff.
    """
    return min(cap_s, max(ALONE_LEAST_S, ALONE_SHARE * alone_s))


def tries_allowed(tries: int, attempt: int, beside: Compared) -> float:
    """Attempts that may cost a try, the first included: more where many of the others' fail too.

    Args:
        tries: Of the category.
        attempt: Attempts that cost a try, this one included.
    """
    if beside.share >= 1:
        return inf
    by_chance = ceil(log(CHANCE) / log(beside.share)) if beside.share > 0 else 1
    if beside.row > attempt and beside.row >= tries:  # it had failed alone for long: what is left is to prove it
        return max(min(tries, PROOF), by_chance)
    return max(tries, by_chance)


# ── evidence against the provider ──────────────────────────────────────────────────────────────────────────────────


class Party(NamedTuple):
    """A task, or a process, in one lane. Times are seconds, Redis clock."""

    id: int
    good_sent: float = 0.0  #: when the newest of its requests left that were answered; 0: none was
    good_at: float = 0.0  #: when one was answered last
    row: int = 0  #: sick answers since
    row_sent: float = 0.0  #: when the request of the first of these left


Parties = tuple[Party, ...]  #: the latest last


class Row(NamedTuple):
    """Sick answers in a row, by call."""

    total: int = 0
    calls: tuple[tuple[int, int], ...] = ()  #: digest, how many; of the most frequent


NO_ROW = Row()


def heard(parties: Parties, party_id: int, at: float, sent_at: float, *, sick: bool, good_sent: float) -> Parties:
    """The parties after one more answer to one of them.

    Args:
        good_sent: What it says itself about its last good answer; counts where that is news.
    """
    own = next((party for party in parties if party.id == party_id), Party(party_id))
    if good_sent > own.good_sent:
        own = own._replace(good_sent=good_sent, good_at=max(own.good_at, good_sent))
        if good_sent > own.row_sent:
            own = own._replace(row=0)
    if not sick:
        own = own._replace(good_sent=max(own.good_sent, sent_at), good_at=at, row=0)
    elif own.row == 0:
        own = own._replace(row=1, row_sent=sent_at)
    else:
        own = own._replace(row=own.row + 1)
    return (*(party for party in parties if party.id != party_id), own)[-PARTIES_MOST:]


def doubted(parties: Parties, party_id: int, at: float) -> bool:
    """Whether a sick answer of this party says more about itself than about the provider.

    Others were answered of late, and it never was; or it fails on and on since before a request of theirs left that was
    answered. By the times of sending, not of answers: at the beginning of an outage old answers still come in.
    """
    own = next((party for party in parties if party.id == party_id), Party(party_id))
    others = [party for party in parties if party.id != party_id and party.good_sent and at - party.good_at <= LATE_S]
    if not others:
        return False
    if not own.good_sent:
        return True
    return own.row >= DOUBT_ROW and max(party.good_sent for party in others) > own.row_sent


def lengthened(row: Row, call: int | None) -> Row:
    """The row with one more sick answer.

    Args:
        call: Whose; None: not told (an older worker's), which counts as another call each time.
    """
    if call is None:
        return row._replace(total=row.total + 1)
    counts = dict(row.calls)
    if call in counts or len(counts) < CALLS_MOST:
        counts[call] = counts.get(call, 0) + 1
    else:  # the most frequent stay (Misra and Gries 1982)
        counts = {name: count - 1 for name, count in counts.items() if count > 1}
    return Row(row.total + 1, tuple(counts.items()))


def worth(row: Row) -> int:
    """How many sick answers the row is worth: no single call is more than half of it."""
    most = max((count for _, count in row.calls), default=0)
    return min(row.total, 2 * (row.total - most))
