"""How many calls can a pool run?"""

from __future__ import annotations

from celery.concurrency.prefork import TaskPool as Prefork
from celery.concurrency.thread import TaskPool as Threads

from ratelimit_worker.worker.spare import Spare


def test_slots_of_a_pool_that_has_stopped() -> None:
    """A worker still beats while it waits for its last calls: a prefork pool that has ended has no slots then."""
    pool = Prefork(2)
    pool.start()
    try:
        assert Spare(pool).slots() == 2
    finally:
        pool.stop()
    assert Spare(pool).slots() == 0


def test_slots_of_threads() -> None:
    """Without what the pool has grown by for lent calls."""
    pool = Threads(3)
    try:
        spare = Spare(pool)
        spare.ensure(5)
        assert spare.grown == 5
        assert spare.slots() == 3
    finally:
        pool.stop()
