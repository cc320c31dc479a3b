"""A search for calls: what is looked for, and what is returned of each call that is found."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ratelimit_worker.calls import Category


class CallState(StrEnum):
    """Where a call is, as a search names it."""

    WAITING = "waiting"  #: for a permit
    LATER = "due later"  #: for a time
    FOLLOWING = "following"  #: for the answer of a call that is the same
    READY = "ready"  #: released, no worker has begun it
    RUNNING = "running"
    ANSWERED = "answered"
    FAILED = "failed"
    SET_ASIDE = "set aside"  #: its message could not be taken by any worker


#: States of calls that are in their lanes and not released: they can be cancelled.
CANCELLABLE = frozenset({CallState.WAITING, CallState.LATER, CallState.FOLLOWING})
LIVE = CANCELLABLE | {CallState.READY, CallState.RUNNING}
#: States in which a call may be run again, where its message was kept.
REPEATABLE = frozenset({CallState.FAILED, CallState.SET_ASIDE})


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls are looked for; an empty field does not count."""

    call_id: str = ""
    lane: str = ""
    tenant: str = ""
    task: str = ""  #: part of its name
    state: CallState | None = None
    error: str = ""  #: a category, or part of the cause
    since_s: float = 0.0  #: calls that ended before this are left out, seconds since the epoch
    most: int = 50  #: most calls of those in lanes, and most of those that have ended

    def takes(self, call: Found) -> bool:
        """Whether a call is one of them; `since_s` is not checked."""
        return (
            (not self.call_id or call.call_id == self.call_id)
            and (not self.lane or call.lane == self.lane)
            and (not self.tenant or call.tenant == self.tenant)
            and self.task.lower() in call.task.lower()
            and (self.state is None or call.state is self.state)
            and self._met(call)
        )

    def _met(self, call: Found) -> bool:
        if self.error in set(Category):
            return self.error == call.category
        return self.error.lower() in call.cause.lower()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One call that was found."""

    call_id: str
    state: CallState
    lane: str
    task: str
    queue: str
    tenant: str = ""
    priority: str = ""
    context: str = ""
    at_s: float = 0.0  #: accepted, or ended; seconds since the epoch; 0: not known
    attempts: int = 0
    category: Category | None = None  #: of its last failure
    cause: str = ""  #: of its last failure, or why it was set aside
    can_cancel: bool = False
    can_run_again: bool = False
