"""What LiteLLM's proxy makes of its providers' words, and whether we understand it. A real proxy, from PyPI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker.calls import Category, Usage, sighting
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.providers import apis, openai
from tests.compat.servers.started import MASTER_KEY, litellm_proxy
from tests.compat.servers.upstream import Upstream, upstream
from tests.faces.test_run import Runner

C = Category

PATIENCE_S = 300.0  #: the first request of each kind imports half the proxy


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(behind: Upstream) -> Iterator[str]:
    def model(name: str, what: str, base: str, **more: Any) -> dict[str, Any]:
        return {"model_name": name, "litellm_params": {"model": what, "api_base": base, "api_key": "sk-up", **more}}

    models = [
        model("gpt", "openai/gpt-4o", f"{behind.url}/v1"),
        model("claude", "anthropic/claude-sonnet-4-5", behind.url),
        model("gemini", "gemini/gemini-2.5-flash", behind.url),
        model("vectors", "openai/text-embedding-3-small", f"{behind.url}/v1"),
        model("once", "openai/gpt-4o", f"{behind.url}/v1", rpm=1),
        model("nobody", "openai/gpt-4o", "http://127.0.0.1:9/v1"),
    ]
    with litellm_proxy(models) as address:
        yield address


def chat(proxy: str, model: str, word: str, key: str = MASTER_KEY) -> Any:
    """One chat completion, of the provider behind the model."""
    to = openai.endpoint({"OPENAI_BASE_URL": f"{proxy}/v1", "OPENAI_API_KEY": key})
    body = {"model": model, "messages": [{"role": "user", "content": f"<{word}>"}], "max_tokens": 9}
    return openai.request(to, openai.CHAT_PATH, body, PATIENCE_S)


@pytest.mark.parametrize(
    ("model", "word", "category", "wait_s"),
    [
        ("gpt", "limited", C.RATE_LIMITED, 7.0),
        ("gpt", "quota", C.QUOTA_EXHAUSTED, None),
        ("gpt", "key", C.AUTH, None),
        ("gpt", "bad", C.INVALID_REQUEST, None),
        ("gpt", "long", C.INVALID_REQUEST, None),
        ("gpt", "sick", C.OVERLOADED, None),
        ("gpt", "broken", C.SERVER_ERROR, None),
        ("gpt", "missing", C.INVALID_REQUEST, None),
        ("gpt", "empty", C.MALFORMED_RESPONSE, None),
        ("gpt", "html", C.SERVER_ERROR, None),
        ("claude", "limited", C.RATE_LIMITED, 7.0),
        ("claude", "sick", C.OVERLOADED, None),
        ("claude", "quota", C.QUOTA_EXHAUSTED, None),
        ("gemini", "limited", C.RATE_LIMITED, 21.5),
        ("gemini", "quota", C.QUOTA_EXHAUSTED, None),
        ("gemini", "sick", C.SERVER_ERROR, None),
        ("nobody", "good", C.SERVER_ERROR, None),
        ("none", "good", C.INVALID_REQUEST, None),
    ],
)
def test_a_failure_keeps_its_category(proxy: str, model: str, word: str, category: C, wait_s: float | None) -> None:
    """Through the gateway as without it: the provider's own words, its wait, and no word of theirs in the cause."""
    with pytest.raises(Exception) as raised:
        chat(proxy, model, word)
    failure = classify_exception(raised.value)
    assert failure is not None, raised.value
    assert (failure.category, failure.retry_after_s) == (category, wait_s)
    assert "LiteLLM" not in failure.cause
    assert "model group" not in failure.cause


def test_the_proxys_own_words(proxy: str) -> None:
    """Its own limit is a rate limit; a key that it does not know is the account's fault, whatever status it has."""
    chat(proxy, "once", "good")
    for key, model, category in ((MASTER_KEY, "once", C.RATE_LIMITED), ("sk-wrong", "gpt", C.AUTH)):
        with pytest.raises(Exception) as raised:
            chat(proxy, model, "good", key)
        failure = classify_exception(raised.value)
        assert failure is not None, raised.value
        assert failure.category is category


@pytest.mark.parametrize(
    ("name", "path", "body", "usage"),
    [
        (
            "openai",
            "/v1/chat/completions",
            {"model": "gpt", "messages": [{"role": "user", "content": "x"}]},
            Usage(3, 2),
        ),
        ("openai", "/v1/embeddings", {"model": "vectors", "input": ["x"]}, Usage(4, None)),
        (
            "anthropic",
            "/v1/messages",
            {"model": "claude", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
            Usage(3, 2),
        ),
        (
            "google",
            "/v1beta/models/gemini:generateContent",
            {"contents": [{"role": "user", "parts": [{"text": "x"}]}]},
            Usage(3, 2),
        ),
    ],
)
def test_its_doors(proxy: str, name: str, path: str, body: Any, usage: Usage) -> None:
    """Each API's own, as its own account."""
    env = {"OPENAI_BASE_URL": proxy, "ANTHROPIC_BASE_URL": proxy, "GOOGLE_GEMINI_BASE_URL": proxy}
    env |= dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"), MASTER_KEY)
    api = apis.api_named(name)
    with sighting() as seen:
        answer = apis.request(api, api.endpoint(env), path, body, PATIENCE_S)
    assert answer.status == 200
    assert seen.usage is not None
    assert (seen.usage.input_tokens, seen.usage.output_tokens or None) == (usage.input_tokens, usage.output_tokens)


@pytest.mark.worker
def test_a_file_through_the_proxy(proxy: str, behind: Upstream, tmp_path: Path) -> None:
    """Lines for three APIs; refusals of the proxy's providers are waited for, and each line is told as what it is."""

    def line(name: str, url: str, model: str, word: str) -> dict[str, Any]:
        text = f"<{word}>"
        body: dict[str, Any] = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": text}]}
        if "generateContent" in url:
            body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
        return {"custom_id": name, "method": "POST", "url": url, "body": body}

    run = Runner(
        tmp_path,
        proxy,
        MAISD_TIMEOUT_SECONDS="300",
        **dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"), MASTER_KEY),
    )
    run.write(
        [
            line("chat", "/v1/chat/completions", "gpt", "good"),
            line("message", "/v1/messages", "claude", "sick,1"),
            line("gemini", "/v1beta/models/gemini:generateContent", "", "sick,2"),
            line("again", "/v1/chat/completions", "gpt", "broken,1"),
            line("bad", "/v1/chat/completions", "gpt", "bad"),
            line("stream", "/v1beta/models/gemini:streamGenerateContent", "", "good"),
        ]
    )
    done = run(timeout_s=900.0)
    out = {one["custom_id"]: one for one in run.answers()}
    statuses = {name: (one["response"] or {}).get("status_code") for name, one in out.items()}
    assert statuses == {"chat": 200, "message": 200, "gemini": 200, "again": 200, "bad": 400, "stream": None}, (
        done.stderr
    )
    assert out["stream"]["error"]["code"] == "invalid_line"
    assert out["message"]["response"]["body"]["content"][0]["text"] == "hi"
    assert out["gemini"]["response"]["body"]["candidates"][0]["content"]["parts"][0]["text"] == "hi"
    assert (behind.said["sick,1"], behind.said["sick,2"], behind.said["broken,1"]) == (2, 3, 2)
    assert MASTER_KEY not in done.stderr + json.dumps(out)
