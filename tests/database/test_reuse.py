"""What shared answers have saved comes into the database by the minute, once, and every window tells it right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, text

from ratelimit_worker.contracts import reuse
from ratelimit_worker.contracts.call import US, Claim
from ratelimit_worker.contracts.kept import Keep
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.duty.record import Beside, Recorder
from ratelimit_worker.reports import analytics
from ratelimit_worker.reports.reuse import ReuseFigures
from ratelimit_worker.reports.stats import Sources, Stats, stats
from ratelimit_worker.reports.tables import stats_tables
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.reuse import ReuseMinutes
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import attempt, entry
from tests.lua.cluster import T0_US, Cluster
from tests.lua.test_kept import UNPACED, answer_once

pytestmark = pytest.mark.server
BEGAN_S = T0_US / US
PRICED = Keep(again_nanousd=1, paid_nanousd=2_000_000_000, input_tokens=70, output_tokens=7, packs=False)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


def ask(cluster: Cluster, ref: str, context: str, **more: Any) -> None:
    """One call of `tasks.ask`, for the same answer."""
    its = Claim(fingerprint="f", ttl_s=3600.0, join=False, at_once=True, context=context, func="tasks.ask", **more)
    cluster.advance(0.000001)
    cluster.lanes.enqueue(entry(ref, claim=its, tenant="acme", lane_fields=UNPACED))


@pytest.fixture
def story(cluster: Cluster) -> Cluster:
    """An answer is kept; in each of three minutes one context hits it twice and another once; one call misses."""
    cluster.worker()
    its = Claim(fingerprint="f", ttl_s=3600.0, join=False, context="code", func="tasks.ask")
    answer_once(cluster, its, b'{"value": 1}', PRICED)
    for minute in range(3):
        for number in range(3):
            ask(cluster, f"hit{minute}{number}", "code" if number else "docs")
        cluster.advance(60)
    cluster.worker()
    other = Claim(fingerprint="g", ttl_s=3600.0, join=False, context="docs", func="tasks.ask")
    cluster.lanes.enqueue(entry("miss", claim=other, lane_fields=UNPACED))
    return cluster


def figures(cluster: Cluster, engine: Engine, window_s: float = 1800.0, now_s: float | None = None) -> Stats:
    now_s = cluster.now_us / US + 1 if now_s is None else now_s
    return stats(
        Sources.of(Queries(engine, lambda: BEGAN_S + 1800), Live(cluster.client, cluster.now_us)), window_s, now_s
    )


def recorder(cluster: Cluster, engine: Engine) -> Recorder:
    beside = Beside(reuse=ReuseMinutes(cluster.client))
    return Recorder(Outbox(cluster.client), Tracker(engine), beside=beside, block_ms=0)


def test_figures_are_the_same_before_and_after_they_are_moved(story: Cluster, engine: Engine) -> None:
    """In total, by context, function, lane and tenant, and over time; nothing waits in Redis afterwards."""
    before = figures(story, engine)
    saved = 9 * PRICED.paid_nanousd
    assert before.total.reuse == ReuseFigures(
        hits=9,
        misses=1,
        rate=0.9,
        bytes=9 * len(b'{"value": 1}'),
        input_tokens=630,
        output_tokens=63,
        saved_nanousd=saved,
        hits_nanousd=saved,
    )
    assert {group.name: group.figures.reuse.hits for group in before.contexts} == {"code": 6, "docs": 3}
    assert [group.name for group in before.functions] == ["tasks.ask"]
    assert {group.name: group.figures.reuse.misses for group in before.tenants} == {"acme": 0, "": 1}
    assert before.models == ()
    assert [point.reuse.hits for point in before.timeline if point.reuse is not None] == [3, 3, 3, 0]
    assert (before.cache_hits, before.cache_saved_nanousd) == (9, saved)
    recorder(story, engine).step()
    assert ReuseMinutes(story.client).over() == []
    assert story.client.keys("rlw:reuse:*") == []
    assert replace(figures(story, engine), now=None) == replace(before, now=None)
    ask(story, "one more", "code")
    assert figures(story, engine).total.reuse.hits == 10, "a later answer in a minute that was moved counts too"
    recorder(story, engine).step()
    assert figures(story, engine).total.reuse.hits == 10


def test_a_minute_counts_in_the_window_in_which_it_begins(story: Cluster, engine: Engine) -> None:
    """Windows beside each other hold each minute once, wherever they meet, moved or not."""
    for moved in (False, True):
        if moved:
            recorder(story, engine).step()
        for cut_s in (0.0, 20.0, 40.0, 61.0):
            cut = BEGAN_S + 60 + cut_s
            hits = [
                figures(story, engine, 600.0, now_s=end).total.reuse.hits
                for end in (cut, cut + 600.0)
            ]  # fmt: skip
            assert sum(hits) == 9, (moved, cut_s)


def test_told_twice_it_counts_once(story: Cluster, engine: Engine) -> None:
    """By a recorder that died before it could forget, and by several at once."""

    class Dies(ReuseMinutes):
        def forget(self, sums: Any) -> None:
            raise StoreUnavailable("Redis: away")

    beside = Beside(reuse=Dies(story.client))
    Recorder(Outbox(story.client), Tracker(engine), beside=beside, block_ms=0).step()
    assert len(ReuseMinutes(story.client).over()) == 4
    assert figures(story, engine).total.reuse.hits == 9, "what is in both is told once"
    others = [threading.Thread(target=recorder(story, engine).step) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert ReuseMinutes(story.client).over() == []
    assert figures(story, engine).total.reuse.hits == 9


def test_it_joins_what_attempts_add_up_to(story: Cluster, engine: Engine) -> None:
    """In the same cell; rows that come late leave it alone, and a clean-up forgets only the names."""
    tracker = Tracker(engine)
    tracker.record([attempt("one", lane="gpt", task="tasks.ask", context="code", finished_at=BEGAN_S + 1, model=None)])
    recorder(story, engine).step()
    tracker.record([attempt("two", lane="gpt", task="tasks.ask", context="code", finished_at=BEGAN_S + 2, model=None)])
    found = {group.name: group.figures for group in figures(story, engine).contexts}
    assert (found["code"].answered, found["code"].reuse.hits) == (2, 6)
    tracker.purge(0.0, now_s=BEGAN_S + 1800)
    assert figures(story, engine).total.reuse.hits == 9
    with engine.begin() as connection:
        names = "SELECT count(*) FROM rollup_batches"
        assert connection.scalar(text(names)) == 4
        connection.execute(text("UPDATE rollup_batches SET at = '2023-01-01 00:00:00'"))
    tracker.purge(0.0, now_s=BEGAN_S + 2 * reuse.KEPT_S)
    with engine.begin() as connection:
        assert connection.scalar(text(names)) == 0


def test_it_is_shown(story: Cluster, engine: Engine) -> None:
    """In the tables of `stats`, in CSV by lane and by function, and as JSON."""
    found = figures(story, engine)
    shown = stats_tables(found)
    assert "cache     9 hits, 0 joined, 0 stale, 1 miss: 90.0 % without a request" in shown
    assert "spared    630 tokens in, 63 out; 0 answers evicted, 0 bytes" in shown
    assert "saved     $18.00 by cache hits, $0.00 by joining, $0.00 by stale answers" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["code", "6", "0", "0", "0", "100.0", "%", str(6 * len('{"value": 1}')), "462", "$12.00", "0"] in rows
    by_function = analytics.to_function_csv(found).splitlines()
    assert dict(zip(by_function[0].split(","), by_function[1].split(","), strict=True))["cache_hits"] == "9"
    by_lane = analytics.to_csv(found).splitlines()
    assert dict(zip(by_lane[0].split(","), by_lane[1].split(","), strict=True))["cache_hits_nanousd"] == "18000000000"
    assert analytics.as_builtins(found)["total"]["reuse"]["rate"] == 0.9
