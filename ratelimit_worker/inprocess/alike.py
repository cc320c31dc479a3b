"""What do calls in process have in common that have one name and equal options? It is decided once for all of them.

Options and the frame of a plan are checked and made from some twenty values, which takes longer than the rest of a
call's plan. Most programs make their calls with the same few sets of options.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from msgspec import Struct, structs

from ratelimit_worker.calls import Priority
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.plan import Sender, Shedding
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.flow.call.execute import Executor
from ratelimit_worker.inprocess.options import Options
from ratelimit_worker.inprocess.sharing import check_key

MOST = 1_000  #: most sets of options, and most of their lanes, that a process keeps; beyond that it begins anew

#: Types of options by which two sets can be compared. Functions are not kept, nor what they close over.
_PLAIN = frozenset((str, int, float, bool, NoneType, Priority))


class Alike(Struct, frozen=True, eq=False):
    """Calls of one name with equal options.

    Args:
        kept: Later calls get this object, too.
    """

    name: str
    how: Options
    kept: bool = False


class InLane(Struct):
    """What such calls have in common in one lane.

    Args:
        frame: Of their plans.
        shared, unshared: Makes the attempts at calls that share answers, and at others; None: not made yet.
    """

    frame: enqueue.Frame
    shared: Executor | None = None
    unshared: Executor | None = None

    @classmethod
    def of(cls, alike: Alike, lane: str, settings: Settings) -> InLane:
        """Decide it, for calls in this lane.

        Raises:
            BadInput: an option is invalid.
        """
        check_key(alike.how.cache_key)
        said = alike.how.said
        kind = enqueue.Kind(task=alike.name, lane=lane)
        made = enqueue.frame(kind, settings, said, enqueue.lane_of(kind, said.lane, {}))
        plan = structs.replace(
            made.plan,
            sender=Sender.CALLER,
            shedding=None if made.plan.shedding is None else Shedding.RAISE,
            over_budget=None if made.plan.over_budget is None else Shedding.RAISE,
        )
        return cls(structs.replace(made, plan=plan))


class Sets:
    """The sets of options that a process has used. Any thread may ask."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Alike] = {}

    def of(self, name: str, context: str, options: Mapping[str, Any]) -> Alike:
        """What calls with this name and these options have in common.

        Raises:
            TypeError: there is no option of such a name.
        """
        key = _key(name, context, options)
        if key is None:
            return Alike(name, Options(context=context, **options))
        found = self._known.get(key)
        if found is None:
            found = Alike(name, Options(context=context, **options), kept=True)
            _keep(self._known, key, found)
        return found


class InLanes:
    """What calls have in common, by their options and lane, with the settings of one desk. Any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[Alike, str], InLane] = {}

    def of(self, alike: Alike, lane: str) -> InLane:
        """As `InLane.of`."""
        found = self._known.get((alike, lane)) if alike.kept else None
        if found is None:
            found = InLane.of(alike, lane, self._settings)
            if alike.kept:
                _keep(self._known, (alike, lane), found)
        return found


def _keep(known: dict[Any, Any], key: Any, made: Any) -> None:
    if len(known) >= MOST:
        known.clear()
    known[key] = made


def _key(name: str, context: str, options: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Equal for calls with equal options; None: they cannot be compared.

    With the types, since True is a number to Python and an error to us.
    """
    if type(context) is not str:
        return None
    key: list[Any] = [name, context]
    for option, value in options.items():
        kind = type(value)
        if kind is list or kind is tuple:
            if not all(type(one) is str for one in value):
                return None
            key += (option, kind, tuple(value))
        elif kind in _PLAIN:
            key += (option, kind, value)
        else:
            return None
    return tuple(key)
