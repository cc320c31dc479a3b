"""How many calls can a worker's pool run at once, and can it grow? While calls are lent, it grows by as many.

A threads pool grows by threads, gevent and eventlet by greenlets. A prefork pool does not: processes are expensive, and
a process that hangs can be killed instead. A solo pool has only one thread. Idle threads cost little, and there are at
most as many as slots.
"""

from __future__ import annotations

from typing import Any

GREEN = frozenset({"gevent", "eventlet"})


def kind_of(pool: Any) -> str:
    """thread, prefork, gevent, eventlet, solo, or the name of its module."""
    return type(pool).__module__.rpartition(".")[2]


def give_size(pool: Any) -> None:
    """Let a threads pool change its size, as Celery's others can (for the autoscaler and `pool_grow`)."""
    if kind_of(pool) != "thread" or hasattr(pool, "grow"):
        return

    def grow(n: int = 1) -> None:
        pool.limit += n
        pool.executor._max_workers += n  # a new thread starts when a job comes and none is idle

    def shrink(n: int = 1) -> None:
        n = min(n, pool.limit - 1)
        pool.limit -= n
        pool.executor._max_workers -= n  # its threads stay, but the prefetch limit bounds what runs

    pool.grow, pool.shrink = grow, shrink


class Spare:
    """What a pool can run beyond its slots."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._kind = kind_of(pool)
        self.grown = 0  #: by how many it has grown

    @property
    def can_grow(self) -> bool:
        """Whether it can grow cheaply."""
        return self._kind == "thread" or self._kind in GREEN

    @property
    def can_kill(self) -> bool:
        """Whether a job can be ended from outside."""
        return self._kind == "prefork" or self._kind in GREEN

    @property
    def replaces(self) -> bool:
        """Whether a job that never ends can be replaced, so that it takes no slot."""
        return self.can_grow or self.can_kill

    def ensure(self, n: int) -> None:
        """Make the pool able to run at least `n` more calls than it has slots."""
        more = n - self.grown
        if more <= 0 or not self.can_grow:
            return
        if self._kind == "thread":
            self._pool.executor._max_workers += more
        else:
            self._pool.grow(more)
        self.grown += more

    def slots(self, autoscaler: Any = None) -> int:
        """The pool's present slots, without what it has grown by.

        Args:
            autoscaler: The worker's; its maximum counts, since the pool grows to that when messages come.
        """
        if autoscaler is not None and hasattr(self._pool, "grow"):
            return int(autoscaler.max_concurrency)
        if self._kind == "prefork":
            running = self._pool._pool
            return int(running._processes) if running is not None else 0  # None: it has stopped
        shown = int(self._pool.num_processes)
        return shown - self.grown if self._kind in GREEN else shown  # green pools report their grown size
