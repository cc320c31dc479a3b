"""By when must who asks Redis know? Within `deciding` every exchange with it ends in time, whatever retries it.

Celery, kombu and redis-py each have time-outs and retries of their own, which multiply where a server is frozen. So the
bound stands below them all, at the connection: once the time is over it raises `StoreUnavailable`, which none of them
takes for something to try again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError

from ratelimit_worker.errors import StoreUnavailable

FRESH_S = 0.1  #: a connection that was answered so recently is taken to live
DECIDE_S = 1.75  #: for `.delay()` and each step of a call in process; what is promised is 2 s


class Decision:
    """The time that somebody has, and whether what was asked may have been done.

    Args:
        most_s: Seconds from now.
        clock: Monotonic seconds.
    """

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.until = clock, clock() + most_s
        self.sent = False  #: a request that changes something was written, and its answer has not been read

    def left_s(self) -> float:
        """Seconds that are left, above 0.

        Raises:
            StoreUnavailable: none are.
        """
        left = self.until - self._clock()
        if left <= 0:
            raise unanswered()
        return left

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._clock() >= self.until


def unanswered() -> StoreUnavailable:
    """The error of who has no time left."""
    return StoreUnavailable("Redis did not answer in time")


_current: ContextVar[Decision | None] = ContextVar("ratelimit_worker_decision", default=None)


def current() -> Decision | None:
    """The decision that this thread (task, greenlet) is about; None: it has all the time that its time-outs give."""
    return _current.get()


@contextmanager
def deciding(most_s: float = DECIDE_S) -> Iterator[Decision]:
    """Bound what is asked of Redis inside; within another it is that one's time that counts."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    decision = Decision(most_s)
    token = _current.set(decision)
    try:
        yield decision
    finally:
        _current.reset(token)


@contextmanager
def answering() -> Iterator[None]:
    """Around the reading of an answer: where it does not come, what was asked may have been done all the same."""
    decision = _current.get()
    if decision is None:
        yield
        return
    before, decision.sent = decision.sent, True
    yield
    decision.sent = before


class _Bounded:
    """What a connection does within a decision."""

    _sock: Any
    socket_timeout: Any
    socket_connect_timeout: Any
    #: When all that was asked had been answered, of the monotonic clock; None: something is asked. `exchange` says it.
    answered_at: float | None = None

    def can_read(self, timeout: float = 0, *args: Any, **kwargs: Any) -> bool:
        """As redis-py's. A pool asks it of each connection that it hands out: a system call, and a turn of the GIL."""
        at = self.answered_at
        if timeout == 0 and at is not None and time.monotonic() - at < FRESH_S:
            return False
        return bool(super().can_read(timeout, *args, **kwargs))  # type: ignore[misc]

    def _connect(self) -> Any:
        decision = _current.get()
        if decision is None:
            return super()._connect()  # type: ignore[misc]
        own = self.socket_connect_timeout, self.socket_timeout
        left = decision.left_s()
        self.socket_connect_timeout, self.socket_timeout = (_least(one, left) for one in own)
        try:
            return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_connect_timeout, self.socket_timeout = own

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        self.answered_at = None
        self._in_time(super().send_packed_command, *args, **kwargs)  # type: ignore[misc]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        return self._in_time(super().read_response, *args, **kwargs)  # type: ignore[misc]

    def _in_time(self, exchange: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        decision = _current.get()
        if decision is None:
            return exchange(*args, **kwargs)
        try:
            left = decision.left_s()
        except StoreUnavailable:
            self.disconnect()  # type: ignore[attr-defined]  # an answer that nobody has read would be taken for the next one's
            raise
        if self._sock is not None:
            self._sock.settimeout(_least(self.socket_timeout, left))
        try:
            return exchange(*args, **kwargs)
        except (TimeoutError, ConnectionError) as error:
            if decision.is_over:
                raise unanswered() from error
            raise
        finally:
            if self._sock is not None:
                self._sock.settimeout(self.socket_timeout)


def _least(own_s: float | None, left_s: float) -> float:
    return left_s if own_s is None else min(own_s, left_s)


_bounded: dict[type, type] = {}


def bounded(kind: type) -> type:
    """The same kind of connection, bounded by decisions."""
    if issubclass(kind, _Bounded):
        return kind
    if kind not in _bounded:
        _bounded[kind] = type(kind.__name__, (_Bounded, kind), {})
    return _bounded[kind]
