"""Whose fault is a sick answer: the provider's, or that of one call, task or process?

A provider that is away fails all calls. So an outage is concluded from sick answers to several calls, of tasks and
processes that are usually answered. A call that fails while others are answered uses up its tries. If a call fails and
no other is answered, nobody can say whose fault it is: then it costs no try, and the call waits longer each time.

Pure.
"""

from __future__ import annotations

from math import ceil, inf, log
from typing import NamedTuple
from zlib import crc32

from msgspec import Struct

from ratelimit_worker.contracts.lane import ANSWERED_EVERY_S

#: A task or process is doubted only if another was answered within the last so many seconds: in an outage none is.
LATE_S = 5.0
#: Failures in a row after which a task or process that was answered before is doubted.
DOUBT_ROW = 3
PARTIES_MOST = 32  #: tasks that are remembered of a lane; the same number of processes
CALLS_MOST = 32  #: calls that are counted individually in a row of sick answers
#: A process has lost its way to the provider if a request of another that left so much later than its first failing one
#: was answered: at the beginning of an outage, requests that left together may have met it or not.
LOST_AFTER_S = 0.5
#: Longest time after which a call that failed in such a process may be sent by another, seconds; and how many failures
#: in a row cost it no try: more show that no other process takes it.
LOST_S, LOST_PASSES = 0.5, 3
#: How long such a process leaves a lane's calls to others before it tries one again, seconds; twice as long each time.
LEAVES_S, LEAVES_MOST_S = 1.0, 8.0
#: How long before a call's first attempt an answer may have come to show that the provider was there, seconds.
SLACK_S = 5.0
#: A call is given up when its failures would have at most this probability if it failed as often as the others do.
CHANCE = 1e-6
#: Failures while others are answered that are enough to give up a call which has failed for long in an outage before.
PROOF = 4
#: A call is known to be at fault itself if it has used PROOF tries, and the others would fail so often with at most
#: this probability: then it uses tries too when no other is left that could be answered.
KNOWN_CHANCE = 2e-4
#: Bound on the wait of a call that fails alone: a share of the time since its first failure, and a least number of
#: seconds. With 5 %, a call waits at most 5 % longer than the outage; a lone call sends some 40 requests in 30 s.
ALONE_SHARE, ALONE_LEAST_S = 0.05, 1.5


def digest(name: str) -> int:
    """A digest of a name in four bytes: enough to tell a few names apart, and the name itself stays in its process."""
    return crc32(name.encode("utf-8", "surrogatepass"))


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Failing(Struct, frozen=True):
    """The sick answers that a call has had in a row. Times in seconds, Redis clock."""

    first_at: float  #: when the first came
    sent_at: float  #: when the request of the last one left
    row: int
    first_sent: float = inf  #: when the request of the first one left


class Lately(Struct, frozen=True):
    """How the calls of a lane have done recently, as noted by scripts and tuner. Times in seconds, Redis clock."""

    good_at: float = 0.0  #: when a call was last answered; 0: never
    good_sent: float = 0.0  #: when that call's request left
    share: float = 0.0  #: share of calls whose first attempt was sick
    several: bool = False  #: since the last answer, several calls had sick ones that count against the provider


#: Unknown: a call that fails uses up its tries.
UNKNOWN = Lately(good_at=inf, good_sent=inf)


class Compared(Struct, frozen=True, kw_only=True):
    """A sick answer of one call, compared with the lane's other calls."""

    alone_s: float | None = None  #: time since its first failure, if no other was answered since; None: others were
    row: int = 1  #: sick answers of the call in a row, this one included
    share: float = 0.0  #: share of the other calls' first attempts that were sick
    before: float = 1.0  #: ... in the minutes before, if no other was answered since; 1: unknown
    lost: bool = False  #: its process does not reach the provider, and others do (`is_lost`)
    #: The answer was that the quota is used up, while others are answered: it may be that of the call's own account.
    own_quota: bool = False

    def unknown(self, attempt: int) -> bool:
        """Whether nobody can say whose fault it is: no other was answered, and the call has not shown itself before.

        Args:
            attempt: Attempts that have cost a try, this one included.
        """
        used = attempt - 1
        return self.alone_s is not None and not (used >= PROOF and self.before**used <= KNOWN_CHANCE)


