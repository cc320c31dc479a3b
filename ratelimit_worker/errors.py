"""Everything that can go wrong, as one tree.

RateLimitWorkerError
├── ConfigurationError     a setting is wrong; only fixing it helps
├── StoreUnavailable       Redis or the database is away, full or read-only
├── BadInput               this call cannot be accepted as it is (not JSON, too large, ...)
├── LaneFull               the lane holds max_waiting calls
├── LanesFull              the lane is new, and there are MAISD_MAX_LANES lanes already
├── LaneShedding           the lane is in EMERGENCY or HALT, and this call asked to be shed then
├── BudgetSpent            a budget of money is spent, and this call asked not to wait for the next day or month
├── DeadlineExceeded       the call was not answered within its deadline
├── WorkerLostRepeatedly   the call's worker died again and again
├── TaskAborted            the task raised what ends a process, thread or greenlet (SystemExit, MemoryError, ...)
├── CallLost               Redis has forgotten the call, or its arguments
├── MessageRefused         no worker can take the call's message; it was set aside
├── CallFailedLater        the lane closed before the attempt; the call is back at its place
├── RowRefused             the database will never take this row
└── CallFailed             the provider gave no completion; one class for each category
    ├── Throttled  Overloaded  ServerError  TimedOut  ConnectionFailed  MalformedResponse
    ├── Conflict  QuotaExhausted  AuthenticationFailed  InvalidRequest  ContentFiltered
    └── ProgrammingError

Each can be rebuilt from its `args` alone, so it passes pickle and the JSON result backend unchanged.
Their texts contain neither prompts nor keys.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from ratelimit_worker.calls import Category, Failure


class RateLimitWorkerError(Exception):
    """Root of all errors of this package."""


class ConfigurationError(RateLimitWorkerError):
    """A setting is wrong. `str()` has one line for each such setting, with its value and the fix."""


class StoreUnavailable(RateLimitWorkerError):
    """Redis or the database cannot be reached, is full, or is read-only.

    Args:
        said: What is wrong, in one line.
        call_id: Id of the call that was being sent; None: there was none.
        accepted: "maybe": Redis was sent the call and did not reply, so the call may run. To send it again with the
            same arguments and `task_id=call_id` is safe: it then runs once. "no": the call will not run.
    """

    def __init__(self, said: str = "", call_id: str | None = None, accepted: Literal["no", "maybe"] = "no") -> None:
        super().__init__(*((said,) if call_id is None else (said, call_id, accepted)))
        self.said, self.call_id, self.accepted = said, call_id, accepted

    def __str__(self) -> str:
        if self.call_id is None:
            return self.said
        if self.accepted == "no":
            return f"call {self.call_id} was not accepted: {self.said}"
        return (
            f"call {self.call_id} may have been accepted: {self.said}; "
            f"to be sure, make it again with task_id={self.call_id!r}: it runs once"
        )


class BadInput(RateLimitWorkerError, ValueError):
    """The call was refused when it was made; nothing was stored."""


class LaneFull(RateLimitWorkerError):
    """The lane holds as many waiting calls as it may."""

    def __init__(self, lane: str, max_waiting: int) -> None:
        super().__init__(lane, max_waiting)
        self.lane, self.max_waiting = lane, max_waiting

    def __str__(self) -> str:
        return f"lane {self.lane!r} is full: {self.max_waiting} calls wait; try later or raise MAISD_MAX_WAITING"


class LanesFull(RateLimitWorkerError):
    """There are MAISD_MAX_LANES lanes already, and this one is new."""

    def __init__(self, lane: str) -> None:
        super().__init__(lane)
        self.lane = lane

    def __str__(self) -> str:
        return (
            f"lane {self.lane!r} is new, and there are MAISD_MAX_LANES lanes already: a lane is a provider's budget, "
            "not a user or a request; raise the setting if so many are meant, or name the lane in MAISD_LANES"
        )


class LaneShedding(RateLimitWorkerError):
    """The lane is in EMERGENCY or HALT, and calls of this class asked not to wait for its end (`shed_below`)."""

    def __init__(self, lane: str, mode: str) -> None:
        super().__init__(lane, mode)
        self.lane, self.mode = lane, mode

    def __str__(self) -> str:
        return f"lane {self.lane!r} is in {self.mode} and sheds calls of this priority; try later or with a higher one"


class BudgetSpent(RateLimitWorkerError):
    """A budget of money is spent, and this call does not wait for the next day or month (`over_budget="fail"`).

    Args:
        budget: Its name: "all", or "lane:", "tenant:" or "context:" and what it bounds.
        until_s: When there is money again, seconds since the epoch.
    """

    def __init__(self, budget: str, until_s: int) -> None:
        super().__init__(budget, until_s)
        self.budget, self.until_s = budget, until_s

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.until_s, UTC)
        return f"the budget {self.budget!r} is spent until {until:%Y-%m-%d %H:%M} UTC; no request was made"


class DeadlineExceeded(RateLimitWorkerError):
    """The call was not answered within its deadline.

    Args:
        attempts: Requests that were sent for it, including those that cost no try.
        category: Value of the `Category` of its last failed attempt; None: none was made, or its worker died.
        status, request_id, cause: Of the same attempt, as in `CallFailed`.
    """

    def __init__(
        self,
        call_id: str,
        lane: str = "",
        attempts: int = 0,
        category: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(call_id, lane, attempts, category, status, request_id, cause)
        self.call_id, self.lane, self.attempts = call_id, lane, attempts
        self.category, self.status, self.request_id, self.cause = category, status, request_id, cause

    def __str__(self) -> str:
        said = f"call {self.call_id} in lane {self.lane!r} passed its deadline after {self.attempts} attempt(s)"
        where = f" (HTTP {self.status})" if self.status else ""
        return f"{said}, the last: {self.category}{where}: {self.cause}" if self.category else said


def deadline_exceeded(call_id: str, lane: str, attempts: int, last: Failure | None) -> DeadlineExceeded:
    """The error of a call whose deadline has passed, with the failure of its last attempt (None: there is none)."""
    if last is None:
        return DeadlineExceeded(call_id, lane, attempts)
    why = (last.category.value, last.status, last.request_id, last.cause)
    return DeadlineExceeded(call_id, lane, attempts, *why)


class WorkerLostRepeatedly(RateLimitWorkerError):
    """The call was given up because every worker that ran it died."""

    def __init__(self, call_id: str, deliveries: int) -> None:
        super().__init__(call_id, deliveries)
        self.call_id, self.deliveries = call_id, deliveries

    def __str__(self) -> str:
        return f"call {self.call_id} was given up: its worker died {self.deliveries} times"


class TaskAborted(RateLimitWorkerError):
    """The task raised an exception that ends a process, thread or greenlet; the call ended, its worker did not.

    It replaces exceptions that Celery cannot send to a caller: `SystemExit`, `KeyboardInterrupt`, `MemoryError`,
    `CancelledError`, `GreenletExit` and every other `BaseException` that is not an `Exception`.

    Args:
        raised: Name of the exception's class.
    """

    def __init__(self, call_id: str, raised: str) -> None:
        super().__init__(call_id, raised)
        self.call_id, self.raised = call_id, raised

    def __str__(self) -> str:
        return f"the task of call {self.call_id} raised {self.raised}"


class CallLost(RateLimitWorkerError):
    """Redis has forgotten the call, or its arguments: it was flushed, lost writes not yet on disk, or evicts keys.

    Nobody runs it any more; whether an attempt was made before is not known. `explain` shows what is recorded of it.
    """

    def __init__(self, call_id: str) -> None:
        super().__init__(call_id)
        self.call_id = call_id

    def __str__(self) -> str:
        return f"Redis has forgotten call {self.call_id}; make it again"


class MessageRefused(RateLimitWorkerError):
    """The message is not a valid call, or names a task that its worker does not know; it was set aside.

    Args:
        why: One line, without the content of the message.
    """

    def __init__(self, call_id: str, why: str) -> None:
        super().__init__(call_id, why)
        self.call_id, self.why = call_id, why

    def __str__(self) -> str:
        return f"the message of call {self.call_id} was set aside (LRANGE rlw:malformed 0 9): {self.why}"


class CallFailedLater(RateLimitWorkerError):
    """The lane closed between release and start; the call went back to its place and has used no attempt."""

    def __init__(self, lane: str) -> None:
        super().__init__(lane)
        self.lane = lane

    def __str__(self) -> str:
        return f"lane {self.lane!r} is closed for now; the call went back to its place"


class RowRefused(RateLimitWorkerError):
    """The database works, but will never accept this row. `str()` is one line without the row's values."""


