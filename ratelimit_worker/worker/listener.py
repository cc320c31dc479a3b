"""One thread of a process listens for answers, over one connection, for all callers that wait in it.

In Celery the waiting callers read the socket in turn: after a restart of Redis each of them repairs the connection
while others use it, and event loops cannot take part. Here one thread subscribes, reads and reconnects, and wakes
threads and event loops. For a new caller it first subscribes and then looks whether the answer is there already, so
that none is missed in between; after an outage it does the same for all.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from redis import Redis, RedisError
from redis.exceptions import ConnectionError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.outage import cause_of
from ratelimit_worker.stores.decide import deciding

log = logging.getLogger(__name__)

FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 1.0  #: between two attempts to connect
QUIET_S = 10.0  #: silence after which the server is pinged; after as much again it counts as away
IDLE_S = 10.0  #: how long without callers until thread and connection end
ASK_S = 5.0  #: time-out of a look-up
MOST_KEYS = 500  #: most keys in one SUBSCRIBE
MOST_LOOKED_UP = 100  #: most answers in one MGET, since each may be large


class Listener:
    """The thread that listens while callers wait.

    Args:
        client: Returns the client from whose pool the connection is taken.
        wanted: Whether any caller still waits for a key.
        heard: Called with (key, stored result) in this thread; what it raises is logged.
    """

    def __init__(
        self, client: Callable[[], Redis], wanted: Callable[[str], bool], heard: Callable[[str, bytes], None]
    ) -> None:
        self._client, self._wanted, self._heard = client, wanted, heard
        self.begin_anew()
        _LISTENERS.add(self)

    def begin_anew(self) -> None:
        """In a forked child: forget the parent's connection; the thread is not here."""
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked: deque[tuple[bool, str]] = deque()  #: (begin or end, key); appended to by any thread
        self._bell: socket.socket | None = None
        self._door: socket.socket | None = None
        self._keys: set[str] = set()  #: keys that are subscribed, or will be
        self._fresh: list[str] = []  #: subscribed keys that were not looked up yet
        self._connection: Any = None
        self._last_heard = 0.0
        self._asked_whether_there = False

    # ── for any thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, keys: Iterable[str]) -> None:
        """Listen for these keys, and look them up once."""
        with self._start:
            self._asked.extend((True, key) for key in keys)
            if self._bell is None:
                self._bell, self._door = socket.socketpair()
                self._bell.setblocking(False)
                self._door.setblocking(False)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="ratelimit-worker-results", daemon=True)
                self._thread.start()
        self._ring()

    def end(self, keys: Iterable[str]) -> None:
        """Stop listening for these, unless `wanted` says otherwise. Never blocks, since destructors call it."""
        if self._thread is not None:
            self._asked.extend((False, key) for key in keys)

    @property
    def is_mine(self) -> bool:
        """Whether this code runs in the listening thread itself, in a callback."""
        return threading.current_thread() is self._thread

    def _ring(self) -> None:
        assert self._bell is not None
        with suppress(BlockingIOError):  # the buffer is full, so it will wake in any case
            self._bell.send(b"!")

    # ── in the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        pause_s, idle_since = FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                self.turn(1.0)
                pause_s = FIRST_PAUSE_S
            except (RedisError, OSError, StoreUnavailable) as error:
                if pause_s == FIRST_PAUSE_S:
                    log.warning("results.away cause=%s", cause_of(error), extra={"cause": cause_of(error)})
                self._hang_up()
                time.sleep(pause_s)
                pause_s = min(MOST_PAUSE_S, pause_s * 2)
            if self._keys or self._asked:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= IDLE_S and self._leave():
                return

    def _leave(self) -> bool:
        with self._start:
            if self._asked:
                return False
            self._thread = None
        self._hang_up()
        return True

    def turn(self, most_s: float) -> None:
        """One turn: change subscriptions as asked, and handle messages; wait for these at most so long.

        Raises:
            redis.RedisError, OSError, StoreUnavailable: Redis is away; the next turn reconnects.
        """
        self._take_requests()
        if self._connection is None:
            if not self._keys:
                self._sleep(most_s, None)
                return
            self._connect()
        if self._fresh:
            self._look_up()
        if not self._has_come():
            self._sleep(most_s, self._connection)
            self._check_there()
        for _ in range(MOST_KEYS):  # then new callers get a turn
            if not self._has_come():
                return
            self._read()

    def _take_requests(self) -> None:
        asked: dict[str, bool] = {}
        while self._asked:
            begins, key = self._asked.popleft()
            asked[key] = begins or asked.get(key, False)
        now = {key: self._wanted(key) for key in asked}  # asked now, since callers may have come or gone since
        self._fresh += [key for key, begins in asked.items() if begins and now[key] and key in self._keys]
        over = [key for key in asked if not now[key] and key in self._keys]
        new = [key for key in asked if now[key] and key not in self._keys]
        self._keys.difference_update(over)
        self._keys.update(new)
        if self._connection is not None:
            self._send("UNSUBSCRIBE", over)
            self._send("SUBSCRIBE", new)

    def _connect(self) -> None:
        pool = self._client().connection_pool
        with deciding(ASK_S):
            self._connection = pool.get_connection()
        self._last_heard, self._asked_whether_there, self._fresh = time.monotonic(), False, []
        self._send("SUBSCRIBE", list(self._keys))

    def _send(self, command: str, keys: list[str]) -> None:
        for start in range(0, len(keys), MOST_KEYS):
            packed = self._connection.pack_command(command, *keys[start : start + MOST_KEYS])
            # a health check's answer would be taken for a message
            self._connection.send_packed_command(packed, check_health=False)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._client().connection_pool.release(connection)

    def _sleep(self, most_s: float, connection: Any) -> None:
        """Wait until a message comes, another thread wakes this one, or the time is over."""
        assert self._door is not None
        # made here each time, since gevent and eventlet patch it after import
        with selectors.DefaultSelector() as selector:
            selector.register(self._door, selectors.EVENT_READ)
            if connection is not None:
                selector.register(connection._sock, selectors.EVENT_READ)
            selector.select(most_s)
        with suppress(BlockingIOError):  # no thread has
            self._door.recv(65536)

    def _has_come(self) -> bool:
        if not self._connection.is_connected:  # `can_read` would reconnect, without the subscriptions
            raise ConnectionError("the connection was closed")
        return bool(self._connection.can_read(timeout=0))

    def _check_there(self) -> None:
        """Check a silent connection: a frozen server, or a network that drops everything, does not close it.

        Raises:
            ConnectionError: the server does not answer.
        """
        quiet_s = time.monotonic() - self._last_heard
        if quiet_s >= 2 * QUIET_S and self._asked_whether_there and not self._has_come():
            raise ConnectionError(f"no answer for {QUIET_S:.0f} s")
        if quiet_s >= QUIET_S and not self._asked_whether_there:
            self._asked_whether_there = True
            self._connection.send_packed_command(self._connection.pack_command("PING"), check_health=False)

    def _read(self) -> None:
        said = self._connection.read_response(push_request=True)
        self._last_heard, self._asked_whether_there = time.monotonic(), False
        match said:
            case [b"message" | "message", key, data]:
                self._tell(text(key), data)
            case [b"subscribe" | "subscribe", key, _]:
                self._fresh.append(text(key))

    def _look_up(self) -> None:
        """Look up results that were stored before we subscribed, or while Redis was away."""
        client = self._client()
        while self._fresh:
            keys = self._fresh[:MOST_LOOKED_UP]
            with deciding(ASK_S):
                found: Any = client.mget(keys)
            del self._fresh[: len(keys)]
            for key, data in zip(keys, found, strict=True):
                if data is not None:
                    self._tell(key, data)

    def _tell(self, key: str, data: bytes) -> None:
        try:
            self._heard(key, data)
        except Exception:  # the callback of one caller must not affect the others
            log.exception("results.callback_failed")


def text(key: bytes | str) -> str:
    """A key as text."""
    return key.decode() if isinstance(key, bytes) else key


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork() -> None:
    for listener in _LISTENERS:
        listener.begin_anew()


os.register_at_fork(after_in_child=_after_fork)
