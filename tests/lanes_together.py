"""Several lanes in virtual time under the real tuner, each a `Laboratory` of its own, on one provider or on several."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from msgspec.structs import replace

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.contracts.lane import LaneState, Write
from ratelimit_worker.flow.lane.tune import ControlPlane, Tuner
from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.ports import Lanes, LaneSeen, LaneView, Taken
from tests.laboratory import Job, Laboratory


class Together:
    """Lanes by name; those on one provider share its budget.

    Args:
        labs: Lane → its laboratory. All start at the same moment.
        one_provider: Whether all lanes ask the provider of the first.
    """

    def __init__(self, labs: Mapping[str, Laboratory], *, one_provider: bool = True) -> None:
        self.labs, self.now = dict(labs), 0.0
        first = next(iter(self.labs.values()))
        control = ControlPlane(lanes=cast(Lanes, _Planes(self)), pins=_NoPins(self), mode_log=_Forgetful())
        self.tuner = Tuner(control)
        for lab in self.labs.values():
            lab.provider = first.provider if one_provider else lab.provider
            lab.tune = self.tune  # type: ignore[method-assign]

    def begin_later(self, lane: str, after_s: float) -> None:
        """The calls of a lane arrive only then."""
        lab = self.labs[lane]
        jobs, lab.waiting = lab.waiting, deque[Job]()

        def arrive() -> None:
            lab.waiting = jobs
            lab.release()

        lab.after(after_s, arrive)

    def run(self, horizon_s: float) -> None:
        """All lanes, each event at its time."""
        for lab in self.labs.values():
            lab.after(0.0, lab.release)
        ticking = next(iter(self.labs.values()))
        ticking.after(ticking.every, ticking.tune_again)
        while True:
            lab = min((lab for lab in self.labs.values() if lab.events), key=lambda lab: lab.events[0][0])
            self.now, _, what = heapq.heappop(lab.events)
            if self.now >= lab.start + horizon_s:
                return
            lab.now = self.now
            what()

    def tune(self) -> None:
        """One turn over all lanes."""
        for lab in self.labs.values():
            lab.woken, lab.now = False, self.now
        self.tuner.turn("lab")

    def per_min(self, lane: str, from_s: float, to_s: float) -> float:
        """Good answers a minute to requests that arrived in that time."""
        arrivals = self.labs[lane].result.arrivals
        return sum(one.good and from_s <= one.t < to_s for one in arrivals) / (to_s - from_s) * 60

    def refused(self, from_s: float = 0.0) -> float:
        """Share of 429s among all requests since."""
        late = [one for lab in self.labs.values() for one in lab.result.arrivals if one.t >= from_s]
        return sum(one.status == 429 for one in late) / max(1, len(late))


class _Planes:
    """The lanes as the tuner sees them."""

    def __init__(self, together: Together) -> None:
        self.together = together

    def take(self, owner: str, lease_s: float, most: int = 50, also: Iterable[str] = ()) -> Any:
        views = [replace(lab.look(), lane=lane) for lane, lab in self.together.labs.items()]
        return Taken(self.together.now, views)

    def set_points(self, lane: str, fields: Mapping[str, Any], read: int | None = None) -> int:
        self.together.labs[lane].obey(fields)
        return 0

    def set_points_of(self, changes: Mapping[str, Write]) -> list[str]:
        for lane, change in changes.items():
            self.set_points(lane, change.fields)
        return []

    def states(self, lanes: Sequence[str], fields: Sequence[str] = ()) -> dict[str, LaneState]:
        return {lane: self.state(lane) for lane in lanes}

    def names(self) -> list[str]:
        return sorted(self.together.labs)

    def count(self) -> int:
        return len(self.together.labs)

    def survey(self, fields: Sequence[str] = (), most: int = 200) -> Iterator[list[LaneSeen]]:
        yield [LaneSeen(lane=lane, used_s=0.0, working=True, state=self.state(lane)) for lane in self.names()]

    def state(self, lane: str) -> LaneState:
        view: LaneView = self.together.labs[lane].plane.view(())
        return view.state


class _NoPins:
    def __init__(self, together: Together) -> None:
        self.together = together

    def now(self) -> float:
        return self.together.now

    def read(self) -> Mapping[str, Pin]:
        return {}

    def write(self, pins: Mapping[str, Pin]) -> None:
        raise AssertionError("nobody pins here")

    def drop(self, pins: Mapping[str, Pin]) -> None:
        raise AssertionError("nobody pins here")


class _Forgetful:
    def append_mode_change(self, change: ModeChange) -> None:
        """Nobody asks."""
