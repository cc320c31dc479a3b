"""Do starts keep a fast lane's pace, however messages travel? On the real server and the test's time."""

from __future__ import annotations

from bisect import bisect_left
from random import Random

import pytest

from tests.builders import entry
from tests.lua.cluster import LEASE_S, Cluster

RATE = 400
DEPTH = 1 + RATE * 0.02  #: of a configured rate
PACED = {"p1": RATE, "d1": DEPTH}


def most_in_a_second(starts: list[float]) -> int:
    """Starts in the fullest window of a second."""
    starts = sorted(starts)
    return max(bisect_left(starts, at + 1.0) - n for n, at in enumerate(starts))


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_messages_that_travel_for_longer_and_shorter_start_within_the_pace(cluster: Cluster, seed: int) -> None:
    """Each message is read up to 20 ms late, so that many begin together: half of what may be in a bucket at most."""
    random = Random(seed)
    cluster.worker(slots=400)
    for n in range(700):
        cluster.lanes.enqueue(entry(f"c{n}", lane_fields=PACED))
    on_their_way: list[tuple[float, str]] = []
    starts: list[float] = []
    paused = 0
    end_us = cluster.now_us + 1_600_000
    while cluster.now_us < end_us:
        cluster.advance(0.002)
        now = cluster.now_us / 1e6
        cluster.pump()
        while cluster.lying():
            stalled = (cluster.now_us // 100_000) % 2 == 0  # a tenth of a second at a time, all workers are slow
            on_their_way.append((now + (random.uniform(0.015, 0.02) if stalled else 0.001), cluster.take()[0]))
        for at, tag in [one for one in on_their_way if one[0] <= now]:
            on_their_way.remove((at, tag))
            begun = cluster.lanes.begin(tag, LEASE_S)
            assert begun.state == "go"
            assert begun.now_s == pytest.approx(now + begun.pause_s, abs=1e-5)
            paused += begun.pause_s > 0
            starts.append(now + begun.pause_s)
            cluster.settle(tag)
            cluster.free(tag)
    assert paused > 0
    assert most_in_a_second(starts) <= RATE + 1 + RATE * 0.01
    assert len(starts) >= 1.6 * RATE - 2 * DEPTH  # what waits is not lost


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        pytest.param({"p1": 50.0, "d1": 2.0}, 2, id="a slow lane"),
        pytest.param({"unlimited": 1}, 4, id="a lane without a pace"),
        pytest.param({"p1": 1000.0, "d1": 1000.0}, 21, id="a lane that may start as many at once"),
    ],
)
def test_others_start_at_once(cluster: Cluster, fields: dict[str, float], calls: int) -> None:
    """Nothing is paused that may begin together."""
    cluster.worker(slots=100)
    for n in range(calls):
        cluster.lanes.enqueue(entry(f"c{n}", lane_fields=fields))
    cluster.pump()
    assert [cluster.begin()[1].pause_s for _ in range(min(calls, cluster.lying()))] == [0.0] * calls
