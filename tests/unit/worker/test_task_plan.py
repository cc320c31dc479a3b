"""A call's plan is made from its task as that is now, though most of it is decided once for all calls of a lane."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery
from msgspec import structs

from ratelimit_worker.app import llm_task
from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.worker.task import MOST_FRAMES


@pytest.fixture
def task() -> Any:
    """A task whose calls go into a lane by their model."""

    @llm_task(app=Celery("plans", broker="memory://"), shared=False, name="ask", provider="p", tags=["a"])
    def ask(prompt: str, model: str = "small") -> str:
        return prompt + model

    return ask


def own(plan: Plan) -> Plan:
    """A plan without what no two calls have in common."""
    return structs.replace(plan, publication="", deadline_s=0.0)


def test_the_second_call_of_a_lane_has_the_same_plan_but_for_what_is_its_own(task: Any) -> None:
    """Publication and deadline are new, the cost follows from the arguments, and nothing else differs."""
    first, second = task.plan(("x",), {"model": "m"}), task.plan(("x",), {"model": "m"})
    assert own(first) == own(second)
    assert first.publication != second.publication
    assert second.deadline_s >= first.deadline_s > time.time()
    longer = task.plan(("x" * 4000,), {"model": "m"})
    assert longer.cost.input_tokens > first.cost.input_tokens
    assert own(structs.replace(longer, cost=first.cost, estimated=first.estimated)) == own(first)


def test_a_plan_in_a_kept_frame_is_the_one_that_is_made_anew(task: Any) -> None:
    """`enqueue.plan`, which keeps nothing, decides the same."""
    task.plan((), {"model": "m", "prompt": "x"})
    kept = task._kept_usual
    anew = enqueue.plan(kept.kind, (), {"model": "m", "prompt": "x"}, kept.settings, now=5.0)
    assert own(task.plan((), {"model": "m", "prompt": "x"})) == own(anew)
    assert anew.deadline_s == 5.0 + kept.settings.deadline_s
    assert anew.lane == "p:m"


def test_each_model_has_its_lane_also_where_more_are_called_than_are_kept(task: Any) -> None:
    """By position, by name, and past the bound of what is kept."""
    assert task.plan(("x", "one"), {}).lane == "p:one"
    for number in range(MOST_FRAMES + 5):
        for _ in range(2):
            assert task.plan(("x",), {"model": f"m{number}"}).lane == f"p:m{number}"
    assert len(task._kept_usual._frames) == MOST_FRAMES


@pytest.mark.parametrize(
    ("name", "value", "of"),
    [
        ("lane", "other", lambda plan: plan.lane == "other"),
        ("tenant", "acme", lambda plan: plan.tenant == "acme"),
        ("call_priority", "high", lambda plan: plan.priority is Priority.HIGH),
        ("deadline_s", 7.0, lambda plan: plan.deadline_s < time.time() + 8),
        ("timeout_s", 9.0, lambda plan: plan.timeout_s == 9.0),
        ("cache", False, lambda plan: plan.sharing is None),
        ("cache_ttl", 11.0, lambda plan: plan.sharing.ttl_s == 11.0),
        ("cache_namespace", "room", lambda plan: plan.sharing.namespace == "=room"),
        ("over_budget", "fail", lambda plan: plan.over_budget is not None),
        ("shed_below", "high", lambda plan: plan.shedding is not None),
    ],
)
def test_an_attribute_that_is_changed_holds_for_the_next_call(task: Any, name: str, value: Any, of: Any) -> None:
    """Also after calls were planned with the old one."""
    assert not of(task.plan(("x",), {"model": "m"}))
    setattr(task, name, value)
    assert of(task.plan(("x",), {"model": "m"}))


def test_a_list_of_tags_that_grows_and_a_new_cost_hold_for_the_next_call(task: Any) -> None:
    """What is compared is what they hold now."""
    tags = ["a"]
    task.tags = tags
    assert task.plan(("x",), {}).tags == ("a",)
    tags.append("b")
    assert task.plan(("x",), {}).tags == ("a", "b")
    task.__class__.cost = staticmethod(lambda *args, **kwargs: Cost(input_tokens=77))
    assert task.plan(("x",), {}).cost.input_tokens == 77


def test_what_a_call_says_itself_is_not_kept_for_others(task: Any) -> None:
    """Options of one call leave the next as it was."""
    usual = own(task.plan(("x",), {"model": "m"}))
    said = task.plan(("x",), {"model": "m"}, tenant="acme", tags=["z"], deadline_s=3.0, cost=Cost(input_tokens=5))
    assert (said.tenant, said.tags, said.cost.input_tokens) == ("acme", ("z",), 5)
    assert own(task.plan(("x",), {"model": "m"})) == usual
    with pytest.raises(BadInput, match="deadline_s"):
        task.plan(("x",), {"model": "m"}, deadline_s=-1)


def test_an_attribute_that_cannot_be_is_refused_at_each_call(task: Any) -> None:
    """It is not kept, and does not hide behind what was kept before."""
    task.plan(("x",), {"model": "m"})
    task.call_priority = "urgent"
    for _ in range(2):
        with pytest.raises(BadInput, match="priority"):
            task.plan(("x",), {"model": "m"})


def test_other_settings_hold_for_the_next_call(task: Any) -> None:
    """Kept is what was decided by the settings in force."""
    usual = task._usual(Settings()).frame("m")
    other = task._usual(Settings(max_waiting=3)).frame("m")
    assert (usual.plan.max_waiting, other.plan.max_waiting) == (Settings().max_waiting, 3)
