"""The timeline: which limits, faults and neighbours are in force for a request at a moment.

Pure: the time is an argument, and random numbers depend only on the seed and the request's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ratelimit_worker.calls import Cost
from ratelimit_worker.simulate.draws import uniform
from ratelimit_worker.simulate.scenario import Entry, Fault, Outage


@dataclass(frozen=True, slots=True)
class Planned:
    """An entry with its times, in seconds: it is in force from `start_s` until before `end_s`."""

    entry: Entry
    start_s: float
    end_s: float
    draw: str  #: name of the entry's own series of random numbers
    needle: bytes = field(init=False)  #: what the body must contain

    def __post_init__(self) -> None:
        object.__setattr__(self, "needle", (self.entry.match or "").encode())

    def holds(self, now_s: float) -> bool:
        """Whether the entry is in force at `now_s`."""
        return self.start_s <= now_s < self.end_s


class Timeline:
    """Entries by time. For faults the entry that was planned first wins, for limits the one that began last."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._planned: list[Planned] = []
        self._neighbours: list[Planned] = []
        self._count = 0
        self._active: list[Planned] = []
        self._active_until_s = -math.inf  # self._active is valid until then

    def plan(self, entries: Iterable[Entry], now_s: float) -> list[Planned]:
        """Plan entries, each `at_s` seconds after `now_s`."""
        new = []
        for entry in entries:
            start_s = now_s + entry.at_s
            end_s = math.inf if entry.for_s is None else start_s + entry.for_s
            new.append(Planned(entry, start_s, end_s, f"entry {self._count}"))
            self._count += 1
        self._planned += new
        self._neighbours += [planned for planned in new if planned.entry.neighbour_rpm is not None]
        self._active_until_s = -math.inf
        return new

    def clear(self) -> None:
        """Forget every entry."""
        self._planned.clear()
        self._neighbours.clear()
        self._active_until_s = -math.inf

    def limits(self, now_s: float) -> dict[str, float]:
        """Dimension -> units a minute, of the limits that entries change now."""
        changed: dict[str, float] = {}
        for planned in sorted(self.active(now_s), key=lambda planned: planned.start_s):
            changed |= planned.entry.limits()
        return changed

    def in_flight(self, now_s: float) -> int | None:
        """Most requests in flight that entries allow now (the one that began last); None: they change nothing."""
        found = None
        for planned in sorted(self.active(now_s), key=lambda planned: planned.start_s):
            found = planned.entry.in_flight or found
        return found

    def hit(self, number: int, body: bytes, now_s: float) -> tuple[Entry | None, float]:
        """The entry whose fault meets request `number`, if any, and the factor of its latency."""
        factor = 1.0
        for planned in self.active(now_s):
            entry = planned.entry
            if (
                entry.fault is None
                or planned.needle not in body
                or (entry.share < 1 and uniform(self._seed, number, planned.draw) >= entry.share)
            ):
                continue
            if entry.fault is not Fault.SLOW:
                return entry, factor
            factor *= entry.factor
        return None, factor

    def next_edge_s(self, now_s: float) -> float:
        """When the next entry begins or ends; inf: none does."""
        self.active(now_s)
        return self._active_until_s

    def neighbours(self, after_s: float, until_s: float) -> list[tuple[float, Cost]]:
        """Neighbours' requests with after_s < time <= until_s, in order: (time, cost).

        A neighbour sends one in each interval of its rate, at a random time within it.
        """
        coming = []
        for planned in self._neighbours:
            if planned.start_s > until_s or planned.end_s <= after_s or planned.entry.neighbour_rpm is None:
                continue
            interval_s = 60.0 / planned.entry.neighbour_rpm
            cost = Cost(input_tokens=planned.entry.neighbour_tokens)
            first = max(0, math.floor((after_s - planned.start_s) / interval_s))
            for number in range(first, math.floor((until_s - planned.start_s) / interval_s) + 1):
                time_s = planned.start_s + (number + uniform(self._seed, number, planned.draw)) * interval_s
                if after_s < time_s <= until_s and time_s < planned.end_s:
                    coming.append((time_s, cost))
        return sorted(coming, key=lambda request: request[0])

    def door_shut(self, now_s: float) -> bool:
        """Whether the port is closed now."""
        return any(shuts_the_door(planned.entry) for planned in self.active(now_s))

    def active(self, now_s: float) -> list[Planned]:
        """Entries in force now, in the order in which they were planned."""
        if now_s >= self._active_until_s:
            self._planned = [planned for planned in self._planned if planned.end_s > now_s]
            self._active = [planned for planned in self._planned if planned.holds(now_s)]
            edges = (edge for planned in self._planned for edge in (planned.start_s, planned.end_s) if edge > now_s)
            self._active_until_s = min(edges, default=math.inf)
        return self._active


def shuts_the_door(entry: Entry) -> bool:
    """Whether the entry closes the port."""
    return entry.fault is Fault.OUTAGE and entry.how is Outage.REFUSED
