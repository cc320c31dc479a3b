"""How many calls wait on a queue is a counter; the machine tests hold it to what is there after every step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import entry
from tests.lua.cluster import LEASE_S, Cluster

CLOSED = {"p1": 0.0001, "d1": 1.0}
RECOUNT_S = 601.0
WAITING = "rlw:waiting"


def fill(cluster: Cluster, lanes: int) -> None:
    """In each lane two calls wait on `q`, and one for its time on `r`; nothing is released."""
    for number in range(lanes):
        for ref, queue, due_s in (("a", "q", 0.0), ("b", "q", 0.0), ("c", "r", 60.0)):
            cluster.lanes.enqueue(
                entry(f"{ref}{number}of{lanes}", f"l{number}", queue, lane_fields={**CLOSED, "l1": 0.0}, due_in_s=due_s)
            )


def commands_of(cluster: Cluster, queue: str) -> int:
    """How many commands the server runs for one `size`."""
    before: Any = cluster.client.info("commandstats")
    cluster.lanes.size(queue)
    after: Any = cluster.client.info("commandstats")
    told = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    return int(sum(told.values()) - told["cmdstat_info"] - told["cmdstat_fcall"])


@pytest.mark.server
def test_the_size_of_a_queue_costs_the_same_whatever_the_lanes(cluster: Cluster) -> None:
    """One look at one hash."""
    assert cluster.lanes.size("q") == 0
    costs = []
    for lanes in (3, 60):
        fill(cluster, lanes)
        assert (cluster.lanes.size("q"), cluster.lanes.size("r")) == (2 * lanes, lanes)
        costs.append(commands_of(cluster, "q"))
        for queue in ("q", "r"):
            cluster.lanes.purge(queue)
            assert cluster.lanes.size(queue) == 0
    assert costs == [1, 1]


@pytest.mark.server
@pytest.mark.parametrize("found", [{}, {"at": 1.7e15, "q:q": 999, "q:gone": 5}], ids=["no count", "a wrong one"])
def test_what_an_older_version_has_moved_is_counted_within_ten_minutes(
    cluster: Cluster, found: dict[str, float]
) -> None:
    """Its scripts keep no count: calls that it took in are not in it, and those that it released still are."""
    fill(cluster, 4)
    cluster.client.delete(WAITING)
    if found:
        cluster.client.hset(WAITING, mapping={name: int(value) for name, value in found.items()})
        assert cluster.lanes.size("q") == 999
        cluster.advance(RECOUNT_S)
        for _ in range(3):  # the first after a pause only lets the living renew
            cluster.lanes.sweep(LEASE_S)
            cluster.advance(LEASE_S / 3)
    assert (cluster.lanes.size("q"), cluster.lanes.size("r")) == (8, 4)
    assert cluster.client.hexists(WAITING, "q:gone") is False
