"""When does a call run alone in its process? When it may be what kills it: a readers–writer lock of the process.

Calls share the process; one that has one loss left (`begin` says `alone`) has it for itself, so that what kills the
process then is that call, and takes nobody along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_WAIT_S = 600.0  #: for those that run beside it to end: then it runs in company, rather than never


class Quarantine:
    """Shared by many, or one's alone. Who wants it alone goes before those that come later."""

    def __init__(self, most_wait_s: float = MOST_WAIT_S) -> None:
        self.most_wait_s = most_wait_s
        self.tell: Callable[[], object] = (
            bool  #: whoever counts the slots of this process: there are none, or again all
        )
        self._changed = threading.Condition()
        self._sharing = 0
        self._taken = False

    @property
    def taken(self) -> bool:
        """Whether a call has the process for itself, or waits for that: no other begins here."""
        return self._taken

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """Beside others → whether that may be: False while one is alone, or wants to be.

        Nobody waits for that here: whoever waits beside a call that kills the process waits for a lease, too.
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
        """Beside nobody: waits until those that run here have ended, at most `most_wait_s`."""
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


#: Of this process. A forked child has a copy; it runs one call at a time.
QUARANTINE = Quarantine()
