"""Has Redis forgotten a call? It was there, it is not there any more, and there is no answer.

A missing call need not be forgotten: the last call of a chain does not exist until those before it are done. And just
after Redis has come back, a worker that runs the call may not have reported it yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

SURE_S = 6.0  #: how long a call must be missing to count as forgotten; workers report once a second
MOST_SEEN = 10_000  #: calls that one process remembers to have been there


class Seen:
    """Calls that Redis had, as far as this process knows: those that it made, and those that it has seen there.

    Args:
        most: How many are remembered; the oldest are dropped.
    """

    def __init__(self, most: int = MOST_SEEN) -> None:
        self._most = most
        self._seen: OrderedDict[str, object] = OrderedDict()
        self._since: dict[str, float] = {}  #: when a call was first found missing, seconds

    def there(self, call_id: str, what: object = None) -> None:
        """Note that Redis has a call; `what` is kept with it."""
        if what is not None or call_id not in self._seen:
            self._seen[call_id] = what
        self._since.pop(call_id, None)
        while len(self._seen) > self._most:
            old, _ = self._seen.popitem(last=False)
            self._since.pop(old, None)

    def what(self, call_id: str) -> object:
        """What is kept with a call; None: nothing."""
        return self._seen.get(call_id)

    def made_last(self) -> str | None:
        """The newest call with which something is kept, as this process does for calls that it makes; None: none."""
        return next((call_id for call_id, what in reversed(self._seen.items()) if what is not None), None)

    def away(self) -> str | None:
        """A call that was missing at the last look; None: none was."""
        return next(iter(self._since), None)

    def look(self, known: Mapping[str, bool], now_s: float) -> set[str]:
        """Note which calls Redis has now. Returns those that it has forgotten, unless there is an answer somewhere.

        Args:
            known: Call id → whether Redis has the call.
            now_s: Seconds of any clock that only goes forward.
        """
        gone: set[str] = set()
        for call_id, there in known.items():
            if there:
                self.there(call_id)
            elif call_id in self._seen and now_s - self._since.setdefault(call_id, now_s) >= SURE_S:
                gone.add(call_id)
        return gone

    def others(self, known: Mapping[str, bool]) -> list[str]:
        """The other calls that were there, if one that was just looked for is missing; else none.

        Later calls of a chain are left out: they are not there, but never were.
        """
        if not any(call_id in self._seen for call_id, there in known.items() if not there):
            return []
        return [call_id for call_id in self._seen if call_id not in known]

    def blind(self) -> None:
        """Redis could not be asked: the time for which calls have been missing is counted anew."""
        self._since.clear()

    def forget(self, call_ids: Iterable[str]) -> None:
        """Forget calls that have ended."""
        for call_id in call_ids:
            self._seen.pop(call_id, None)
            self._since.pop(call_id, None)


def lost_with(
    before: Sequence[Sequence[str]], gone: set[str], known: Mapping[str, bool], answered: set[str]
) -> str | None:
    """Which forgotten call keeps a later call of its canvas from ever being made; None: none does.

    Args:
        before: The steps before that call, the nearest first; a group is one step.
        known, answered: Calls that are there, and calls whose answers are.
    """
    for step in before:
        for call_id in step:
            if call_id in gone and call_id not in answered:
                return call_id
        if any(known.get(call_id) or call_id in answered for call_id in step):
            return None  # the canvas goes on from here
    return None
