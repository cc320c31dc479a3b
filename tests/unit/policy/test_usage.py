"""What providers count for a request, as their documentation and recorded answers spell it."""

from __future__ import annotations

from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.calls import Glimpse, Sighting, Usage
from ratelimit_worker.contracts.lesson import Lesson
from ratelimit_worker.policy.usage import finish_reason_of, nanousd, usage_of
from ratelimit_worker.providers.glimpse import Reading


class _Modality(StrEnum):
    AUDIO = "AUDIO"
    TEXT = "TEXT"


ANSWERS: dict[str, tuple[Any, Usage]] = {
    "OpenAI's chat": (
        {
            "usage": {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "total_tokens": 2306,
                "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 10},
                "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 5},
            },
            "service_tier": "default",
        },
        Usage(
            2006,
            300,
            cached_input_tokens=1920,
            reasoning_tokens=64,
            audio_input_tokens=10,
            audio_output_tokens=5,
            service_tier="default",
        ),
    ),
    "OpenAI's responses": (
        {
            "object": "response",
            "status": "completed",
            "service_tier": "flex",
            "usage": {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 16},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 40},
                "total_tokens": 123,
            },
        },
        Usage(36, 87, cached_input_tokens=16, reasoning_tokens=40, service_tier="flex"),
    ),
    "OpenAI's embeddings": ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(8, None)),
    "OpenAI's pictures": (
        {
            "usage": {
                "input_tokens": 50,
                "output_tokens": 400,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens_details": {"image_tokens": 400},
            }
        },
        Usage(50, 400, image_input_tokens=40, image_output_tokens=400),
    ),
    "OpenAI's transcripts": (
        {
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                "output_tokens": 45,
            }
        },
        Usage(14, 45, audio_input_tokens=14),
    ),
    "Anthropic's messages, whose total leaves out what is cached": (
        {
            "usage": {
                "input_tokens": 50,
                "cache_creation_input_tokens": 248,
                "cache_read_input_tokens": 1800,
                "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                "output_tokens": 503,
                "service_tier": "priority",
            }
        },
        Usage(
            2098,
            503,
            cached_input_tokens=1800,
            cache_write_tokens=248,
            long_cache_write_tokens=100,
            uncounted_input_tokens=1800,
            service_tier="priority",
        ),
    ),
    "Gemini's, whose candidates leave out what it thought": (
        {
            "usageMetadata": {
                "promptTokenCount": 264,
                "cachedContentTokenCount": 200,
                "toolUsePromptTokenCount": 6,
                "candidatesTokenCount": 31,
                "thoughtsTokenCount": 1309,
                "totalTokenCount": 1610,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 4},
                    {"modality": "IMAGE", "tokenCount": 258},
                    {"modality": "AUDIO", "tokenCount": 2},
                ],
                "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 31}],
            }
        },
        Usage(270, 1340, cached_input_tokens=200, reasoning_tokens=1309, audio_input_tokens=2, image_input_tokens=258),
    ),
    "Gemini's SDK": (
        SimpleNamespace(
            usage_metadata=SimpleNamespace(
                prompt_token_count=9,
                candidates_token_count=3,
                cached_content_token_count=4,
                prompt_tokens_details=[SimpleNamespace(modality=_Modality.AUDIO, token_count=5)],
            )
        ),
        Usage(9, 3, cached_input_tokens=4, audio_input_tokens=5),
    ),
    "Cohere's chat, of which its own prompt is not billed": (
        {
            "usage": {
                "billed_units": {"input_tokens": 5, "output_tokens": 418},
                "tokens": {"input_tokens": 71, "output_tokens": 418},
                "cached_tokens": 60,
            }
        },
        Usage(71, 418, cached_input_tokens=60, unbilled_input_tokens=66),
    ),
    "Cohere's embeddings": ({"meta": {"billed_units": {"input_tokens": 20}}}, Usage(20, None)),
    "Mistral's": (
        {"usage": {"prompt_tokens": 16, "completion_tokens": 34, "total_tokens": 50, "num_cached_tokens": 8}},
        Usage(16, 34, cached_input_tokens=8),
    ),
    "DeepSeek's": (
        {
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "total_tokens": 120,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 36,
                "completion_tokens_details": {"reasoning_tokens": 12},
            }
        },
        Usage(100, 20, cached_input_tokens=64, reasoning_tokens=12),
    ),
    "Groq's, whose limits do not count what is cached": (
        {
            "usage": {
                "queue_time": 0.02,
                "prompt_tokens": 4641,
                "prompt_time": 0.3,
                "completion_tokens": 1817,
                "completion_time": 7.8,
                "total_tokens": 6458,
                "total_time": 8.1,
                "prompt_tokens_details": {"cached_tokens": 4608},
            }
        },
        Usage(4641, 1817, cached_input_tokens=4608, uncounted_input_tokens=4608),
    ),
    "xAI's, whose completion leaves out its reasoning": (
        {
            "usage": {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 141,
                "completion_tokens_details": {"reasoning_tokens": 100},
                "cost_in_usd_ticks": 158_500_000,
            }
        },
        Usage(32, 109, reasoning_tokens=100, cost_nanousd=15_850_000),
    ),
    "OpenRouter's, with what it billed": (
        {
            "usage": {
                "prompt_tokens": 194,
                "completion_tokens": 2,
                "total_tokens": 196,
                "cost": 0.00092,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": None},
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 100},
            }
        },
        Usage(194, 2, cached_input_tokens=0, cache_write_tokens=100, cost_nanousd=920_000),
    ),
    "OpenRouter's with a key of one's own: its fee, and the provider's bill": (
        {
            "usage": {
                "prompt_tokens": 1,
                "completion_tokens": 2,
                "cost": 0.001,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 0.02},
            }
        },
        Usage(1, 2, cost_nanousd=21_000_000),
    ),
    "Bedrock's": (
        {
            "usage": {
                "inputTokens": 10,
                "outputTokens": 5,
                "totalTokens": 115,
                "cacheReadInputTokens": 60,
                "cacheWriteInputTokens": 40,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 10}],
            }
        },
        Usage(
            110,
            5,
            cached_input_tokens=60,
            cache_write_tokens=40,
            long_cache_write_tokens=30,
            uncounted_input_tokens=60,
        ),
    ),
    "LiteLLM's, whose total holds what is cached": (
        {
            "usage": {
                "prompt_tokens": 150,
                "completion_tokens": 5,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 100},
            }
        },
        Usage(150, 5, cached_input_tokens=100, cache_write_tokens=20),
    ),
    "LangChain's": (
        SimpleNamespace(
            usage_metadata={
                "input_tokens": 350,
                "output_tokens": 240,
                "total_tokens": 590,
                "input_token_details": {"audio": 10, "cache_creation": 200, "cache_read": 100},
                "output_token_details": {"audio": 10, "reasoning": 200},
            }
        ),
        Usage(
            350,
            240,
            cached_input_tokens=100,
            cache_write_tokens=200,
            reasoning_tokens=200,
            audio_input_tokens=10,
            audio_output_tokens=10,
        ),
    ),
    "Voyage's": ({"usage": {"total_tokens": 12}}, Usage(12, None)),
    "Perplexity's": (
        {"usage": {"prompt_tokens": 8, "completion_tokens": 2, "cost": {"total_cost": 0.0061}}},
        Usage(8, 2, cost_nanousd=6_100_000),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_providers_usage_is_read_whole(name: str) -> None:
    """Totals are made whole, and what was of a kind is told beside them."""
    answer, usage = ANSWERS[name]
    assert usage_of(answer) == usage


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": [{"finish_reason": "stop"}]}, "stop"),
        ({"stop_reason": "end_turn"}, "end_turn"),
        ({"candidates": [{"finishReason": "MAX_TOKENS"}]}, "MAX_TOKENS"),
        ({"object": "response", "status": "completed"}, "completed"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"),
        ({"finish_reason": "COMPLETE"}, "COMPLETE"),
        ({"stopReason": "guardrail_intervened"}, "guardrail_intervened"),
        ({"status": "ok"}, None),
        ({"choices": [{"finish_reason": "a\nb"}]}, None),
        ({"choices": "x", "candidates": [7]}, None),
        (None, None),
    ],
)
def test_why_an_answer_ended(answer: Any, reason: str | None) -> None:
    """In each provider's own word and place; what could not stand on one line is no reason."""
    assert finish_reason_of(answer) == reason


