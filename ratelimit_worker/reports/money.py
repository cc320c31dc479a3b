"""What was spent, saved and lost? By lane, model, function, context and tenant. Pure: sums in, figures out.

All amounts are billionths of a dollar, added up as whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ratelimit_worker.calls import Outcome
from ratelimit_worker.stores.queries import Spent

MOST_GROUPS = 1_000  #: that have figures of their own; what comes beyond is added up under OTHERS
OTHERS = "(others)"
NANO = 1_000_000_000  #: in a dollar
_CENT = NANO // 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What some attempts cost; billionths of a dollar."""

    attempts: int = 0
    cost_nanousd: int = 0  #: of all of them, and of those that were lost with their workers
    wasted_nanousd: int = 0  #: of these: charged, and not answered
    estimated_nanousd: int = 0  #: of these: nobody told, taken from what such attempts cost
    cached_saving_nanousd: int = 0  #: what the provider's discount for cached input came to
    lost_attempts: int = 0  #: whose worker died: no row tells of them
    unpriced_attempts: int = 0  #: that used tokens at a price that nobody knows
    unpriced_models: tuple[str, ...] = ()  #: of these

    @property
    def is_known(self) -> bool:
        """Whether anything is known of money, or missing of it."""
        return bool(self.cost_nanousd or self.unpriced_models)

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            attempts=self.attempts + other.attempts,
            cost_nanousd=self.cost_nanousd + other.cost_nanousd,
            wasted_nanousd=self.wasted_nanousd + other.wasted_nanousd,
            estimated_nanousd=self.estimated_nanousd + other.estimated_nanousd,
            cached_saving_nanousd=self.cached_saving_nanousd + other.cached_saving_nanousd,
            lost_attempts=self.lost_attempts + other.lost_attempts,
            unpriced_attempts=self.unpriced_attempts + other.unpriced_attempts,
            unpriced_models=tuple(sorted({*self.unpriced_models, *other.unpriced_models})),
        )


NOTHING = Spend()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spender:
    """A lane, model, function, context or tenant."""

    name: str
    spend: Spend


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """All of a window; groups with most cost first."""

    total: Spend = NOTHING
    lanes: tuple[Spender, ...] = ()
    models: tuple[Spender, ...] = ()
    functions: tuple[Spender, ...] = ()
    contexts: tuple[Spender, ...] = ()
    tenants: tuple[Spender, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether anything is known of money, or missing of it."""
        return self.total.is_known


def money(rows: Iterable[Spent]) -> Money:
    """The figures of some sums."""
    groups: dict[str, dict[str, Spend]] = {kind: {} for kind in ("lane", "model", "task", "context", "tenant")}
    total = NOTHING
    for row in rows:
        spend = _spend(row)
        total += spend
        for kind, of in groups.items():
            name = getattr(row, kind) or ""
            if name not in of and len(of) >= MOST_GROUPS:
                name = OTHERS
            of[name] = of.get(name, NOTHING) + spend
    return Money(
        total=total,
        lanes=_spenders(groups["lane"]),
        models=_spenders(groups["model"]),
        functions=_spenders(groups["task"]),
        contexts=_spenders(groups["context"]),
        tenants=_spenders(groups["tenant"]),
    )


def dollars(nanousd: int | None) -> str:
    """ "$1,234.50", "$0.0021": cents, or where these say too little two digits that do."""
    if nanousd is None:
        return "-"
    if nanousd == 0 or nanousd >= 10 * _CENT:
        whole, cents = divmod((nanousd + _CENT // 2) // _CENT, 100)
        return f"${whole:,}.{cents:02}"
    digits = 4
    while digits < 9 and nanousd * 10**digits < 10 * NANO:
        digits += 1
    step = 10 ** (9 - digits)
    shown = (nanousd + step // 2) // step
    return f"$0.{shown:0{digits}}"


def without_price(spend: Spend) -> str:
    """ "+ 3 models without a price"; "" where all have one."""
    many = len(spend.unpriced_models)
    return "" if not many else f"+ {many} model{'s' if many > 1 else ''} without a price"


def spend_sentence(spend: Spend) -> str:
    """A total in words."""
    parts = [dollars(spend.cost_nanousd)]
    if spend.wasted_nanousd:
        parts.append(f"{dollars(spend.wasted_nanousd)} of it for attempts that gave no answer")
    if spend.estimated_nanousd:
        parts.append(f"{dollars(spend.estimated_nanousd)} of it estimated")
    if spend.cached_saving_nanousd:
        parts.append(f"{dollars(spend.cached_saving_nanousd)} saved by cached input")
    if spend.unpriced_models:
        parts.append(without_price(spend))
    return ", ".join(parts)


def _spend(row: Spent) -> Spend:
    wasted = row.cost_nanousd if row.outcome is not Outcome.ANSWERED else 0
    return Spend(
        attempts=row.attempts,
        cost_nanousd=row.cost_nanousd + row.lost_nanousd,
        wasted_nanousd=wasted + row.lost_nanousd,
        estimated_nanousd=row.estimated_nanousd + row.lost_nanousd,
        cached_saving_nanousd=row.cached_saving_nanousd,
        lost_attempts=row.lost_attempts,
        unpriced_attempts=row.unpriced,
        unpriced_models=(row.model or "(unknown)",) if row.unpriced else (),
    )


def _spenders(of: dict[str, Spend]) -> tuple[Spender, ...]:
    found = [Spender(name=name, spend=spend) for name, spend in of.items()]
    return tuple(sorted(found, key=lambda one: (-one.spend.cost_nanousd, one.name)))
