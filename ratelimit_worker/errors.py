"""Everything that can go wrong, as one tree.

RateLimitWorkerError
├── ConfigurationError     a setting is wrong; only fixing it helps
├── StoreUnavailable       Redis or the database is away, full or read-only
├── BadInput               this call cannot be accepted as it is (not JSON, too large, ...)
├── LaneFull               the lane holds max_waiting calls
├── LaneShedding           the lane is in EMERGENCY or HALT, and this call asked to be shed then
├── DeadlineExceeded       the call was not answered within its deadline
├── WorkerLostRepeatedly   the call's worker died again and again
├── PayloadLost            the arguments are gone from Redis (lost without persistence)
├── MessageRefused         the call's message cannot be read, by no worker; it was set aside
├── CallFailedLater        the lane closed before the attempt; the call is back at its place
├── RowRefused             the database will never take this row
└── CallFailed             the provider gave no completion; one class a category
    ├── Throttled  Overloaded  ServerError  TimedOut  ConnectionFailed  MalformedResponse
    ├── Conflict  QuotaExhausted  AuthenticationFailed  InvalidRequest  ContentFiltered
    └── ProgrammingError

`args` alone rebuild every one of them, so they cross pickle and the JSON result backend whole.
Messages carry neither prompt nor key.
"""

from __future__ import annotations

from ratelimit_worker.calls import Category, Failure


class RateLimitWorkerError(Exception):
    """Root of all errors of this package."""


class ConfigurationError(RateLimitWorkerError):
    """A setting is wrong. `str()` is one line a setting, each naming the value and the fix."""


class StoreUnavailable(RateLimitWorkerError):
    """Redis or the database cannot be reached, is full, or is read-only."""


class BadInput(RateLimitWorkerError, ValueError):
    """The call was refused when it was made; nothing was stored."""


class LaneFull(RateLimitWorkerError):
    """The lane holds as many waiting calls as it may."""

    def __init__(self, lane: str, max_waiting: int) -> None:
        super().__init__(lane, max_waiting)
        self.lane, self.max_waiting = lane, max_waiting

    def __str__(self) -> str:
        return f"lane {self.lane!r} is full: {self.max_waiting} calls wait; try later or raise MAISD_MAX_WAITING"


class LaneShedding(RateLimitWorkerError):
    """The lane sends next to nothing, and calls of this class asked not to wait for it (`shed_below`)."""

    def __init__(self, lane: str, mode: str) -> None:
        super().__init__(lane, mode)
        self.lane, self.mode = lane, mode

    def __str__(self) -> str:
        return f"lane {self.lane!r} is in {self.mode} and sheds calls of this priority; try later or with a higher one"


class DeadlineExceeded(RateLimitWorkerError):
    """The call was not answered within its deadline.

    Args:
        attempts: Requests that were sent for it, those included that cost no try.
        category: Of the last of them that failed, as `Category` has it; None: none was sent, or its worker died.
        status, request_id, cause: Of the same, as in `CallFailed`.
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
    """The error of a call whose time is over, with what failed its last attempt."""
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


class PayloadLost(RateLimitWorkerError):
    """The arguments of a call are no longer in Redis."""

    def __init__(self, ref: str) -> None:
        super().__init__(ref)
        self.ref = ref

    def __str__(self) -> str:
        return f"the arguments of call {self.ref} are gone from Redis; send the call again"


class MessageRefused(RateLimitWorkerError):
    """The message cannot be taken for a call, or names a task that its worker does not know; it was set aside.

    Args:
        why: One line without what the message holds.
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
    """The database is there, but will never take this row. `str()` is one line without the row's values."""


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
    """HTTP 429 or its like, and nobody would wait."""

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
    """The provider could not be reached, or hung up."""

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
    """The key is missing, wrong or not allowed this."""

    category = Category.AUTH


class InvalidRequest(CallFailed):
    """The provider will never take this request."""

    category = Category.INVALID_REQUEST


class ContentFiltered(CallFailed):
    """The provider refused for the content."""

    category = Category.CONTENT_FILTERED


class ProgrammingError(CallFailed):
    """The task's own code is wrong."""

    category = Category.PROGRAMMING


_BY_CATEGORY: dict[Category, type[CallFailed]] = {kind.category: kind for kind in CallFailed.__subclasses__()}


def call_failed(failure: Failure, attempts: int) -> CallFailed:
    """The error that stands for `failure` after `attempts` attempts."""
    return _BY_CATEGORY[failure.category](failure.cause, failure.status, failure.request_id, attempts)
