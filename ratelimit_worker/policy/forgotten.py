"""Has Redis forgotten a call? It was there, it is there no more, and nobody has its answer.

That a call is not there says nothing by itself: the last of a chain is not, until those before it are done. And a look
that comes just after Redis' return says little: a worker that runs the call has yet to say so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

SURE_S = 6.0  #: a call is away for so long before it counts as forgotten; workers beat once a second
MOST_SEEN = 10_000  #: calls that one process remembers to have been there


class Seen:
    """Calls that were there, as far as this process knows: those that it made, and those that it saw.

    Args:
        most: How many are remembered; the oldest go.
    """

    def __init__(self, most: int = MOST_SEEN) -> None:
        self._most = most
        self._seen: OrderedDict[str, object] = OrderedDict()
        self._since: dict[str, float] = {}  #: when a call was first found to be away, seconds

    def there(self, call_id: str, what: object = None) -> None:
        """A call is there. `what` is kept of it."""
        if what is not None or call_id not in self._seen:
            self._seen[call_id] = what
        self._since.pop(call_id, None)
        while len(self._seen) > self._most:
            old, _ = self._seen.popitem(last=False)
            self._since.pop(old, None)

    def what(self, call_id: str) -> object:
        """What is kept of a call; None: nothing."""
        return self._seen.get(call_id)

    def made_last(self) -> str | None:
        """The last call of which something is kept; None: there is none."""
        return next((call_id for call_id, what in reversed(self._seen.items()) if what is not None), None)

    def away(self) -> str | None:
        """One that was away at the last look; None: none was."""
        return next(iter(self._since), None)

    def look(self, known: Mapping[str, bool], now_s: float) -> set[str]:
        """Take in what Redis knows now → the calls that it has forgotten, unless somebody has their answer."""
        gone: set[str] = set()
        for call_id, there in known.items():
            if there:
                self.there(call_id)
            elif call_id in self._seen and now_s - self._since.setdefault(call_id, now_s) >= SURE_S:
                gone.add(call_id)
        return gone

    def others(self, known: Mapping[str, bool]) -> list[str]:
        """The other calls that were there, where one of those that were just looked for is away; else none.

        The later calls of a chain are not there either, but never were: they say nothing.
        """
        if not any(call_id in self._seen for call_id, there in known.items() if not there):
            return []
        return [call_id for call_id in self._seen if call_id not in known]

    def blind(self) -> None:
        """Redis could not be asked: what was away may be there again."""
        self._since.clear()

    def forget(self, call_ids: Iterable[str]) -> None:
        """These are over."""
        for call_id in call_ids:
            self._seen.pop(call_id, None)
            self._since.pop(call_id, None)


def lost_with(
    before: Sequence[Sequence[str]], gone: set[str], known: Mapping[str, bool], answered: set[str]
) -> str | None:
    """Which forgotten call keeps one from ever being made that comes after it in a canvas; None: none does.

    Args:
        before: The steps before it, the nearest first; a group is one step.
        known, answered: Calls that are there, and those whose answer is.
    """
    for step in before:
        for call_id in step:
            if call_id in gone and call_id not in answered:
                return call_id
        if any(known.get(call_id) or call_id in answered for call_id in step):
            return None  # it goes on from here
    return None
