"""Can a worker run more calls at once than it has slots? While it lends some, its pool grows by as many.

threads: by a thread each. gevent: by a greenlet each. prefork: no, a process is dear, and can be killed instead. solo:
no, there is one thread. Pools do not shrink again: idle threads cost next to nothing, and there are at most as many as
slots.
"""

from __future__ import annotations

from typing import Any


class Spare:
    """Room in a pool beyond its slots."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._kind = type(pool).__module__.rpartition(".")[2]
        self.grown = 0  #: by so many

    @property
    def can_grow(self) -> bool:
        """Whether one more is cheap."""
        return self._kind in {"thread", "gevent"}

    @property
    def can_kill(self) -> bool:
        """Whether a job that never ends can be ended from outside."""
        return self._kind in {"gevent", "prefork"}

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
            self._pool.executor._max_workers += more  # a new thread starts when a job comes and none is idle
        else:
            self._pool.grow(more)
        self.grown += more

    def slots(self) -> int:
        """Those of the pool itself."""
        shown = int(self._pool.num_processes or 0)
        return shown - self.grown if self._kind == "gevent" else shown  # gevent counts what it has grown by