#: As if all others had been answered.
OTHERS_FARE_WELL = Compared()


def compared(at: float, sent_at: float, failing: Failing | None, lately: Lately, *, guarded: bool = True) -> Compared:
    """Compare a call's sick answer with what its lane's other calls got.

    Args:
        at: When it came; all times here are seconds of Redis' clock.
        sent_at, failing: As in `others_answered`.
        guarded: The law may put the lane into a mode in which only probes go out. If it may not (NORMAL is pinned,
            escalation is off), failures always cost a try: nothing else keeps calls from flooding a sick provider.
    """
    row = failing.row + 1 if failing is not None else 1
    if not guarded or others_answered(lately.good_at, sent_at, failing) or _stands_alone(failing, lately):
        return Compared(row=row, share=lately.share)
    alone_s = max(0.0, at - failing.first_at) if failing is not None else 0.0
    return Compared(alone_s=alone_s, row=row, before=lately.share)


def others_answered(good_at: float, sent_at: float, failing: Failing | None) -> bool:
    """Whether the provider has answered others since the call's previous attempt.

    Since the previous attempt and not since this one, because a failure may come back faster than any answer.

    Args:
        good_at: When the lane was last answered, seconds; 0: never.
        sent_at: When the attempt left that failed.
        failing: The call's failures before it.
    """
    since = failing.sent_at if failing is not None else sent_at - SLACK_S
    return good_at + ANSWERED_EVERY_S >= since


def _stands_alone(failing: Failing | None, lately: Lately) -> bool:
    """Whether a request that left after the call's first one was answered, and nothing points to an outage since.

    With this, bad lines at the end of a batch are given up. Times of sending are compared, since at the beginning of an
    outage answers to earlier requests still come in, while every request that leaves later meets the outage.
    """
    return failing is not None and lately.good_sent > failing.first_sent and not lately.several


def alone_bound_s(alone_s: float, cap_s: float) -> float:
    """Bound on the wait of a call that has failed alone for `alone_s`, seconds.

    Args:
        cap_s: The cap of its category's backoff.
    """
    return min(cap_s, max(ALONE_LEAST_S, ALONE_SHARE * alone_s))


def tries_allowed(tries: int, attempt: int, beside: Compared) -> float:
    """How many attempts may cost a try, the first included: more if many attempts of other calls fail too.

    Args:
        tries: The category's number.
        attempt: Attempts that have cost a try, this one included.
    """
    if beside.share >= 1:
        return inf
    by_chance = ceil(log(CHANCE) / log(beside.share)) if beside.share > 0 else 1
    if beside.row > attempt and beside.row >= tries:  # it has failed alone for long, so few more tries are needed
        return max(min(tries, PROOF), by_chance)
    return max(tries, by_chance)


# ── evidence against the provider ──────────────────────────────────────────────────────────────────────────────────


class Party(NamedTuple):
    """A task, or a process, in one lane. Times are seconds, Redis clock."""

    id: int
    good_sent: float = 0.0  #: when the newest of its answered requests left; 0: none was answered
    good_at: float = 0.0  #: when it was last answered
    row: int = 0  #: sick answers since then
    row_sent: float = 0.0  #: when the first one's request left


Parties = tuple[Party, ...]  #: the most recent one last


class Row(NamedTuple):
    """A lane's sick answers in a row, counted by call."""

    total: int = 0
    calls: tuple[tuple[int, int], ...] = ()  #: (digest of the call, its sick answers), for the most frequent


NO_ROW = Row()


class Streak(NamedTuple):
    """Attempts of one process in one lane, in a row, whose requests found no connection to the provider."""

    row: Row
    first_sent: float  #: when the first of them began, seconds, Redis clock


