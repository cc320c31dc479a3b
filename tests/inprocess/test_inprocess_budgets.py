"""Do calls in process obey budgets of money?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ratelimit_worker.errors import BudgetSpent, DeadlineExceeded
from ratelimit_worker.flow.lane.budget import Change, set_budget
from tests.conftest import wait_for
from tests.fleet import fleet
from tests.inprocess.test_inprocess import LANES, Place

pytestmark = pytest.mark.server

PRICES = json.dumps({"free": {"input": 10_000}})  # a cent a token; a call that names no model goes by its lane


@pytest.fixture
def place() -> Iterator[Place]:
    """A broker of its own, no Celery worker."""
    budgets = json.dumps({"tenant:spender": {"usd_per_day": 0.05}})
    with fleet(MAISD_LANES=LANES, MAISD_PRICES=PRICES, MAISD_BUDGETS=budgets) as made:
        here = Place(made)
        yield here
        here.limiter.close()


def ask(number: int) -> dict[str, Any]:
    """What an SDK gives back: three cents."""
    return {
        "id": number,
        "object": "chat.completion",
        "model": "dear",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


def test_a_tenant_without_money_waits_or_fails_and_others_go(place: Place) -> None:
    """Two calls of three cents spend five; the third fails or waits, as it says, until there is more."""
    options: dict[str, Any] = {"lane": "free", "tenant": "spender", "cache_enabled": False}
    for number in range(2):
        place.call(ask, number, **options)
    assert place.live.budgets.spent(["tenant:spender"])["tenant:spender"].day_nanousd == 60_000_000
    with pytest.raises(BudgetSpent, match="'tenant:spender' is spent until"):
        place.call(ask, 2, over_budget="fail", **options)
    with pytest.raises(DeadlineExceeded):
        place.call(ask, 3, deadline_s=1.0, **options)
    assert place.call(ask, 4, **{**options, "tenant": "other"})["id"] == 4
    set_budget(place.live.budgets, "tenant:spender", Change(usd_per_day=1))
    assert place.call(ask, 5, over_budget="fail", **options)["id"] == 5
    wait_for(lambda: place.live.redis.keys("rlw:call:*") == [], what="no call is left")
    assert place.live.lanes.counters()["over_budget"] == 1
