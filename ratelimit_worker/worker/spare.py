"""How many calls does a worker's pool run at once, and can it run more? While it lends some, its pool grows by as many.

threads: by a thread each. gevent, eventlet: by a greenlet each. prefork: no, a process is dear, and can be killed
instead. solo: no, there is one thread. Idle threads cost next to nothing, and there are at most as many as slots.
"""

from __future__ import annotations

from typing import Any

GREEN = frozenset({"gevent", "eventlet"})


def kind_of(pool: Any) -> str:
    """thread, prefork, gevent, eventlet, solo, or whatever module it comes from."""
    return type(pool).__module__.rpartition(".")[2]


def give_size(pool: Any) -> None:
    """A threads pool gets what Celery's others have, and its autoscaler and `pool_grow` call: another size."""
    if kind_of(pool) != "thread" or hasattr(pool, "grow"):
        return

    def grow(n: int = 1) -> None:
        pool.limit += n
        pool.executor._max_workers += n  # a new thread starts when a job comes and none is idle

    def shrink(n: int = 1) -> None:
        n = min(n, pool.limit - 1)
        pool.limit -= n
        pool.executor._max_workers -= n  # its threads stay; what they are handed is bounded by the messages in hand

    pool.grow, pool.shrink = grow, shrink


class Spare:
    """Room in a pool beyond its slots."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._kind = kind_of(pool)
        self.grown = 0  #: by so many

    @property
    def can_grow(self) -> bool:
        """Whether one more is cheap."""
        return self._kind == "thread" or self._kind in GREEN

    @property
    def can_kill(self) -> bool:
        """Whether a job that never ends can be ended from outside."""
        return self._kind == "prefork" or self._kind in GREEN

    @property
    def replaces(self) -> bool:
        """Whether a job that never ends costs no slot."""
        return self.can_grow or self.can_kill

    def ensure(self, n: int) -> None:
        """The pool runs at least `n` more than it has slots."""
        more = n - self.grown
        if more <= 0 or not self.can_grow:
            return
        if self._kind == "thread":
            self._pool.executor._max_workers += more
        else:
            self._pool.grow(more)
        self.grown += more

    def slots(self, autoscaler: Any = None) -> int:
        """Those of the pool itself, as it is now.

        Args:
            autoscaler: The worker's; its pool grows to its most when messages come, so all of that counts.
        """
        if autoscaler is not None and hasattr(self._pool, "grow"):
            return int(autoscaler.max_concurrency)
        shown = int(self._pool.num_processes)
        return shown - self.grown if self._kind in GREEN else shown  # these count what they have grown by
