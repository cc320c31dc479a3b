"""Attempts with values that no store would accept, one field at a time."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from ratelimit_worker.calls import Attempt, Content
from ratelimit_worker.stores.storable import MAX_EPOCH_S, MAX_TAGS, storable
from tests.builders import attempt

TEXTS = [
    *("call_id", "lane", "task", "queue", "context", "tenant", "worker", "provider", "model", "request_id"),
    *("service_tier", "finish_reason", "cause"),
]
TIMES = ["started_at", "finished_at", "waited_s", "retry_after_s", "first_byte_s"]
COUNTS = [
    *("number", "status", "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens"),
    *("reasoning_tokens", "audio_input_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens"),
    *("cost_nanousd", "cached_saving_nanousd", "lost_attempts", "lost_nanousd"),
]
#: Ours alone: no provider and no user sets them, or they are not stored.
OWN = {"outcome", "category", "priority", "price_source", "anew", "asked_model", "estimated_tokens"} | {
    "uncounted_input_tokens",
    "answer_lost",
    "unpriced",
}
SMALL = 2**31 - 1
MOST = {"cost_nanousd": 2**63 - 1, "cached_saving_nanousd": 2**63 - 1, "lost_nanousd": 2**63 - 1} | {
    name: 2**63 - 1 for name in COUNTS if name.endswith("tokens")
}


def stored(name: str, value: Any) -> Any:
    """What is stored of this value."""
    return getattr(storable(replace(attempt(), **{name: value})), name)


def test_an_ordinary_attempt_is_stored_as_it_is() -> None:
    """The same object: nothing is copied."""
    ordinary = attempt(tags=("a", "b"), provider="openai", input_tokens=12, retry_after_s=2.0, cost_nanousd=7)
    assert storable(ordinary) is ordinary


def test_every_field_is_looked_at() -> None:
    """A new field is one of these."""
    assert {one.name for one in fields(Attempt)} == {*TEXTS, *TIMES, *COUNTS, *OWN, "tags", "content"}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    """NUL and half a surrogate pair are replaced, long ones are cut; others stay."""
    assert stored(name, "a\0b") == "a\ufffdb"
    assert stored(name, "a\ud800b") == "a\ufffdb"
    assert len(stored(name, "x" * 10_000)) in (512, 2_000)
    for fine in ("", "größe 日", "x" * 512):
        assert stored(name, fine) == fine


@pytest.mark.parametrize("name", TIMES)
def test_times(name: str) -> None:
    """Never negative, infinite or NaN."""
    assert stored(name, -1.0) == 0.0
    assert stored(name, math.inf) == MAX_EPOCH_S
    assert stored(name, math.nan) in (None, 0.0, attempt().started_at)
    assert stored(name, MAX_EPOCH_S) == MAX_EPOCH_S


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    """Never negative, nor too large for their column."""
    assert stored(name, -1) == 0
    assert stored(name, 2**70) == MOST.get(name, SMALL)
    for fine in (0, 1, SMALL, MOST.get(name, SMALL)):
        assert stored(name, fine) == fine


def test_tags_and_contents() -> None:
    """Each tag is a text, and there are at most so many; contents are texts too."""
    assert stored("tags", ("\0", "ok")) == ("\ufffd", "ok")
    assert len(stored("tags", ("a",) * 200)) == MAX_TAGS
    assert stored("content", Content(asked="a\0")) == Content(asked="a\ufffd")
    assert stored("content", Content(asked="a")) == Content(asked="a")


@pytest.mark.parametrize(("name", "wrong"), [("lane", 7), ("tags", (1,)), ("waited_s", "1"), ("number", "1")])
def test_a_value_of_another_type_is_refused(name: str, wrong: Any) -> None:
    """It cannot be changed into one that is stored."""
    with pytest.raises(TypeError):
        stored(name, wrong)
