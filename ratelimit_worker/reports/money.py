"""What was spent, saved and lost, by lane, model, function, context and tenant. Pure: sums in, figures out.

All amounts are billionths of a dollar, added up as whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from ratelimit_worker.calls import Attempt, Outcome, PriceSource
from ratelimit_worker.contracts.rollup import Cell, Series
from ratelimit_worker.contracts.sums import Spent
from ratelimit_worker.policy.rollup import outcomes

MOST_GROUPS = 1_000  #: most groups of a kind with figures of their own; the rest is added up under OTHERS
OTHERS = "(others)"
NANO = 1_000_000_000  #: billionths in a dollar
_CENT = NANO // 100


class Spend(Struct, frozen=True, kw_only=True):
    """What some attempts cost; billionths of a dollar."""

    attempts: int = 0
    cost_nanousd: int = 0  #: of all attempts, including those whose worker died
    wasted_nanousd: int = 0  #: part of the cost: attempts that were charged, but not answered
    #: part of the cost: not stated by anybody, estimated from what such attempts usually cost
    estimated_nanousd: int = 0
    cached_saving_nanousd: int = 0  #: the provider's discount for cached input
    lost_attempts: int = 0  #: attempts whose worker died: they have no row
    unpriced_attempts: int = 0  #: attempts that used tokens without a known price
    unpriced_models: tuple[str, ...] = ()  #: their models

    @property
    def is_known(self) -> bool:
        """Whether there is anything to say about money: a cost, or models without a price."""
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


class Spender(Struct, frozen=True, kw_only=True):
    """A lane, model, function, context or tenant."""

    name: str
    spend: Spend


class Money(Struct, frozen=True, kw_only=True):
    """All costs of a window; groups with most cost first."""

    total: Spend = NOTHING
    lanes: tuple[Spender, ...] = ()
    models: tuple[Spender, ...] = ()
    functions: tuple[Spender, ...] = ()
    contexts: tuple[Spender, ...] = ()
    tenants: tuple[Spender, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether there is anything to say about money: a cost, or models without a price."""
        return self.total.is_known

    def by(self, kind: str) -> tuple[Spender, ...]:
        """The groups by a field of `contracts.rollup.Series`."""
        groups = {
            "lane": self.lanes,
            "model": self.models,
            "task": self.functions,
            "context": self.contexts,
            "tenant": self.tenants,
        }
        return groups[kind]


def money(rows: Iterable[Spent]) -> Money:
    """The costs from sums by series, in total and by group."""
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


def spent_of_cell(series: Series, cell: Cell) -> Iterator[Spent]:
    """The costs in a cell: one item for answered attempts, one for the others; none if it holds no attempts."""
    if not cell.outcomes:
        return
    answered, attempts = outcomes(cell)[Outcome.ANSWERED], sum(cell.outcomes.values())
    sums = (cell.estimated_nanousd, cell.saved_nanousd, cell.lost_attempts, cell.lost_nanousd, cell.unpriced)
    yield Spent(*series, Outcome.ANSWERED, answered, cell.cost_nanousd - cell.wasted_nanousd, *sums)
    if attempts > answered or cell.wasted_nanousd:
        yield Spent(*series, Outcome.FAILED, attempts - answered, cell.wasted_nanousd, 0, 0, 0, 0, 0)


def spent_of_call(attempts: Iterable[Attempt]) -> Spend:
    """What these attempts cost together."""
    return money(
        Spent(
            lane=one.lane,
            task=one.task,
            context=one.context,
            tenant=one.tenant,
            model=one.model,
            outcome=one.outcome,
            attempts=1,
            cost_nanousd=one.cost_nanousd or 0,
            estimated_nanousd=one.cost_nanousd or 0 if one.price_source is PriceSource.ESTIMATED else 0,
            cached_saving_nanousd=one.cached_saving_nanousd or 0,
            lost_attempts=one.lost_attempts or 0,
            lost_nanousd=one.lost_nanousd or 0,
            unpriced=int(one.cost_nanousd is None and bool(one.input_tokens or one.output_tokens)),
        )
        for one in attempts
    ).total


def dollars(nanousd: int | None) -> str:
    """ "$1,234.50", "$0.0021": to the cent, or to two significant digits if that is too coarse; "-" for None."""
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
    """ "+ 3 models without a price"; "" if all have one."""
    many = len(spend.unpriced_models)
    return "" if not many else f"+ {many} model{'s' if many > 1 else ''} without a price"


def amount(spend: Spend) -> str:
    """A cost for a cell of a table: "$1.20", "no price", or "$1.20 + unpriced" if it leaves attempts out."""
    if not spend.unpriced_attempts:
        return dollars(spend.cost_nanousd)
    return f"{dollars(spend.cost_nanousd)} + unpriced" if spend.cost_nanousd else "no price"


def in_total(spend: Spend) -> str:
    """A total with the models that it leaves out: "$1.20 + 3 models without a price"."""
    return " ".join(part for part in (dollars(spend.cost_nanousd), without_price(spend)) if part)


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
