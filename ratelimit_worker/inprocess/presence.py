"""The presence of a process that makes calls in process: it beats like a worker, with slots for its callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from redis import RedisError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.call.admit import News
from ratelimit_worker.inprocess.mailbox import Mailbox
from ratelimit_worker.stores.desks import LOOK_EVERY_S, Desks
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.duties import Duty

BEAT_S, LIFE_S = 1.0, 3.5
PATIENCE_S = 15.0  #: how long a restart or pause of Redis is waited for; after that, calls go on without it
PROBE_S = 2.0  #: between looks at a Redis that is not waited for any more
#: Spare slots beyond the callers. Ready calls of other queues may fill the cluster's slots and a few more (`SUPPLY` in
#: lua/shared/record.lua), and room is counted over all slots: without spare slots, our callers, who need no worker's
#: slot, would wait for those calls.
SPARE_SLOTS = 64


class Presence:
    """The state of Redis for this process, and this process's entry in Redis.

    Args:
        queue: Its own queue, and its name among the workers.
        lease_s: How long a release belongs to its caller without a beat, seconds.
        mailbox: The waiting callers: each needs a slot, and is told of a long outage.
        clock: Monotonic seconds.
    """

    def __init__(
        self, queue: str, lease_s: float, mailbox: Mailbox, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.queue, self.lease_s, self.clock = queue, lease_s, clock
        self.there = threading.Event()  #: Redis was there at the last look
        self.why = ""  #: why Redis could not be used the last time
        self._mailbox = mailbox
        self._away_since: float | None = None
        self._known = False  #: whether Redis was ever there
        self._slots = 0  #: slots in Redis
        self._beating = threading.Lock()

    @property
    def away(self) -> bool:
        """Whether Redis was found to be away, and was not found to be back yet."""
        return self._away_since is not None

    def patient(self) -> bool:
        """Whether Redis has been away for so short a time that it is worth waiting for."""
        since = self._away_since
        return self._known and since is not None and self.clock() - since < PATIENCE_S

    def came(self) -> None:
        """Note that Redis is there."""
        self._away_since, self._known = None, True
        self.there.set()

    def went(self, error: Exception) -> None:
        """Note that Redis could not be used; after `PATIENCE_S` all waiting callers are told."""
        if not isinstance(error, StoreUnavailable):
            self.why = f"Redis said {type(error).__name__}"
        if self._away_since is None:
            self._away_since = self.clock()
        self.there.clear()
        if not self.patient():
            self._mailbox.tell_all(News.AWAY)

    def beat(self, lanes: Lanes) -> None:
        """Beat, with enough slots for all waiting callers.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        with self._beating:
            self._beat(lanes)

    def take_seats(self, lanes: Lanes) -> None:
        """Return when Redis has enough slots for all callers.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        if self._are_short():
            with self._beating:
                if self._are_short():  # else another caller has just done it
                    self._beat(lanes)

    def _are_short(self) -> bool:
        return self._slots < len(self._mailbox) + SPARE_SLOTS

    def _beat(self, lanes: Lanes) -> None:
        slots = SPARE_SLOTS + (1 << max(0, self._mailbox.most_turns() - 1).bit_length())
        lanes.beat(self.queue, slots, LIFE_S, [self.queue], self.lease_s, self._mailbox.held())
        Desks(lanes.client).here(self.queue)
        self._slots = slots

    def leave(self, lanes: Lanes) -> None:
        """Leave the register of workers.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        lanes.beat(self.queue, 0, LIFE_S, [self.queue], self.lease_s, [])
        Desks(lanes.client).gone(self.queue)


class Beat(Duty):
    """Beats once a second; looks for Redis while it is away.

    Args:
        beat: One beat of the process, with what else is to be written to Redis.
        look: Called at every other beat.
    """

    def __init__(
        self, server: RedisServer, presence: Presence, beat: Callable[[Lanes], None], look: Callable[[Lanes], None]
    ) -> None:
        super().__init__("desk-beat", server, presence.queue)
        self.presence, self.beat, self.look, self.lanes = presence, beat, look, Lanes(self.client)
        self.woken = threading.Event()
        self.every_s = min(BEAT_S, presence.lease_s / 5)
        self._look_at = 0.0

    def turn(self) -> None:
        self.woken.wait(self.every_s)
        self.woken.clear()
        if self.stopping.is_set():
            return
        try:
            self.beat(self.lanes)
            self.presence.came()
            if (now := self.presence.clock()) >= self._look_at:
                self._look_at = now + min(LOOK_EVERY_S, self.every_s * 2)
                self.look(self.lanes)
        except (RedisError, OSError) as error:
            self.presence.went(error)
            if not self.presence.patient():
                self.stopping.wait(PROBE_S)
            raise

    def stop(self) -> None:
        super().stop()
        self.woken.set()
