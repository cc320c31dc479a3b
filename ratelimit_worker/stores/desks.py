"""The register of processes that make calls in process, and the removal of calls of those that died.

Each such process is a small worker with its own queue, which no other serves: when it dies, its calls would wait until
their deadlines. So each process reports that it is there, and any other deletes the calls of those that are gone.
"""

from __future__ import annotations

from typing import Any

from redis import Redis

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.lanes import Lanes

PREFIX = "inproc:"  #: prefix of the names of their queues, and of the processes as workers
ABSENT_S = 10.0  #: a process silent for this long counts as dead; one that was only frozen enters its calls anew
LOOK_EVERY_S = 5.0


class Desks:
    """The register of such processes. All methods raise redis-py's errors."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def here(self, queue: str) -> None:
        """Report that the process with this queue is alive."""
        self._client.zadd(keys.DESKS, {queue: redis_now_s(self._client)})

    def gone(self, queue: str) -> None:
        """Remove the process with this queue, which ends in good order, and delete the calls that it left."""
        Lanes(self._client).purge(queue)
        self._client.zrem(keys.DESKS, queue)
        self._client.delete(queue, keys.ready(keys.ALL, queue))

    def workers_live(self) -> bool:
        """Whether a Celery worker is alive; a dead one counts as alive for 3.5 s after its last beat."""
        names: Any = self._client.zrange(keys.WORKERS, 0, -1)
        return any(not name.startswith(PREFIX.encode()) for name in names)

    def forget_absent(self, owner: str, lease_s: float) -> int:
        """Delete the calls of processes that died → how many; 0 also if another process has just looked.

        A dead process stays in the register until the leases of its last calls have ended.
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
