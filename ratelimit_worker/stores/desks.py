"""Which processes make calls without a queue, and which of them died with calls in the lanes?

Each such process is a small worker with a queue of its own, which nobody else serves: when it dies, what waits there
would wait until its deadline. So each says that it is there, and whoever comes by forgets the calls of the others.
"""

from __future__ import annotations

from typing import Any

from redis import Redis

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.lanes import Lanes

PREFIX = "inproc:"  #: names of their queues, and of the processes as workers, begin so
ABSENT_S = 10.0  #: a process that was silent for so long is taken for dead; if it was frozen, it enters its calls anew
LOOK_EVERY_S = 5.0


class Desks:
    """The register of such processes. All methods raise redis-py's errors as they are."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def here(self, queue: str) -> None:
        """This process lives."""
        self._client.zadd(keys.DESKS, {queue: redis_now_s(self._client)})

    def gone(self, queue: str) -> None:
        """This process ends in good order; what it left is forgotten."""
        Lanes(self._client).purge(queue)
        self._client.zrem(keys.DESKS, queue)
        self._client.delete(queue, keys.ready(keys.ALL, queue))

    def workers_live(self) -> bool:
        """Whether a Celery worker lives; exact to its lifetime after its last beat (3.5 s)."""
        names: Any = self._client.zrange(keys.WORKERS, 0, -1)
        return any(not name.startswith(PREFIX.encode()) for name in names)

    def forget_absent(self, owner: str, lease_s: float) -> int:
        """Forget the calls of processes that died → how many; 0 when somebody has just looked.

        A dead process is looked at until its last call can have come back from the ledger.
        """
        if not self._client.set(keys.duty("desks"), owner, nx=True, px=int(LOOK_EVERY_S * 1000)):
            return 0
        now_s, forgotten = redis_now_s(self._client), 0
        absent: Any = self._client.zrangebyscore(keys.DESKS, "-inf", now_s - ABSENT_S, withscores=True)
        for name, seen_s in absent:
            queue = name.decode()
            forgotten += Lanes(self._client).purge(queue)
            if seen_s < now_s - ABSENT_S - 2 * lease_s:
                self.gone(queue)
        return forgotten
