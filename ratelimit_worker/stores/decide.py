"""A bound on the time of exchanges with Redis: within `deciding`, they end in time, whatever retries them.

Celery, kombu and redis-py each have their own time-outs and retries, which multiply if a server is frozen. So the bound
is enforced below all of them, in the connection: when the time is over it raises `StoreUnavailable`, which none of them
retries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from typing import Any

from redis.exceptions import ConnectionError, TimeoutError

from ratelimit_worker.errors import StoreUnavailable

FRESH_S = 0.1  #: a connection that got a reply within so many seconds is taken to be alive
CLOSE_S = 0.02  #: a socket's time-out may differ from the time left by so many seconds
DECIDE_S = 1.75  #: seconds for `.delay()` and each step of a call in process; 2 s are promised


class Decision:
    """The time that is left, and whether a request may have been carried out.

    Args:
        most_s: Seconds from now.
        clock: Monotonic seconds.
    """

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.until = clock, clock() + most_s
        self.sent = False  #: a request that changes something was written, and its answer has not been read

    def left_s(self) -> float:
        """Seconds left, above 0.

        Raises:
            StoreUnavailable: the time is over.
        """
        left = self.until - self._clock()
        if left <= 0:
            raise unanswered()
        return left

    def now_s(self) -> float:
        """The time on the clock of `until`, seconds."""
        return self._clock()

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._clock() >= self.until


def unanswered() -> StoreUnavailable:
    """The error when the time is over."""
    return StoreUnavailable("Redis did not answer in time")


_current: ContextVar[Decision | None] = ContextVar("ratelimit_worker_decision", default=None)


def current() -> Decision | None:
    """The present decision of this thread (task, greenlet); None: only the ordinary time-outs hold."""
    return _current.get()


class _Deciding:
    """See `deciding`. (A class, since a generator's context manager takes three times as long.)"""

    __slots__ = ("_most_s", "_token")

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._token: Token[Decision | None] | None = None

    def __enter__(self) -> Decision:
        decision = _current.get()
        if decision is None:
            decision = Decision(self._most_s)
            self._token = _current.set(decision)
        return decision

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)


def deciding(most_s: float = DECIDE_S) -> AbstractContextManager[Decision]:
    """Bound all exchanges with Redis within the block; if blocks are nested, the outer one counts."""
    return _Deciding(most_s)


@contextmanager
def answering() -> Iterator[None]:
    """Put around the reading of a reply: if none comes, the request may have been carried out all the same."""
    decision = _current.get()
    if decision is None:
        yield
        return
    before, decision.sent = decision.sent, True
    yield
    decision.sent = before


class _Bounded:
    """Makes a connection obey a decision."""

    _sock: Any
    socket_timeout: Any
    socket_connect_timeout: Any
    #: When the last answer came, monotonic clock; None: an answer is awaited. Set by `exchange`.
    answered_at: float | None = None
    _bounded = False  #: its socket has the time-out of a decision, which must not stay for the next user

    def can_read(self, timeout: float = 0, *args: Any, **kwargs: Any) -> bool:
        """As redis-py's, but skipped for a fresh connection: a pool calls this for each connection that it hands
        out."""
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
        self._bounded = True
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
            if self._bounded and self._sock is not None:
                self._sock.settimeout(self.socket_timeout)
                self._bounded = False
            return exchange(*args, **kwargs)
        try:
            left = decision.left_s()
        except StoreUnavailable:
            self.disconnect()  # type: ignore[attr-defined]  # an answer that was not read would be taken for the next one
            raise
        self._wait_at_most(_least(self.socket_timeout, left))
        try:
            return exchange(*args, **kwargs)
        except (TimeoutError, ConnectionError) as error:
            if decision.is_over:
                raise unanswered() from error
            raise

    def _wait_at_most(self, seconds: float) -> None:
        """Set the socket's time-out, if it differs by more than `CLOSE_S`: each setting is a system call."""
        if self._sock is None:
            return
        now = self._sock.gettimeout()
        if now is None or abs(now - seconds) > CLOSE_S:
            self._sock.settimeout(seconds)
            self._bounded = True


def _least(own_s: float | None, left_s: float) -> float:
    return left_s if own_s is None else min(own_s, left_s)


_bounded: dict[type, type] = {}


def bounded(kind: type) -> type:
    """The same connection class, bounded by decisions."""
    if issubclass(kind, _Bounded):
        return kind
    if kind not in _bounded:
        _bounded[kind] = type(kind.__name__, (_Bounded, kind), {})
    return _bounded[kind]