def heard(parties: Parties, party_id: int, at: float, sent_at: float, *, sick: bool, good_sent: float) -> Parties:
    """The parties after one more answer to one of them.

    Args:
        good_sent: The party's own report of its last good answer; used if it is newer than what is known.
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
    """Whether a sick answer of this party says more about the party than about the provider.

    It does if others were answered recently and it never was, or if it keeps failing since before a request of theirs
    left that was answered. Times of sending are compared: at the beginning of an outage, answers to earlier requests
    still come in.
    """
    own = next((party for party in parties if party.id == party_id), Party(party_id))
    others = [party for party in parties if party.id != party_id and party.good_sent and at - party.good_at <= LATE_S]
    if not others:
        return False
    if not own.good_sent:
        return True
    return own.row >= DOUBT_ROW and max(party.good_sent for party in others) > own.row_sent


def is_lost(streak: Streak, lately: Lately, at: float) -> bool:
    """Whether a process has lost its way to the provider, while others still reach it.

    Several of its calls in a row found no connection, and requests of other processes that left since were answered.
    The calls can be answered elsewhere, so it costs them no try, and the process leaves calls to others for a while.

    Args:
        at: When the last of them failed, seconds, Redis clock.
    """
    row = worth(streak.row)
    if row < DOUBT_ROW or at - lately.good_at > LATE_S or lately.good_sent < streak.first_sent + LOST_AFTER_S:
        return False
    return lately.share**row <= KNOWN_CHANCE


def lengthened(row: Row, call: int | None) -> Row:
    """The row with one more sick answer.

    Args:
        call: Digest of the call; None: unknown (from an older version), counted as a different call each time.
    """
    if call is None:
        return row._replace(total=row.total + 1)
    counts = dict(row.calls)
    if call in counts or len(counts) < CALLS_MOST:
        counts[call] = counts.get(call, 0) + 1
    else:  # keep the most frequent (Misra and Gries 1982)
        counts = {name: count - 1 for name, count in counts.items() if count > 1}
    return Row(row.total + 1, tuple(counts.items()))


def worth(row: Row) -> int:
    """How many sick answers the row counts for: a single call makes up at most half of them."""
    most = max((count for _, count in row.calls), default=0)
    return min(row.total, 2 * (row.total - most))


# ── evidence that the account is closed ────────────────────────────────────────────────────────────────────────────

#: While others are answered, a quota is taken for used up (or a key for not accepted) only after such answers to
#: several calls in a row, in the order of sending; one call in between, or one in eight, may be without an answer yet.
CLOSED_CALLS, CLOSED_GAP, CLOSED_GAPS = 3, 1, 8


class Closed(NamedTuple):
    """Answers that the account is closed (no quota, or a key that is not accepted), to calls that left in a row."""

    row: Row
    seq: int  #: number of the first of these calls in the order of sending
    sent_at: float  #: when its request left, seconds, Redis clock
    newest: int  #: the largest number among them
    again: int = 0  #: further such answers, to calls that had been told so before: they say nothing of others

    @property
    def undecided(self) -> int:
        """Calls that left among them and did not get such an answer: they may have been answered, or will be."""
        return max(0, self.newest - self.seq + 1 - self.row.total)


def closed(before: Closed | None, seq: int, sent_at: float, call: int | None) -> Closed:
    """The row with one more such answer; it begins anew if too many calls among them got another answer, or none yet.

    Args:
        seq, sent_at: Of the call that got the answer, as in `Closed`.
        call: Its digest; None: unknown.
    """
    first = Closed(lengthened(NO_ROW, call), seq, sent_at, seq)
    if before is None:
        return first
    newest = max(before.newest, seq)
    sent_at = min(before.sent_at, sent_at)
    longer = Closed(lengthened(before.row, call), min(before.seq, seq), sent_at, newest, before.again)
    return longer if longer.undecided <= CLOSED_GAP + longer.row.total // CLOSED_GAPS else first


def is_closed(told: Closed, share: float) -> bool:
    """Whether such answers are about the lane, although others were answered a short time ago.

    Answers of this kind come back faster than good ones, so they are compared in the order of sending, in which calls
    without an answer yet count as answered.

    Args:
        share: Of such answers among the earlier ones: where a third of all calls have a closed account of their own,
            ten in a row are chance.
    """
    return worth(told.row) >= CLOSED_CALLS and share**told.row.total <= CHANCE
