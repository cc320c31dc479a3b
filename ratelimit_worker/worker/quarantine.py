"""A call that may kill its process runs alone in it, by a readers–writer lock of the process.

Calls share the process. A call that would be given up after one more loss (`begin` returns `alone`) gets it for itself:
if the process dies then, it was that call, and no other is lost with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_WAIT_S = 600.0  #: longest wait for the other calls to end; then it runs beside them, rather than never


class Quarantine:
    """Shared by many, or held by one. A call that wants to be alone goes before those that come later."""

    def __init__(self, most_wait_s: float = MOST_WAIT_S) -> None:
        self.most_wait_s = most_wait_s
        self.tell: Callable[[], object] = bool  #: called when the process has no slots, or all of them again
        self._changed = threading.Condition()
        self._sharing = 0
        self._taken = False

    @property
    def taken(self) -> bool:
        """Whether a call has the process for itself, or waits for that, so that no other may begin."""
        return self._taken

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """Run beside others → False: not possible, since one is alone, or wants to be.

        A call does not wait here: if the other one kills the process, this call would be lost with it.
        """
        with self._changed:
            if self._taken:
                may_run = False
            else:
                self._sharing += 1
                may_run = True
        if not may_run:
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run alone: wait until the other calls have ended, at most `most_wait_s`."""
        with self._changed:
            while self._taken:
                self._changed.wait()
            self._taken = True
        try:
            self.tell()
            with self._changed:
                self._changed.wait_for(lambda: not self._sharing, self.most_wait_s)
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
            self.tell()


#: The lock of this process. A forked child has a copy; it runs one call at a time.
QUARANTINE = Quarantine()
