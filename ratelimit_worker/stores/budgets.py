"""What may be spent, and what was? The budgets of tenants, contexts and all calls, and what was spent of any budget.

Budgets of lanes are among the lanes' limits (`stores.lanes`). Methods raise redis-py's errors, except where they say
otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from redis import Redis

from ratelimit_worker.contracts.budget import LANE, NOTHING_SPENT, Budget, Charge, Spent
from ratelimit_worker.contracts.call import US
from ratelimit_worker.contracts.lane import Told
from ratelimit_worker.policy.budget import Standing, standing
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors
from ratelimit_worker.stores.scripts import Scripts

log = logging.getLogger(__name__)

_CHARGED_AT_ONCE = 100  #: attempts in one script, so that other clients wait for a few milliseconds at most


class Budgets:
    """All budgets of one Redis server.

    Args:
        time_us: As of `Scripts`.
    """

    def __init__(self, client: Redis, time_us: int = 0) -> None:
        self._client = client
        self.run = Scripts(client, time_us)

    def read(self) -> dict[str, Budget]:
        """All budgets except those of lanes, by name."""
        raw: Any = self._client.hgetall(keys.BUDGETS)
        return {name.decode(): budget for name, value in raw.items() if (budget := _read(value)) is not None}

    def set(self, budgets: Mapping[str, Budget | None]) -> None:
        """Set budgets by name (None: delete it), from the next call on; calls that wait for one go on if they can."""
        gone = [name for name, budget in budgets.items() if budget is None]
        told: Any = {name: budget.encode() for name, budget in budgets.items() if budget is not None}
        with self._client.pipeline(transaction=True) as pipe:
            if gone:
                pipe.hdel(keys.BUDGETS, *gone)
            if told:
                pipe.hset(keys.BUDGETS, mapping=told)
            pipe.execute()
        self.fund(budgets)

    def spent(self, names: Iterable[str]) -> dict[str, Spent]:
        """What was spent of each of these budgets, by name."""
        wanted = list(names)
        with self._client.pipeline(transaction=False) as pipe:
            for name in wanted:
                pipe.hgetall(keys.spent(name))
            found = pipe.execute()
        return {name: _spent(name, fields) for name, fields in zip(wanted, found, strict=True)}

    def standing(self, lanes: Mapping[str, Told], at_s: float) -> tuple[Standing, ...]:
        """How budgets stand: those of these lanes, and all that are not of a lane.

        Args:
            lanes: What a person set for lanes, by name; lanes without a budget are ignored.
            at_s: Now, seconds since the epoch, Redis clock.
        """
        told = self.read()
        bounded = {f"{LANE}{name}": Budget.of_lane(one.limits, one.day_steps) for name, one in lanes.items()}
        told |= {name: budget for name, budget in bounded.items() if budget.bounds}
        if not told:
            return ()
        spent, waiting = self.spent(told), self.waiting(told)
        return tuple(standing(name, told[name], spent[name], at_s, waiting[name]) for name in sorted(told))

    def fund(self, names: Iterable[str]) -> int:
        """Let lanes and calls go on that wait for one of these budgets, if it has money again → how many did."""
        wanted = list(names)
        return sum(self.run("fund", wanted)) if wanted else 0

    def charge(self, charges: Sequence[Charge]) -> None:
        """Count the cost of attempts whose price was not known when they ended.

        Raises:
            StoreUnavailable: Redis is away.
        """
        with redis_errors():
            for first in range(0, len(charges), _CHARGED_AT_ONCE):
                args: list[Any] = []
                for one in charges[first : first + _CHARGED_AT_ONCE]:
                    args += (one.lane, one.tenant, one.context, one.nanousd, int(one.at_s * US))
                self.run("charge", args)

    def backfill(self, spent: Mapping[str, Spent]) -> None:
        """Count what was spent in the present day and month before a budget was set, if Redis knows of less. May be
        repeated."""
        args: list[Any] = []
        for name, one in spent.items():
            args += (name, one.day, one.day_nanousd, one.month, one.month_nanousd)
        if args:
            self.run("backfill", args)

    def waiting(self, names: Iterable[str]) -> dict[str, int]:
        """How many wait for each budget, by name: lanes, or single calls of a tenant or a context."""
        wanted = list(names)
        with self._client.pipeline(transaction=False) as pipe:
            for name in wanted:
                pipe.zcard(keys.unfunded(name))
            return dict(zip(wanted, map(int, pipe.execute()), strict=True))


def _read(raw: bytes) -> Budget | None:
    try:
        return Budget.decode(raw)
    except msgspec.MsgspecError:
        log.warning("budget.unreadable")
        return None


def _spent(name: str, fields: Mapping[bytes, bytes]) -> Spent:
    try:
        return Spent.decode(fields)
    except (KeyError, ValueError):
        log.warning("budget.spent_unreadable name=%s", name, extra={"budget": name})
        return NOTHING_SPENT