def test_cached_input_costs_nothing_of_an_input_budget_where_the_provider_says_so() -> None:
    """Anthropic's and Groq's limits leave out what is read from a cache; OpenAI's count it."""
    for name, taken in (
        ("Anthropic's messages, whose total leaves out what is cached", 298),
        ("Groq's, whose limits do not count what is cached", 33),
        ("OpenAI's chat", 2006),
    ):
        usage = usage_of(ANSWERS[name][0])
        assert usage is not None
        assert usage.budget_input_tokens == taken
        given_back = Lesson(usage=usage, reconcile=True).used()
        assert given_back == Lesson(usage=Usage(taken, usage.output_tokens), reconcile=True).used()


def test_several_requests_of_one_attempt_are_added_up() -> None:
    """A task may ask twice: all tokens are its own, and a tier is told where both had it."""
    one = Usage(10, 2, cached_input_tokens=4, service_tier="default", cost_nanousd=5)
    other = Usage(5, None, reasoning_tokens=1, service_tier="default", cost_nanousd=7)
    seen = Sighting(glimpses=[Glimpse(usage=one), Glimpse(), Glimpse(usage=other)])
    seen.look()
    whole = Usage(15, 2, cached_input_tokens=4, reasoning_tokens=1, service_tier="default", cost_nanousd=12)
    assert seen.usage == whole


