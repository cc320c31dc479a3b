"""How long an attempt may take on a worker whose provider never answers."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pytest

from ratelimit_worker.calls import Category
from ratelimit_worker.errors import DeadlineExceeded, TimedOut
from ratelimit_worker.policy.timeout import Sample, key, learn
from ratelimit_worker.stores.usage import LatencyMemory
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.dead_server import Dead
from tests.fleet import fleet

pytestmark = pytest.mark.worker


def test_calls_at_a_provider_that_hangs() -> None:
    """On a worker: call, task and learned history bound the attempt; what timed out is sick, and the deadline is the
    end of it all; what the deadline alone has cut off says nothing of the provider."""
    with closing(Dead()) as hanging, fleet(OPENAI_BASE_URL=hanging.url, OPENAI_API_KEY="k") as made:
        made.agent()
        memory = LatencyMemory(made.valkey.client)
        made.worker("w", "-P", "threads", "-c", "4", "-I", "tests.fleet_app")
        from tests.fleet_app import asked, chat

        told: Any = chat.apply_async(("a",), lane="told", timeout_s=0.2, deadline_s=20)
        # Its next attempt would come too late; or, where its worker had no time for it, it does.
        with pytest.raises((TimedOut, DeadlineExceeded)) as failed:
            told.get(timeout=120)
        assert isinstance(failed.value, TimedOut | DeadlineExceeded)
        assert failed.value.category == Category.TIMEOUT
        lane = services().lanes.fields("told")
        assert int(lane["sick"]) >= 1
        rows = services().tracker.attempts_of
        wait_for(lambda: rows(told.id), what="its attempts are tracked")
        sent = [row for row in rows(told.id) if row.cause != DeadlineExceeded.__name__]
        assert {row.category for row in sent} == {Category.TIMEOUT}
        assert all(row.latency_s < 15 for row in sent)

        cut: Any = chat.apply_async(("b",), lane="cut", deadline_s=1)
        with pytest.raises((TimedOut, DeadlineExceeded)):
            cut.get(timeout=120)
        assert services().lanes.fields("cut").get("sick", b"0") == b"0"

        an_hour_ago = [Sample(latency_s=0.2, at=time.time() - 3600)] * 50
        memory.write({key(asked.name, None, "learned"): learn(None, an_hour_ago)})
        wait_for(lambda: asked.apply_async(lane="learned").get(timeout=120) == 30, what="the worker has learned it")
        assert asked.apply_async(lane="learned", timeout_s=7).get(timeout=120) == 7
