"""An answer past its time is given at once, while exactly one call renews it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.call import Claim, Placed
from ratelimit_worker.contracts.kept import PACKED_FROM_BYTES, RENEW_AGAIN_S, Keep
from ratelimit_worker.contracts.lesson import Settlement
from tests.builders import entry
from tests.lua.cluster import Cluster, said
from tests.lua.test_claims import answers_of
from tests.lua.test_kept import UNPACED, answer_once
from tests.lua.test_reuse import minutes

pytestmark = pytest.mark.server
OLD, NEW = b'{"value": "old"}', b'{"value": "new"}'
KEEP = Keep(again_nanousd=1)


def claim(**more: Any) -> Claim:
    return Claim(fingerprint="f", **{"ttl_s": 60.0, "join": True, "at_once": True, "revalidate_s": 600.0, **more})


def ask(cluster: Cluster, ref: str, its: Claim) -> Placed:
    cluster.advance(0.000001)
    return cluster.lanes.enqueue(entry(ref, claim=its, lane_fields=UNPACED))


@pytest.fixture
def past(cluster: Cluster) -> Cluster:
    """An answer is kept, and past its time."""
    cluster.worker()
    answer_once(cluster, claim(), OLD, KEEP)
    assert ask(cluster, "fresh", claim()) == Placed(False, "fresh", OLD, False, False)
    cluster.advance(61)
    cluster.worker()
    return cluster


def sums(cluster: Cluster) -> dict[str, int]:
    found: dict[str, int] = {}
    for told in minutes(cluster.client).values():
        for cell in told.values():
            for name, number in cell.items():
                found[name] = found.get(name, 0) + number
    return found


def renewed(cluster: Cluster, ref: str, kind: Any = "value") -> None:
    """The call that renews it is made, and answered."""
    placed = ask(cluster, ref, claim(refresh=True, at_once=False))
    assert placed == Placed(True, ref)
    assert [ask(cluster, f"{ref}{n}", claim()).renews for n in range(3)] == [False] * 3, "it is on its way"
    tag, _ = cluster.begin()
    cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=NEW, lesson=said("good"), kind=kind, keep=KEEP))
    cluster.free(tag)


def test_one_renews_and_all_are_answered_at_once(past: Cluster) -> None:
    """The first to come is told to have it renewed, all others are not; then all have the new one, fresh."""
    placed = [ask(past, f"c{n}", claim()) for n in range(5)]
    assert {one.answer for one in placed} == {OLD}
    assert [one.renews for one in placed] == [True, False, False, False, False]
    renewed(past, "renewal")
    placed = [ask(past, f"d{n}", claim()) for n in range(3)]
    assert [(one.answer, one.renews) for one in placed] == [(NEW, False)] * 3
    assert past.lanes.counters()["cache_stale"] == 8
    counted = sums(past)
    assert (counted["hits"], counted["stale"], counted["refreshed"]) == (4, 8, 1)
    assert "misses" not in counted, "who renews has missed nothing"


def test_what_came_to_nothing_is_sent_for_again(past: Cluster) -> None:
    """A renewal that failed, or whose sender died before it was sent: half a minute later, and once."""
    assert ask(past, "first", claim()).renews
    past.advance(RENEW_AGAIN_S - 1)
    past.worker()
    assert not ask(past, "too soon", claim()).renews
    past.advance(1)
    past.worker()
    assert [ask(past, f"again{n}", claim()).renews for n in range(2)] == [True, False]
    renewed(past, "fails", "error")
    past.advance(RENEW_AGAIN_S)
    past.worker()
    placed = [ask(past, f"more{n}", claim()) for n in range(2)]
    assert [(one.answer, one.renews) for one in placed] == [(OLD, True), (OLD, False)]


def test_how_long_it_may_be_given(past: Cluster) -> None:
    """To who allows it, until that time is over; others ask, and are not answered by it."""
    strict = ask(past, "strict", claim(revalidate_s=0.0))
    assert strict == Placed(True, "strict")
    past.advance(600)
    past.worker()
    assert ask(past, "late", claim()).answer is None


def test_a_call_with_links_takes_it_too(past: Cluster) -> None:
    """Which a worker passes on; a large one, which is kept packed, as well."""
    placed = ask(past, "with links", claim(at_once=False))
    assert placed == Placed(False, "with links", renews=True)
    assert answers_of(past) == {"with links": OLD}
    large = b'{"value": "' + b"x" * PACKED_FROM_BYTES + b'"}'
    answer_once(past, claim(), large, KEEP)
    past.advance(61)
    past.worker()
    placed = ask(past, "large", claim(at_once=False))
    assert placed == Placed(False, "large", renews=True)
    past.pump()
    assert answers_of(past)["large"] == large


def test_in_an_emergency_nobody_is_asked(past: Cluster) -> None:
    """The answer is given, and no call is sent to a provider that is away."""
    past.lanes.set_points("gpt", {"mode": Mode.EMERGENCY.value})
    placed = ask(past, "emergency", structs.replace(claim(), stale_ttl_s=600.0))
    assert (placed.answer, placed.renews) == (OLD, False)
