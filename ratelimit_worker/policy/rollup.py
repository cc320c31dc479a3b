"""What an attempt adds to the sums of its minute. Pure; the recorder stores these sums together with the attempts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from ratelimit_worker.calls import Category, Outcome, PriceSource
from ratelimit_worker.contracts.rollup import HOUR_S, MINUTE_S, AnyCells, Cell, CellKey, Cells, Series
from ratelimit_worker.policy.histogram import bucket

#: How long cells of a length are kept, seconds. Minutes: the longest month and a day, so that a month of any time zone
#: can be summed to the minute until it ends; zones are not whole hours apart.
KEPT_S = {MINUTE_S: 32 * 86_400.0, HOUR_S: 2 * 365 * 86_400.0}
FIGURES_KEPT_S = max(KEPT_S.values())  #: how far back figures reach, seconds
K = TypeVar("K", int, str)
OTHERS = "(others)"  #: stands for groups beyond the bound


class Piece(NamedTuple):
    """A part of a window, and the source from which it is read."""

    span_s: int  #: cells of this length; 0: the attempts themselves
    since_s: float
    until_s: float


def pieces(since_s: float, until_s: float, *, finest_s: float, attempts_from_s: float, now_s: float) -> list[Piece]:
    """The parts of a window, oldest first: hours where possible, minutes around them, attempts at its ends.

    If the attempts at its beginning have been deleted, the window begins with the whole minute; if the minutes have
    too, with the whole hour.

    Args:
        finest_s: Length of the slices that are needed.
        attempts_from_s: Attempts that finished from this time on are still kept; inf: none.
    """
    whole = _up(since_s, MINUTE_S) if since_s >= attempts_from_s else _down(since_s, MINUTE_S)
    end = _down(until_s, MINUTE_S) if until_s >= attempts_from_s else _up(until_s, MINUTE_S)
    if whole > end:
        return [Piece(0, since_s, until_s)]
    found = [Piece(0, since_s, whole)] if whole > since_s else []
    hours_only_until = _up(now_s - KEPT_S[MINUTE_S], HOUR_S)
    begin = whole if whole >= hours_only_until else _down(whole, HOUR_S)
    first = _up(begin, HOUR_S)
    last = max(_down(end, HOUR_S) if finest_s >= HOUR_S else first, min(hours_only_until, _up(end, HOUR_S)))
    if first < last:
        inner = [Piece(MINUTE_S, begin, first), Piece(HOUR_S, first, last), Piece(MINUTE_S, last, end)]
    else:
        inner = [Piece(MINUTE_S, begin, end)]
    found += [piece for piece in inner if piece.since_s < piece.until_s]
    return [*found, Piece(0, end, until_s)] if end < until_s else found


def whole_minute(at_s: float) -> int:
    """The first minute that begins at or after this time; seconds since the epoch."""
    return _up(at_s, MINUTE_S)


def _up(at_s: float, span_s: int) -> int:
    return int(-(-at_s // span_s)) * span_s


def _down(at_s: float, span_s: int) -> int:
    return int(at_s // span_s) * span_s


class Recorded(Protocol):
    """The parts of an attempt that the sums need: of `calls.Attempt`, or of its row."""

    @property
    def number(self) -> int: ...
    @property
    def lane(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def context(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def outcome(self) -> Outcome: ...
    @property
    def category(self) -> Category | None: ...
    @property
    def status(self) -> int | None: ...
    @property
    def finished_at(self) -> float:
        """Seconds since the epoch."""
        ...

    @property
    def latency_s(self) -> float: ...
    @property
    def waited_s(self) -> float: ...
    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def cached_input_tokens(self) -> int | None: ...
    @property
    def cache_write_tokens(self) -> int | None: ...
    @property
    def reasoning_tokens(self) -> int | None: ...
    @property
    def cost_nanousd(self) -> int | None: ...
    @property
    def cached_saving_nanousd(self) -> int | None: ...
    @property
    def price_source(self) -> PriceSource | None: ...
    @property
    def lost_attempts(self) -> int | None: ...
    @property
    def lost_nanousd(self) -> int | None: ...


def add_call(cells: Cells, attempts: Sequence[Recorded], sign: int = 1) -> None:
    """Add the attempts at one call to the cells of their minutes, or subtract them (`sign` -1).

    Args:
        attempts: The known attempts, in the order of their numbers.
    """
    failed, before = False, None
    for one in attempts:
        backed_off = before is not None and before.number == one.number - 1 and before.outcome is Outcome.RETRIED
        add_attempt(cells, one, after_failure=failed, backed_off=backed_off, sign=sign)
        failed, before = failed or one.outcome is Outcome.RETRIED, one


def add_attempt(cells: Cells, one: Recorded, *, after_failure: bool, backed_off: bool, sign: int = 1) -> None:
    """Add one attempt.

    Args:
        after_failure: An earlier attempt at the same call has failed.
        backed_off: The previous attempt has failed, so the wait is backoff.
    """
    at_s = int(one.finished_at // MINUTE_S) * MINUTE_S
    key = CellKey(at_s, Series(one.lane, one.task, one.context, one.tenant, one.model or ""))
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = Cell()
    answered, category = one.outcome is Outcome.ANSWERED, one.category
    name = one.outcome.value if category is None else f"{one.outcome.value}:{category.value}"
    cell.outcomes[name] = cell.outcomes.get(name, 0) + sign
    if one.status == 429 or category is Category.RATE_LIMITED:
        cell.refused += sign
    _add_usage(cell, one, sign)
    index = bucket(one.waited_s)
    cell.waited[index] = cell.waited.get(index, 0) + sign
    if backed_off:
        cell.backoff_s += sign * one.waited_s
    if answered:
        latency_s = one.latency_s
        cell.latency_s += sign * latency_s
        cell.recovered += sign * after_failure
        index = bucket(latency_s)
        cell.latency[index] = cell.latency.get(index, 0) + sign
        if one.output_tokens:
            index = bucket(latency_s / one.output_tokens)
            cell.per_token[index] = cell.per_token.get(index, 0) + sign


def _add_usage(cell: Cell, one: Recorded, sign: int) -> None:
    if one.lost_attempts or one.lost_nanousd:
        cell.lost_attempts += sign * (one.lost_attempts or 0)
        cell.lost_nanousd += sign * (one.lost_nanousd or 0)
    if one.input_tokens or one.output_tokens:
        cell.input_tokens += sign * (one.input_tokens or 0)
        cell.output_tokens += sign * (one.output_tokens or 0)
        cell.cached_input_tokens += sign * (one.cached_input_tokens or 0)
        cell.cache_write_tokens += sign * (one.cache_write_tokens or 0)
        cell.reasoning_tokens += sign * (one.reasoning_tokens or 0)
        cell.saved_nanousd += sign * (one.cached_saving_nanousd or 0)
        cell.unpriced += sign * (one.cost_nanousd is None)
    if one.cost_nanousd is None:
        return
    cell.cost_nanousd += sign * one.cost_nanousd
    if one.price_source is PriceSource.ESTIMATED:
        cell.estimated_nanousd += sign * one.cost_nanousd
    if one.outcome is Outcome.ANSWERED:
        index = bucket(one.cost_nanousd * 1e-9)
        cell.cost[index] = cell.cost.get(index, 0) + sign
    else:
        cell.wasted_nanousd += sign * one.cost_nanousd


def merge(into: Cell, other: Cell) -> Cell:
    """Add the other cell to `into`, which is returned."""
    merge_window(into, other)
    _count(into.per_token, other.per_token)
    _count(into.cost, other.cost)
    return into


def merge_window(into: Cell, other: Cell) -> None:
    """Add what the figures of a window show: all except the histograms that only trends use (`per_token`, `cost`)."""
    merge_slice(into, other)
    _count(into.waited, other.waited)


def merge_slice(into: Cell, other: Cell) -> None:
    """Add what a point of a timeline shows: the same without `waited`. A report of a month does this for each hour of
    each series, and most of its time goes into histograms."""
    merge_sums(into, other)
    _count(into.latency, other.latency)


def merge_sums(into: Cell, other: Cell) -> None:
    """Add counts, tokens and money: all except the histograms."""
    _count(into.outcomes, other.outcomes)
    if other.reuse:
        _count(into.reuse, other.reuse)
    into.refused += other.refused
    into.latency_s += other.latency_s
    into.input_tokens += other.input_tokens
    into.output_tokens += other.output_tokens
    into.recovered += other.recovered
    into.backoff_s += other.backoff_s
    into.cached_input_tokens += other.cached_input_tokens
    into.cache_write_tokens += other.cache_write_tokens
    into.reasoning_tokens += other.reasoning_tokens
    into.cost_nanousd += other.cost_nanousd
    into.wasted_nanousd += other.wasted_nanousd
    into.saved_nanousd += other.saved_nanousd
    into.unpriced += other.unpriced
    into.estimated_nanousd += other.estimated_nanousd
    into.lost_attempts += other.lost_attempts
    into.lost_nanousd += other.lost_nanousd


def judged_together(cells: Sequence[Cell]) -> Cell:
    """The sum of some cells, with what trends are judged by and nothing else. A single one is returned as it is, since
    a report asks this for each minute of each lane, function, context, tenant and model."""
    if len(cells) == 1:
        return cells[0]
    found = Cell()
    for cell in cells:
        _count(found.outcomes, cell.outcomes)
        _count(found.latency, cell.latency)
        _count(found.per_token, cell.per_token)
        _count(found.cost, cell.cost)
    return found


def _count(into: dict[K, int], other: Mapping[K, int]) -> None:
    if not into:
        into.update(other)
        return
    known = into.get
    for name, count in other.items():
        into[name] = known(name, 0) + count


def tidy(cell: Cell) -> Cell:
    """Remove entries that became 0, in place; returns the cell."""
    cell.outcomes = _left(cell.outcomes)
    cell.latency, cell.waited = _left(cell.latency), _left(cell.waited)
    cell.per_token, cell.cost = _left(cell.per_token), _left(cell.cost)
    cell.reuse = _left(cell.reuse)
    return cell


def _left(counts: dict[K, int]) -> dict[K, int]:
    return counts if all(counts.values()) else {name: count for name, count in counts.items() if count}


def spent_nanousd(cell: Cell) -> int:
    """What all attempts cost, with those that ended with their worker; billionths of a dollar."""
    return cell.cost_nanousd + cell.lost_nanousd


def wasted_nanousd(cell: Cell) -> int:
    """The part of `spent_nanousd` for attempts that gave no answer."""
    return cell.wasted_nanousd + cell.lost_nanousd


_NO_OUTCOMES = dict.fromkeys(Outcome, 0)
_BY_VALUE = {outcome.value: outcome for outcome in Outcome}


def outcomes(cell: Cell) -> dict[Outcome, int]:
    """Attempts by outcome."""
    found = _NO_OUTCOMES.copy()
    for name, attempts in cell.outcomes.items():
        found[_BY_VALUE[name.partition(":")[0]]] += attempts
    return found


def total(cells: Iterable[Cell]) -> Cell:
    """The sum of all these cells."""
    found = Cell()
    for cell in cells:
        merge(found, cell)
    return found


def longer(cells: AnyCells, span_s: int) -> Cells:
    """The same sums in longer cells, of `span_s` seconds."""
    found: Cells = {}
    for (at_s, series), cell in cells.items():
        key = CellKey(at_s // span_s * span_s, series)
        if (known := found.get(key)) is None:
            known = found[key] = Cell()
        merge(known, cell)
    return found
