"""What a trace says of a call, from values alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ratelimit_worker.calls import Attempt, Category, Outcome
from ratelimit_worker.contracts.plan import Estimated, Plan
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.policy.spans import OWN, Asked, Held, Wait, asked_by, came, causes, error_of, named

ANSWERS = Answers(dumps=json.dumps, loads=json.loads)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def row(outcome: Outcome, **more: Any) -> Attempt:
    """An attempt with this end."""
    times: dict[str, Any] = {"started_at": 10.0, "finished_at": 12.0, "waited_s": 1.0}
    return Attempt(call_id="a", number=2, lane="l", task="t", outcome=outcome, **times, **more)


@pytest.mark.parametrize(
    ("lane", "model", "provider", "asked"),
    [
        ("openai:gpt-4o", None, None, ("openai", "chat", "gpt-4o")),
        ("mine", "claude-x", "anthropic", ("anthropic", "chat", "claude-x")),
        ("google:gemini-x", "gemini-x", None, ("gcp.gemini", "generate_content", "gemini-x")),
        ("openai:text-embedding-3", None, "openai", ("openai", "embeddings", "text-embedding-3")),
        ("mine", "mine", None, ("unknown", "chat", None)),
    ],
)
def test_provider_operation_and_model(
    lane: str, model: str | None, provider: str | None, asked: tuple[Any, ...]
) -> None:
    """By the lane's name where nothing was seen; a lane that stands for a model is none."""
    plan = Plan(lane=lane, deadline_s=1.0, publication="p", estimated=Estimated(model) if model else None)
    assert Asked.of(plan, provider) == asked


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (row(Outcome.ANSWERED, cause="ignored"), None),
        (row(Outcome.FAILED, category=Category.AUTH, cause="text of the provider"), "auth"),
        (row(Outcome.FAILED, cause="LookupError"), "LookupError"),
        (row(Outcome.SNOOZED), "snoozed"),
    ],
)
def test_the_kind_of_an_error_is_never_its_text(attempt: Attempt, kind: str | None) -> None:
    assert error_of(attempt) == came(attempt).get("error.type") == kind


def test_what_is_not_known_is_not_told() -> None:
    assert came(row(Outcome.ANSWERED, input_tokens=0, cost_nanousd=2_000_000)) == {
        "gen_ai.usage.input_tokens": 0,
        OWN + "outcome": "answered",
        OWN + "attempt": 2,
        OWN + "cost_usd": 0.002,
    }
    assert named(Plan(lane="l", deadline_s=1.0, publication="p"), "a") == {OWN + "call.id": "a", OWN + "lane": "l"}


def test_what_held_a_call() -> None:
    held = [Held("gate", "refused", 5.0), Held("slots", "", None)]
    assert [name for name, _ in causes(Wait(1, 0, 0, 0, 0.0), [])] == []
    told = dict(causes(Wait(3, 1, 2, 1, 0.5), held))
    assert list(told) == ["again", "sick", "worker_lost", "gate", "slots", "pause"]
    assert told["gate"] == {OWN + "detail": "refused", OWN + "until_s": 5.0}


@pytest.mark.parametrize("value", [5, "text", {"by": "x", "value": 1}])
def test_an_answer_says_who_asked_and_is_read_as_ever(value: Any) -> None:
    """Answers of calls that were not traced stay as they were, to the letter."""
    plain, traced = ANSWERS.value(value), ANSWERS.value(value, TRACE)
    assert plain == json.dumps({"value": value}).encode()
    assert ANSWERS.decode(plain) == ANSWERS.decode(traced) == ("value", value)
    assert (asked_by(plain), asked_by(traced)) == (None, TRACE)
    assert asked_by(ANSWERS.error(LookupError("x"), TRACE)) == TRACE
