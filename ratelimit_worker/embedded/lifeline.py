"""By which descriptors do others see that this process lives?

The write end of a watcher's pipe, and the lock of a state folder: who holds one is alive, and the kernel closes them at
any death. No child may hold them on. They close at exec by themselves; at a bare fork, here.
"""

from __future__ import annotations

import os

_held: set[int] = set()


def hold(fd: int) -> None:
    """Count this descriptor among those that end with this process and are in no child of it."""
    _held.add(fd)


def close(fd: int) -> None:
    """Close it, unless that was done: here before, or because this is a child."""
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_all)
