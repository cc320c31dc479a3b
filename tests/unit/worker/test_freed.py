"""What is freed before its ack: is it known across a fork, and nothing else taken for it?"""

from __future__ import annotations

import os

from ratelimit_worker.worker.freed import PLACES, Freed


def test_a_child_tells_its_parent() -> None:
    """What a forked process adds, the one that forked it takes, once."""
    freed = Freed()
    child = os.fork()
    if child == 0:
        freed.add("call.7")
        os._exit(0)
    os.waitpid(child, 0)
    assert freed.take("call.7")
    assert not freed.take("call.7")


def test_no_other_call_is_taken_for_it() -> None:
    """Neither the same number after a server was flushed, nor a tag that shares its place, nor one without a number."""
    freed = Freed()
    freed.add("call.7")
    assert not freed.take("other.7")
    assert not freed.take(f"call.{7 + PLACES}")
    assert not freed.take("call")
    assert freed.take("call.7")


def test_what_is_overwritten_is_forgotten() -> None:
    """Its message is acknowledged once more."""
    freed = Freed()
    freed.add("call.7")
    freed.add(f"call.{7 + PLACES}")
    assert not freed.take("call.7")
    assert freed.take(f"call.{7 + PLACES}")
