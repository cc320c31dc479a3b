"""What may be spent, and what was? Budgets of money as Redis holds them: one codec for scripts, commands and pages.

A budget is named after what it bounds: `all`, `lane:L`, `tenant:T`, `context:C`. Those of lanes are among their limits
(`contracts.lane`), all others in the hash `rlw:budgets`. What was spent of each is in `rlw:spent:NAME`, which only
scripts write (stores/lua/shared/purse.lua).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ratelimit_worker.calls import LaneLimits

ALL = "all"
LANE, TENANT, CONTEXT = "lane:", "tenant:", "context:"
NANO = 1_000_000_000  #: billionths of a dollar in one


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be spent, in dollars; None: no bound."""

    usd_per_day: float | None = None
    usd_per_month: float | None = None
    zone: str = ""  #: where day and month end: "America/Los_Angeles", "-08:00"; "": UTC
    steps: tuple[int, ...] = ()  #: the zone's changes (`policy.day.steps`)
    configured: bool = False  #: it is from MAISD_BUDGETS, and no person has changed it since

    @property
    def bounds(self) -> bool:
        """Whether it bounds anything."""
        return self.usd_per_day is not None or self.usd_per_month is not None

    def encode(self) -> bytes:
        """As `rlw:budgets` holds it."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, raw: bytes) -> Budget:
        """Decode one value of `rlw:budgets`.

        Raises:
            msgspec.MsgspecError: it is not a budget.
        """
        return _decode(raw)

    @classmethod
    def of_lane(cls, limits: LaneLimits, steps: tuple[int, ...]) -> Budget:
        """The budget among a lane's limits."""
        return cls(
            usd_per_day=limits.usd_per_day, usd_per_month=limits.usd_per_month, zone=limits.day_zone or "", steps=steps
        )


_decode = msgspec.json.Decoder(Budget).decode


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent of a budget, billionths of a dollar; the expected cost of calls that are out is included."""

    day: int = -1  #: the day of `day_nanousd` in the budget's zone, days since the epoch
    day_nanousd: int = 0
    month: int = -1  #: the month of `month_nanousd`, months since the year 0 (`policy.day.month`)
    month_nanousd: int = 0
    mean_nanousd: int = 0  #: what a call usually costs

    @classmethod
    def decode(cls, fields: Mapping[bytes, bytes]) -> Spent:
        """Decode `rlw:spent:NAME`; an empty hash: nothing was spent.

        Raises:
            ValueError: a field that should be a number is not.
            KeyError: a field is missing.
        """
        if not fields:
            return NOTHING_SPENT
        return cls(
            day=int(fields[b"day"]),
            day_nanousd=int(fields[b"day_spent"]),
            month=int(fields[b"month"]),
            month_nanousd=int(fields[b"month_spent"]),
            mean_nanousd=int(fields[b"mean"]),
        )


NOTHING_SPENT = Spent()


class Charge(NamedTuple):
    """The cost of an attempt that became known only after the attempt had ended."""

    lane: str
    tenant: str
    context: str
    nanousd: int
    at_s: float  #: when it was made, seconds since the epoch
