"""Who hears of an answer first? One thread of a process, over one connection, for all that wait in it.

Celery lets whoever waits read the socket in turn: a restart of Redis then reaches every one of them, each mends the
connection under the others' hands, and an event loop cannot take part at all. Here a thread of its own subscribes,
reads and reconnects; threads and event loops are told. Whoever begins to wait is subscribed first and looked up then,
so that an answer cannot fall between; after an outage all are, so that none which came meanwhile is missed.
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
QUIET_S = 10.0  #: of silence, before the server is asked whether it is there; as long again, and it counts as away
IDLE_S = 10.0  #: without anybody who waits, before thread and connection end
ASK_S = 5.0  #: a look-up may take so long
MOST_KEYS = 500  #: in one SUBSCRIBE
MOST_LOOKED_UP = 100  #: answers in one MGET: each may be large


class Listener:
    """The thread that listens, while somebody waits.

    Args:
        client: Gives the client whose pool the connection is taken from.
        wanted: Whether anybody waits for a key still.
        heard: Told of (key, what is stored there), in this thread; what it raises is logged.
    """

    def __init__(
        self, client: Callable[[], Redis], wanted: Callable[[str], bool], heard: Callable[[str, bytes], None]
    ) -> None:
        self._client, self._wanted, self._heard = client, wanted, heard
        self.begin_anew()
        _LISTENERS.add(self)

    def begin_anew(self) -> None:
        """In a forked child: the connection is the parent's, and the thread is not here."""
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked: deque[tuple[bool, str]] = deque()  #: (begin or end, key); appended to by any thread
        self._bell: socket.socket | None = None
        self._door: socket.socket | None = None
        self._keys: set[str] = set()  #: subscribed, or to be
        self._fresh: list[str] = []  #: of these, those that are subscribed and not looked up yet
        self._connection: Any = None
        self._last_heard = 0.0
        self._asked_whether_there = False

    # ── for any thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, keys: Iterable[str]) -> None:
        """Listen for these, and look them up once."""
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
        """Nobody waits for these any more, unless `wanted` says otherwise. Never blocks: destructors call it."""
        if self._thread is not None:
            self._asked.extend((False, key) for key in keys)

    @property
    def is_mine(self) -> bool:
        """Whether this is the listening thread itself, in a callback of somebody who waited."""
        return threading.current_thread() is self._thread

    def _ring(self) -> None:
        assert self._bell is not None
        with suppress(BlockingIOError):  # it has rung often enough
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
        """Do what was asked, and take in what has come; wait for it at most so long.

        Raises:
            redis.RedisError, OSError, StoreUnavailable: Redis is away; the next turn connects anew.
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
        for _ in range(MOST_KEYS):  # then whoever begins to wait has a turn
            if not self._has_come():
                return
            self._read()

    def _take_requests(self) -> None:
        asked: dict[str, bool] = {}
        while self._asked:
            begins, key = self._asked.popleft()
            asked[key] = begins or asked.get(key, False)
        now = {key: self._wanted(key) for key in asked}  # not as it was asked: others may have come or gone since
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
            self._connection.send_packed_command(packed, check_health=False)  # its answer would be a message here

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._client().connection_pool.release(connection)

    def _sleep(self, most_s: float, connection: Any) -> None:
        """Until something has come, somebody has rung, or the time is over."""
        assert self._door is not None
        with selectors.DefaultSelector() as selector:  # made each time: gevent and eventlet patch it after import
            selector.register(self._door, selectors.EVENT_READ)
            if connection is not None:
                selector.register(connection._sock, selectors.EVENT_READ)
            selector.select(most_s)
        with suppress(BlockingIOError):  # nobody has
            self._door.recv(65536)

    def _has_come(self) -> bool:
        if not self._connection.is_connected:  # `can_read` would connect anew, without what was subscribed
            raise ConnectionError("the connection was closed")
        return bool(self._connection.can_read(timeout=0))

    def _check_there(self) -> None:
        """A server that is frozen, or behind a network that drops everything, closes no connection.

        Raises:
            ConnectionError: It says nothing.
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
        """What was stored before we were subscribed, or while Redis was away."""
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
        except Exception:  # a callback of somebody who waits for one answer; others wait for theirs
            log.exception("results.callback_failed")


def text(key: bytes | str) -> str:
    """A key, however it came."""
    return key.decode() if isinstance(key, bytes) else key


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork() -> None:
    for listener in _LISTENERS:
        listener.begin_anew()


os.register_at_fork(after_in_child=_after_fork)
