"""File descriptors by which others see that this process is alive.

They are the write end of a watcher's pipe, and the lock of a state folder: while one is open, its process is alive, and
the kernel closes it however the process ends. No child may keep them open: at exec they close by themselves, and after
a fork without exec they are closed here.
"""

from __future__ import annotations

import os

_held: set[int] = set()


def hold(fd: int) -> None:
    """Register a descriptor that ends with this process and is closed in its children."""
    _held.add(fd)


def close(fd: int) -> None:
    """Close it, unless it is closed already: here before, or because this is a child."""
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_all)