class CallFailed(RateLimitWorkerError):
    """The provider gave no completion.

    Args:
        cause: One line without prompt or key.
        status: HTTP status, when there was an HTTP answer.
        request_id: The provider's name for the last request.
        attempts: Attempts made, from 1.
    """

    category: Category

    def __init__(
        self, cause: str = "", status: int | None = None, request_id: str | None = None, attempts: int = 1
    ) -> None:
        super().__init__(cause, status, request_id, attempts)
        self.cause, self.status, self.request_id, self.attempts = cause, status, request_id, attempts

    def __str__(self) -> str:
        where = f" (HTTP {self.status})" if self.status else ""
        return f"{self.category}{where} after {self.attempts} attempt(s): {self.cause}"


class Throttled(CallFailed):
    """HTTP 429 or an equivalent answer, and no further attempt is made."""

    category = Category.RATE_LIMITED


class Overloaded(CallFailed):
    """The provider said that it is overloaded."""

    category = Category.OVERLOADED


class ServerError(CallFailed):
    """The provider failed."""

    category = Category.SERVER_ERROR


class TimedOut(CallFailed):
    """No answer in time."""

    category = Category.TIMEOUT


class ConnectionFailed(CallFailed):
    """The provider could not be reached, or closed the connection."""

    category = Category.CONNECTION


class MalformedResponse(CallFailed):
    """The answer could not be read."""

    category = Category.MALFORMED_RESPONSE


class Conflict(CallFailed):
    """HTTP 409 or 425."""

    category = Category.CONFLICT


class QuotaExhausted(CallFailed):
    """The account has no credit left; waiting does not help, paying does."""

    category = Category.QUOTA_EXHAUSTED


class AuthenticationFailed(CallFailed):
    """The key is missing, wrong, or has no permission for this."""

    category = Category.AUTH


class InvalidRequest(CallFailed):
    """The provider will never take this request."""

    category = Category.INVALID_REQUEST


class ContentFiltered(CallFailed):
    """The provider refused the request or its answer because of the content."""

    category = Category.CONTENT_FILTERED


class ProgrammingError(CallFailed):
    """The task's own code is wrong."""

    category = Category.PROGRAMMING


_BY_CATEGORY: dict[Category, type[CallFailed]] = {kind.category: kind for kind in CallFailed.__subclasses__()}


def call_failed(failure: Failure, attempts: int) -> CallFailed:
    """The error that stands for `failure` after `attempts` attempts."""
    return _BY_CATEGORY[failure.category](failure.cause, failure.status, failure.request_id, attempts)
