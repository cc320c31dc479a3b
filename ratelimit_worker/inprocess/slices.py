"""How do ten thousand coroutines begin without holding up their event loop? A few in each of its turns.

A loop runs all that is ready before it looks at timers and sockets again, and to begin a call (its plan, its
fingerprint) takes some 0.2 ms. So calls beyond the first few of a turn begin in one of the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

AT_ONCE = 8  #: calls that begin in one turn of a loop


class Slices:
    """The coroutines of one loop that wait to begin, in order. It keeps no reference to the loop (see `_slices`)."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._asked = False  #: `_next` is scheduled for the loop's next turn

    async def turn(self) -> None:
        """Return when this coroutine may begin."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            self._asked = True
            loop.call_soon(self._next)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        mine: asyncio.Future[None] = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _next(self) -> None:
        self._left = AT_ONCE
        while self._left > 0 and self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # else it was cancelled
                first.set_result(None)
                self._left -= 1
        self._asked = self._left < AT_ONCE
        if self._asked:
            asyncio.get_running_loop().call_soon(self._next)


_slices: WeakKeyDictionary[asyncio.AbstractEventLoop, Slices] = WeakKeyDictionary()


async def turn_to_begin() -> None:
    """Return when this coroutine may begin its call: at once, unless many others of its loop do."""
    loop = asyncio.get_running_loop()
    mine = _slices.get(loop)
    if mine is None:
        mine = _slices[loop] = Slices()
    await mine.turn()
