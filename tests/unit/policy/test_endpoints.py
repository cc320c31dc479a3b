"""Paths: which are known, whose they are, which model and lane they speak of, and what their answers must hold."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit_worker.calls import Category
from ratelimit_worker.policy.completion import flaw_of, not_whole
from ratelimit_worker.policy.endpoints import KNOWN, is_known, lane_of, model_of, operation_of, provider_of
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.providers import apis

GEMINI = "/v1beta/models/gemini-2.5-flash"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("version", ["", "/v1", "/v1beta"])
def test_what_is_known(name: str, version: str) -> None:
    """With a version or without; and nothing that only ends like it, or that a server could read as another path."""
    path = f"{version}/{name}"
    assert is_known(path)
    operation = operation_of(path)
    assert operation is not None
    assert operation.name == name.rpartition(":")[2]
    for other in (
        f"/x{path}",
        f"{path}x",
        f"{path}?a=b",
        f"{path}#",
        path[1:],
        f"http://x{path}",
        f"{path}\n",
        "/.." + path,
    ):
        assert not is_known(other), other


@pytest.mark.parametrize(
    "path",
    [
        "/models/../files:generateContent",
        "/models/..:generateContent",
        "/models/.:generateContent",
        "/models/a/b:generateContent",
        "/models/a%2fb:generateContent",
        f"{GEMINI}:streamGenerateContent",
        f"{GEMINI}:delete",
        "/v1/files",
        "/v1/organization/admin_api_keys",
        "/v1/fine_tuning/jobs",
        "/v1/audio/voices",
        "",
        "/",
    ],
)
def test_what_is_not(path: str) -> None:
    """With the account's key these would be its own affairs, or a stream."""
    assert not is_known(path)


@pytest.mark.parametrize(
    ("path", "body", "provider", "lane"),
    [
        ("/v1/chat/completions", {"model": "gpt-4o"}, "openai", "openai:gpt-4o"),
        ("/v1/responses", {"model": "gpt-5"}, "openai", "openai:gpt-5"),
        ("/v1/moderations", {"input": "x"}, "openai", "openai:moderations"),
        ("/v1/images/generations", {"prompt": "x"}, "openai", "openai:images/generations"),
        ("/v1/messages", {"model": "claude-sonnet-5"}, "anthropic", "anthropic:claude-sonnet-5"),
        ("/messages", {"model": "claude-sonnet-5"}, "anthropic", "anthropic:claude-sonnet-5"),
        ("/v1/messages/count_tokens", {"model": "c"}, "anthropic", "anthropic:c:messages/count_tokens"),
        ("/gateway/v1/messages", {"model": "c"}, "anthropic", "anthropic:c"),
        ("/v1/threads/t1/messages", {"model": "m"}, "openai", "openai:m"),
        (f"{GEMINI}:generateContent", {}, "google", "google:gemini-2.5-flash"),
        (f"{GEMINI}:countTokens", {}, "google", "google:gemini-2.5-flash:countTokens"),
        ("/openai/deployments/d-1/audio/speech?api-version=1", {}, "openai", "openai:d-1"),
        ("/v1/anything", {"model": "m"}, "openai", "openai:m"),
        ("/v1/anything", {"model": 7}, "openai", "default"),
        ("/v1/anything", None, "openai", "default"),
    ],
)
def test_whose_it_is(path: str, body: Any, provider: str, lane: str) -> None:
    """Provider and lane, where nobody names them."""
    assert provider_of(path) == provider
    assert lane_of(provider, path, body) == lane
    assert model_of(path, body) in lane or lane == "default"


