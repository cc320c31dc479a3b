"""While Redis is away, full or read-only, a worker waits with its calls and answers.

A released call has its slot, and an answer that has come is paid for: neither may be dropped because Redis restarts.
Each of these scripts can be repeated after a lost reply: begin counts one attempt more, settle and back find their work
done.
"""

from __future__ import annotations

import logging
import mmap
import struct
from collections.abc import Callable
from time import monotonic, sleep
from typing import TypeVar

from redis import RedisError
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from ratelimit_worker.contracts.lesson import Lesson, Settlement, Stored
from ratelimit_worker.ports import Begun, Health
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.reach import first_line, unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 1.0
#: AuthenticationError is among them (a ConnectionError): a password is not changed everywhere at the same moment.
AWAY = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    NoPermissionError,
    OSError,
)
#: First words of errors that end with a state of the server.
PASSING = (
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "MISCONF",
    "READONLY",
    "OOM",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
)


class Patience:
    """How long a process waits for Redis: for ever, until its worker is told to end; then for some seconds more.

    A worker's forked children see this too: it is in shared memory, and the clock is the machine's.
    """

    def __init__(self) -> None:
        self._told = mmap.mmap(-1, _TOLD.size)

    def ends_in(self, grace_s: float) -> None:
        """The worker was told to end; if repeated, the time counts from the last one."""
        _TOLD.pack_into(self._told, 0, monotonic(), grace_s)

    def holds(self) -> None:
        """Wait for ever (again)."""
        _TOLD.pack_into(self._told, 0, 0.0, 0.0)

    def is_over(self, since: float = 0.0) -> bool:
        """Whether a wait that began at this time (monotonic clock) is over, after the order to end."""
        told, grace_s = _TOLD.unpack_from(self._told, 0)
        return bool(told) and monotonic() - max(told, since) >= grace_s


_TOLD = struct.Struct("dd")  #: when the order came, monotonic clock; how long to wait from then on
PATIENCE = Patience()  #: of this process and the children that it forks


class PatientLanes(Lanes):
    """Lanes for a worker's attempts: waits for Redis instead of failing the call.

    When `PATIENCE` is over, the error is raised, and the call is left to its lease. An error that waiting cannot cure
    becomes `StoreUnavailable`, which can be stored as the call's result.
    """

    def begin(self, tag: str, lease_s: float, alone: bool = False, process: str = "", taken: bool = False) -> Begun:
        return self._patiently(lambda: super(PatientLanes, self).begin(tag, lease_s, alone, process, taken))

    def settle(self, settlement: Settlement) -> bool:
        return self._patiently(lambda: super(PatientLanes, self).settle(settlement))

    def finish(self, settlement: Settlement, result: Stored, frees: bool) -> bool:
        told = super().finish
        return self._patiently(lambda: told(settlement, result, frees))

    def back(self, tag: str, lane: str, lesson: Lesson, *, after_s: float, tries: int, outbox: bytes = b"") -> bool:
        told = super().back
        return self._patiently(lambda: told(tag, lane, lesson, after_s=after_s, tries=tries, outbox=outbox))

    def health(self, lane: str, task: str = "") -> Health:
        return self._patiently(lambda: super(PatientLanes, self).health(lane, task))

    def _patiently(self, ask: Callable[[], T]) -> T:
        pause_s, since = FIRST_PAUSE_S, monotonic()
        while True:
            try:
                return ask()
            except (RedisError, OSError) as error:
                if not passes(error):  # such as a key of another type
                    raise unavailable(error, "the call cannot go on, Redis said") from error
                if PATIENCE.is_over(since):
                    raise
                if pause_s == FIRST_PAUSE_S:
                    why = f"{type(error).__name__}: {first_line(error)}"
                    log.warning("redis.away %s", why, extra={"cause": type(error).__name__})
                sleep(pause_s)
                pause_s = min(MOST_PAUSE_S, pause_s * 2)


def passes(error: Exception) -> bool:
    """Whether the same command may succeed later."""
    if isinstance(error, ResponseError) and not isinstance(error, AWAY):
        return str(error).startswith(PASSING)
    return isinstance(error, AWAY)