@pytest.mark.parametrize(
    ("amount", "nano"),
    [
        (0.1, 100_000_000),
        ("0.000000001", 1),
        (0, 0),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("much", None),
        (10**9, None),
        ([1], None),
    ],
)
def test_amounts_of_money(amount: Any, nano: int | None) -> None:
    """Decimal, never binary fractions; what is no amount is none."""
    assert nanousd(amount) == nano


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("usage", "usageMetadata", "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"),
                    *("prompt_tokens_details", "cached_tokens", "cache_read_input_tokens", "cache_creation", "cost"),
                    *("tokens", "billed_units", "meta", "is_byok", "cost_details", "promptTokensDetails", "modality"),
                    *("choices", "finish_reason", "incomplete_details", "service_tier", "total_tokens", "cacheDetails"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(junk, junk)
def test_no_answer_breaks_the_reader(one: Any, other: Any) -> None:
    """Whatever a stranger sends, parts stay within their wholes and nothing is below 0."""
    for answer in (one, {"usage": one, "meta": other, "choices": other}, {"usageMetadata": other}):
        finish_reason_of(answer)
        usage = usage_of(answer)
        if usage is None:
            continue
        counts = [getattr(usage, name) for name in Usage.__slots__ if name != "service_tier"]
        assert all(n is None or n >= 0 for n in counts)
        if usage.input_tokens is not None:
            assert (usage.cached_input_tokens or 0) <= usage.input_tokens
            assert (usage.budget_input_tokens or 0) >= 0


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"model": "llama3", "prompt_eval_count": 26, "eval_count": 290, "done": True}, Usage(26, 290)),
        ({"embedding": [1], "inputTextTokenCount": 7}, Usage(7, None)),
        ({"generation": "x", "prompt_token_count": 3, "generation_token_count": 5}, Usage(3, 5)),
        ({"x_groq": {"usage": {"prompt_tokens": 24, "completion_tokens": 2}}}, Usage(24, 2)),
        ({"prompt_eval_count": None, "eval_count": None}, None),
        ({"x_groq": {"id": "r"}}, None),
    ],
)
def test_counts_that_stand_beside_the_answer(answer: dict[str, object], usage: Usage | None) -> None:
    """Ollama's, those of models on Bedrock, and at the end of Groq's streams."""
    assert usage_of(answer) == usage


@pytest.mark.parametrize(
    ("kind", "body", "usage"),
    [
        (
            "text/event-stream",
            b'data: {"choices": []}\n\ndata: {"choices": [], "x_groq": {"usage": {"prompt_tokens": 24, '
            b'"completion_tokens": 2}}}\n\ndata: [DONE]\n\n',
            Usage(24, 2),
        ),
        (
            "text/event-stream; charset=utf-8",
            b'event: message-end\ndata: {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": '
            b'{"billed_units": {"input_tokens": 5, "output_tokens": 10}, "tokens": {"input_tokens": 71, '
            b'"output_tokens": 10}}}}\n\n',
            Usage(71, 10, unbilled_input_tokens=66),
        ),
        (
            "application/x-ndjson",
            b'{"model": "llama3", "response": "a", "done": false}\n{"model": "llama3", "response": "", "done": true, '
            b'"prompt_eval_count": 26, "eval_count": 290}\n',
            Usage(26, 290),
        ),
    ],
)
def test_the_end_of_a_stream_says_what_it_used(kind: str, body: bytes, usage: Usage) -> None:
    """Of Groq, Cohere and Ollama; whether it is read at once or byte by byte."""
    for size in (1, 7, len(body)):
        seen = Sighting()
        reading = Reading(seen, "localhost", "/api/chat", b'{"model": "m"}')
        reading.answered(200, [("content-type", kind)])
        for start in range(0, len(body), size):
            reading.part(body[start : start + size])
        reading.end()
        assert seen.usage == usage, size