@pytest.mark.parametrize(
    ("path", "body", "size"),
    [
        # a response that names no maximum has an output, though it looks like an embedding
        ("/v1/responses", {"model": "m", "input": "abcd" * 4}, Size(4, None, 1, "m")),
        ("/v1/embeddings", {"model": "m", "input": "abcd" * 4}, Size(4, 0, 1, "m")),
        ("/v1/moderations", {"model": "m", "input": "abcd" * 4}, Size(4, 0, 1, "m")),
        ("/v1/audio/speech", {"model": "m", "input": "abcd" * 4, "voice": "alloy"}, Size(4, 0, 1, "m")),
        ("/v1/completions", {"model": "m", "prompt": "abcd", "max_tokens": 9, "n": 2}, Size(1, 9, 2, "m")),
        ("/v1/messages/count_tokens", {"model": "m", "messages": ["abcd"]}, Size(1, 0, 1, "m")),
        ("/v1/messages", {"model": "m", "messages": ["abcd"], "max_tokens": 5}, Size(1, 5, 1, "m")),
        (
            f"{GEMINI}:generateContent",
            {
                "contents": [{"parts": [{"text": "abcd" * 5}]}],
                "systemInstruction": {"parts": [{"text": "abcd"}]},
                "generationConfig": {"maxOutputTokens": 50, "candidateCount": 3},
            },
            Size(6, 50, 3, "gemini-2.5-flash"),
        ),
        (
            f"{GEMINI}:generateContent",
            {
                "contents": [{"parts": [{"text": "abcd"}]}],
                "generationConfig": {"maxOutputTokens": 50, "thinkingConfig": {"thinkingBudget": 900}},
            },
            Size(1, 900, 1, "gemini-2.5-flash"),
        ),
        (
            "/v1beta/models/gemini-embedding-001:batchEmbedContents",
            {"requests": [{"content": {"parts": [{"text": "abcd"}]}}] * 3},
            Size(3, 0, 1, "gemini-embedding-001"),
        ),
        # base64 is no text, in a form's file as elsewhere
        (
            "/v1/audio/transcriptions",
            {"model": "m", "prompt": "abcd", "file": {"data": "QUJDRGFiY2QxMjM0" * 4000, "filename": "a.mp3"}},
            Size(1_003, None, 1, "m"),
        ),
        (f"{GEMINI}:generateContent", [], Size(0, 0, 1, "")),
    ],
)
def test_what_a_request_costs(path: str, body: Any, size: Size) -> None:
    """By the operation of its path, and no longer by its looks."""
    assert apis.size(body, path) == size


@pytest.mark.parametrize(
    ("path", "body", "category"),
    [
        ("/v1/responses", {"output": []}, None),
        ("/v1/responses", {"id": "r"}, Category.MALFORMED_RESPONSE),
        ("/v1/moderations", {"results": [{"flagged": False}]}, None),
        ("/v1/moderations", {"id": "m"}, Category.MALFORMED_RESPONSE),
        ("/v1/images/edits", {"data": [{"b64_json": "x"}]}, None),
        ("/v1/images/edits", {"created": 1, "data": []}, Category.MALFORMED_RESPONSE),
        ("/v1/audio/transcriptions", {"text": ""}, None),
        ("/v1/audio/transcriptions", {"usage": {"seconds": 1}}, Category.MALFORMED_RESPONSE),
        ("/v1/audio/transcriptions", "words as text", None),
        ("/v1/audio/transcriptions", "\n", None),
        ("/v1/audio/transcriptions", "", Category.MALFORMED_RESPONSE),
        ("/v1/audio/speech", "words", Category.MALFORMED_RESPONSE),
        ("/v1/audio/speech", {"content_type": "audio/mpeg", "data": "AAA="}, None),
        ("/v1/messages/count_tokens", {"input_tokens": 0}, None),
        ("/v1/messages/count_tokens", {}, Category.MALFORMED_RESPONSE),
        (f"{GEMINI}:generateContent", {"candidates": [{"content": {"parts": [{"text": "x"}]}}]}, None),
        (f"{GEMINI}:generateContent", {"usageMetadata": {}}, Category.MALFORMED_RESPONSE),
        (f"{GEMINI}:generateContent", {"promptFeedback": {"blockReason": "SAFETY"}}, Category.CONTENT_FILTERED),
        (f"{GEMINI}:embedContent", {"embedding": {"values": [0.5]}}, None),
        (f"{GEMINI}:batchEmbedContents", {"embeddings": []}, Category.MALFORMED_RESPONSE),
        (f"{GEMINI}:countTokens", {"totalTokens": 3}, None),
        (f"{GEMINI}:predict", {"predictions": [{}]}, None),
    ],
)
def test_what_an_answer_must_hold(path: str, body: Any, category: Category | None) -> None:
    """Each operation's own member."""
    headers = {"content-type": "text/plain"} if isinstance(body, str) else JSON
    flaw = flaw_of(body, headers, path)
    assert (flaw.category if flaw is not None else None) is category


def test_a_stream_by_its_query() -> None:
    """Google's."""
    assert not_whole(f"{GEMINI}:generateContent?alt=sse", {}) == "its url asks for a stream"
    assert not_whole(f"{GEMINI}:generateContent?alt=json", {}) is None
