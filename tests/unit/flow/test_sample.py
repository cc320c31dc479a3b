"""Looks at lanes become one row a lane and minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.duty.sample import Sampler


@dataclass
class Scene:
    """Lanes as they stand now, and what was kept of them."""

    stand: dict[str, LaneSample] = field(default_factory=dict)
    working: set[str] = field(default_factory=set)
    used: dict[float, set[str]] = field(default_factory=dict)  #: by the minute that is asked for
    kept: list[LaneSample] = field(default_factory=list)
    looks: list[Sequence[str]] = field(default_factory=list)
    away: bool = False

    def stands(
        self,
        lane: str,
        allowed_per_min: float | None = 60.0,
        *,
        waiting: int = 0,
        running: int = 0,
        mode: Mode = Mode.NORMAL,
    ) -> None:
        """How a lane stands."""
        self.stand[lane] = LaneSample(
            lane=lane, at_s=0, allowed_per_min=allowed_per_min, waiting=waiting, running=running, mode=mode
        )
        self.working.add(lane)

    def look(self, names: Sequence[str]) -> list[LaneSample]:
        self.looks.append(names)
        return [self.stand[name] for name in names if name in self.stand]

    def lanes_used(self, since_s: float) -> set[str]:
        if self.away:
            raise StoreUnavailable("away")
        return self.used.get(since_s, set())

    def keep(self, samples: Sequence[LaneSample]) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.kept += samples


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def sampler(scene: Scene) -> Sampler:
    return Sampler(lambda: sorted(scene.working), scene.look, scene.lanes_used, scene.keep)


def test_a_minute_is_the_mean_of_what_was_allowed_and_the_most_of_the_rest(scene: Scene, sampler: Sampler) -> None:
    scene.stands("a", 60.0, waiting=3, running=1)
    sampler.step(600.0)
    scene.stands("a", 30.0, waiting=1, running=2, mode=Mode.EMERGENCY)
    sampler.step(615.0)
    scene.stands("a", 90.0, mode=Mode.REDUCED)
    sampler.step(659.9)
    assert scene.kept == []  # the minute is not over
    sampler.step(660.0)
    assert scene.kept == [
        LaneSample(lane="a", at_s=600, allowed_per_min=60.0, waiting=3, running=2, mode=Mode.EMERGENCY)
    ]


def test_a_lane_that_nothing_bound_once_was_not_bound(scene: Scene, sampler: Sampler) -> None:
    scene.stands("a", 60.0)
    sampler.step(0.0)
    scene.stands("a", None)
    sampler.step(30.0)
    sampler.step(60.0)
    assert [one.allowed_per_min for one in scene.kept] == [None]


def test_a_lane_whose_calls_are_short_shows_by_what_it_did_in_the_minute_before(scene: Scene, sampler: Sampler) -> None:
    """No look meets a call of it; its attempts of the last minute say that it is in use."""
    scene.stands("short", 120.0)
    scene.working.clear()
    scene.used[60.0] = {"short", "gone"}
    sampler.step(125.0)
    sampler.step(185.0)
    assert [(one.lane, one.at_s, one.allowed_per_min) for one in scene.kept] == [("short", 120, 120.0)]


def test_an_idle_cluster_is_not_looked_at(scene: Scene, sampler: Sampler) -> None:
    for at_s in range(0, 600, 15):
        sampler.step(float(at_s))
    assert scene.looks == []
    assert scene.kept == []


def test_rows_wait_while_the_database_is_away(scene: Scene, sampler: Sampler) -> None:
    scene.stands("a")
    sampler.step(0.0)
    scene.away = True
    sampler.step(60.0)
    sampler.step(120.0)
    assert scene.kept == []
    scene.away = False
    sampler.step(135.0)
    assert [one.at_s for one in scene.kept] == [0, 60]
    sampler.step(150.0)
    assert len(scene.kept) == 2


def test_who_lost_the_duty_tells_nothing_of_the_minute_that_another_looks_at(scene: Scene, sampler: Sampler) -> None:
    scene.stands("a")
    sampler.step(0.0)
    sampler.forget()
    sampler.step(61.0)
    assert scene.kept == []
    sampler.step(120.0)
    assert [one.at_s for one in scene.kept] == [60]
