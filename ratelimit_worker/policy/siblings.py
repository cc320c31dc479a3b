"""Do two lanes use the same budget of their provider, and how is it divided?

Two models of one key, or two names of one model, are two lanes, but a provider may count them together. Headers show
it: both lanes see the same limit, and the units that others send are missing from a lane's refill. Without this module,
the lane that came first would keep nearly all: the other measures the little that is left, and goes at that pace.

Lanes that are found to share a budget get max-min fair shares of the limit (Bertsekas and Gallager, Data Networks,
6.5.2): a lane that needs less than an equal part leaves the rest to the others.

Pure: the lanes' figures and the time in, shares out. The tuner keeps `Siblings`; a new tuner learns it within seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

RATE_S = 4.0  #: rates are measured over about so many seconds
LATE_S = 15.0  #: a lane without news for this long needs nothing, seconds
#: Shares of the limit: others' rates below the first show nothing; above the second, they must be missing from the
#: refill.
LITTLE, MUCH = 0.05, 0.2
LEAST = 0.05  #: share of the limit that a lane always has, so that it can begin to need more
#: If more lanes than this may share a budget, they are judged only every so many seconds, since each counts for little.
LARGE, LARGE_S = 8, 1.0
EXPLAINED = 0.5  #: share of the others' rate that must be missing from a lane's refill to conclude that they share
WANTING = 0.8  #: a lane that sends this part of its pace asks for more


class Counted(Struct, frozen=True, kw_only=True):
    """One dimension of a lane, according to the provider's headers."""

    limit: float  #: units per window
    window_s: float
    measured: float  #: measured inflow for this lane, units/s
    pace: float  #: units/s that the lane may send
    sent: float  #: units sent in all

    @property
    def told(self) -> float:
        """Units/s that the headers promise."""
        return self.limit / self.window_s


class Standing(Struct, frozen=True, kw_only=True):
    """One lane's figures at one moment."""

    lane: str
    at: float  #: seconds, Redis clock
    dimensions: Mapping[str, Counted]  #: those with fresh headers


class _Known(Struct, frozen=True):
    """A lane's figures now and some seconds ago."""

    now: Standing
    before: Standing

    def rate(self, dimension: str) -> float:
        """Units/s sent since `before`; 0: unknown."""
        then, since_s = self.before.dimensions.get(dimension), self.now.at - self.before.at
        if then is None or since_s <= 0:
            return 0.0
        return max(0.0, self.now.dimensions[dimension].sent - then.sent) / since_s


class _Family(NamedTuple):
    """What lanes that may share a budget have in common: the provider, and the limits in its headers."""

    provider: str
    dimension: str
    limit: float
    window_s: float


class Siblings(Struct, frozen=True):
    """Recent figures of the lanes of all providers."""

    known: Mapping[str, _Known]  #: the one that was last noted is at the end
    families: Mapping[_Family, Mapping[str, _Known]]
    #: When the shares were calculated, and the shares by lane ({}: each lane has its own budget); calculated on demand.
    found: dict[_Family, tuple[float, Mapping[str, float]]]

    @classmethod
    def none(cls) -> Siblings:
        """Nothing is known of any lane."""
        return cls({}, {}, {})

    def note(self, standings: Sequence[Standing], now: float) -> Siblings:
        """Add what was seen just now, and drop lanes that were silent for long."""
        known, families = dict(self.known), dict(self.families)
        touched: dict[_Family, dict[str, _Known]] = {}

        def members(family: _Family) -> dict[str, _Known]:
            if family not in touched:  # the others stay the same, and are not copied
                touched[family] = families[family] = dict(families.get(family, {}))
            return touched[family]

        def change(lane: str, before: _Known | None, after: _Known | None) -> None:
            for family in _families(before.now) if before is not None else ():
                del members(family)[lane]
            if after is not None:
                for family in _families(after.now):
                    members(family)[lane] = after

        for standing in standings:
            before = known.pop(standing.lane, None)
            if before is None or now - before.now.at > LATE_S:
                after = _Known(standing, standing)
            elif standing.at - before.before.at >= 2 * RATE_S:
                after = _Known(standing, replace(before.now, at=before.now.at))
            else:
                after = replace(before, now=standing)
            known[standing.lane] = after
            change(standing.lane, before, after)
        silent = list(takewhile(lambda item: now - item[1].now.at > LATE_S, known.items()))
        for lane, before in silent:
            del known[lane]
            change(lane, before, None)
        for family in touched:
            if not families[family]:
                del families[family]
        fresh = {
            family: found
            for family, found in self.found.items()
            if now - found[0] < LARGE_S and len(families.get(family, ())) > LARGE
        }
        return Siblings(known, families, fresh)

    def shares(self, lane: str) -> dict[str, float]:
        """This lane's share of each dimension's limit, 0 to 1; without dimensions that it does not share."""
        own = self.known.get(lane)
        if own is None:
            return {}
        found = {}
        for family in _families(own.now):
            share = self._shares_in(family, own.now.at).get(lane)
            if share is not None:
                found[family.dimension] = share
        return found

    def _shares_in(self, family: _Family, at: float) -> Mapping[str, float]:
        if family not in self.found:
            members, name = self.families[family], family.dimension
            one_budget = len(members) > 1 and _one_budget(members, name)
            self.found[family] = (at, _fair(members, name) if one_budget else {})
        return self.found[family][1]


def _families(standing: Standing) -> Iterator[_Family]:
    provider = provider_of(standing.lane)
    for name, counted in standing.dimensions.items():
        yield _Family(provider, name, counted.limit, counted.window_s)


def provider_of(lane: str) -> str:
    """The part of a lane's name before the colon; the whole name if there is none."""
    return lane.partition(":")[0]


def _one_budget(family: Mapping[str, _Known], name: str) -> bool:
    """Whether the others' units are missing from the refill of each lane, as far as they send enough to tell."""
    rates = {lane: one.rate(name) for lane, one in family.items()}
    shown = False
    for lane, one in family.items():
        counted = one.now.dimensions[name]
        others = sum(rates.values()) - rates[lane]
        if others < LITTLE * counted.told:
            continue
        explained = counted.told - counted.measured >= EXPLAINED * min(others, counted.told)
        if not explained and others >= MUCH * counted.told:
            return False
        shown = shown or explained
    return shown


def _fair(family: Mapping[str, _Known], name: str) -> dict[str, float]:
    """Max-min fair shares: a lane that needs less than an equal part gets that; the rest is divided among the
    others."""
    told = next(iter(family.values())).now.dimensions[name].told
    asks: dict[str, float] = {}
    for lane, one in family.items():
        rate, pace = one.rate(name), one.now.dimensions[name].pace
        asks[lane] = 1.0 if rate >= WANTING * pace else min(1.0, max(LEAST, rate / told / WANTING))
    shares, left, lanes = dict[str, float](), 1.0, sorted(asks, key=lambda lane: (asks[lane], lane))
    for place, lane in enumerate(lanes):
        equal = left / (len(lanes) - place)
        shares[lane] = min(asks[lane], equal) if place < len(lanes) - 1 else equal
        left -= shares[lane]
    return shares
