"""Is what calls with equal options have in common what each of them would get by itself? No server needed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from ratelimit_worker.calls import Cost, LaneLimits, Priority
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.plan import Sender, Shedding
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.inprocess import alike
from ratelimit_worker.inprocess.alike import InLane, InLanes, Sets

SETTINGS = Settings(lanes={"known": LaneLimits(rpm=60, tenants={"big": 3.0})})

OPTIONS: list[dict[str, Any]] = [
    {},
    {"lane": "known", "tenant": "big", "priority": "low", "deadline_s": 5},
    {"cache_enabled": False, "context_tags": ["a", "b"], "timeout_s": 3.0},
    {"cache_ttl": 0, "stale_ttl": 60, "stale_while_revalidate": 2.5, "refresh": True, "no_store": True},
    {"shed_below": "high", "over_budget": "fail", "namespace": "ours", "version": "2", "ignore": ("trace",)},
    {"priority": Priority.HIGH, "cache_incomplete": True, "cache_key": "mine"},
    {"cost": Cost(input_tokens=7), "cache_key": lambda value: value},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_plan_in_what_is_kept_is_the_one_that_is_made_anew(options: dict[str, Any]) -> None:
    """But for who sends it, and that refusals are raised; the second call's as the first one's."""
    sets, kept = Sets(), InLanes(SETTINGS)
    for _ in range(2):
        mine = sets.of("f", "general", dict(options))
        lane = mine.how.lane or "openai:gpt"
        frame = kept.of(mine, lane).frame
        made = enqueue.filled(frame, ("prompt",), {"model": "m"}, now=5.0)
        kind = enqueue.Kind(task="f", lane=lane)
        anew = enqueue.plan(kind, ("prompt",), {"model": "m"}, SETTINGS, mine.how.said, now=5.0)
        assert made == structs.replace(
            anew,
            publication=made.publication,
            sender=Sender.CALLER,
            shedding=anew.shedding and Shedding.RAISE,
            over_budget=anew.over_budget and Shedding.RAISE,
        )
        assert made.publication != anew.publication


def test_equal_options_are_looked_at_once() -> None:
    """The same object for each later call, and its frame too; another name, context or lane is another."""
    sets, kept = Sets(), InLanes(SETTINGS)
    first = sets.of("f", "general", {"tenant": "a", "context_tags": ["x"]})
    assert sets.of("f", "general", {"tenant": "a", "context_tags": ["x"]}) is first
    assert kept.of(first, "one") is kept.of(first, "one")
    assert kept.of(first, "one") is not kept.of(first, "two")
    others = [
        sets.of("g", "general", {"tenant": "a", "context_tags": ["x"]}),
        sets.of("f", "other", {"tenant": "a", "context_tags": ["x"]}),
        sets.of("f", "general", {"tenant": "b", "context_tags": ["x"]}),
        sets.of("f", "general", {"tenant": "a", "context_tags": ["y"]}),
        sets.of("f", "general", {"tenant": "a"}),
    ]
    assert len({id(one) for one in (first, *others)}) == 6


@pytest.mark.parametrize(
    ("good", "bad"), [({"priority": 1}, {"priority": True}), ({"deadline_s": 1}, {"deadline_s": True})]
)
def test_what_python_takes_for_equal_and_is_not_valid_is_refused(good: dict[str, Any], bad: dict[str, Any]) -> None:
    """After a call with the valid one, and each time."""
    sets, kept = Sets(), InLanes(SETTINGS)
    kept.of(sets.of("f", "general", good), "lane")
    for _ in range(2):
        with pytest.raises(BadInput):
            kept.of(sets.of("f", "general", bad), "lane")


def test_an_option_that_does_not_exist_is_an_error() -> None:
    """A TypeError, as of any function."""
    with pytest.raises(TypeError, match="tennant"):
        Sets().of("f", "general", {"tennant": "a"})


def test_functions_and_what_they_close_over_are_not_kept() -> None:
    """Nor is what calls with them have in common: each is looked at for itself."""
    sets, kept = Sets(), InLanes(SETTINGS)
    options = {"cache_key": lambda prompt: prompt}
    first = sets.of("f", "general", options)
    assert sets.of("f", "general", options) is not first
    assert kept.of(first, "lane") is not kept.of(first, "lane")
    assert (sets._known, kept._known) == ({}, {})


def test_no_more_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with an own tenant for each call does not fill its memory; each still gets its own."""
    monkeypatch.setattr(alike, "MOST", 10)
    sets, kept = Sets(), InLanes(SETTINGS)
    for number in range(35):
        mine = sets.of("f", "general", {"tenant": str(number)})
        made: InLane = kept.of(mine, "lane")
        assert made.frame.plan.tenant == str(number)
        assert len(sets._known) <= 10
        assert len(kept._known) <= 10
