"""Requests and answers of Google's own API (Gemini: generateContent, embedContent, …)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratelimit_worker.calls import Response
from ratelimit_worker.policy.endpoints import GOOGLE, model_of, operation_of
from ratelimit_worker.policy.estimate import Size, most_output, stated_tokens, text_tokens
from ratelimit_worker.providers import http

PROVIDER = GOOGLE
ACCOUNT = http.Account(
    provider=PROVIDER,
    keys=("GOOGLE_API_KEY", "GEMINI_API_KEY"),  # in the order of google-genai
    address="GOOGLE_GEMINI_BASE_URL",
    base_url="https://generativelanguage.googleapis.com",
    version="v1beta",
)

_PROMPT = (
    *("contents", "systemInstruction", "system_instruction", "tools"),
    *("content", "requests", "generateContentRequest", "instances"),
)
_CONFIGS = ("generationConfig", "generation_config")


def endpoint(environment: Mapping[str, str], base_url: str | None = None) -> http.Endpoint:
    """Address and key for the API: `GOOGLE_GEMINI_BASE_URL`; `GOOGLE_API_KEY`, `GEMINI_API_KEY`, or one with `_FILE`.

    Args:
        environment: The process's environment, as `config` read it.
        base_url: Instead of `GOOGLE_GEMINI_BASE_URL`; never from a call's arguments, since the key is sent there too.
    Raises:
        ConfigurationError, AuthenticationFailed: As in `http.endpoint`.
    """

    def headers(key: str | None) -> dict[str, str]:
        return {} if key is None else {"x-goog-api-key": key}

    return http.endpoint(environment, ACCOUNT, headers, base_url)


def request(to: http.Endpoint, path: str, body: Any, timeout_s: float | None = None) -> Response:
    """Send one request; its path contains the model ("/v1beta/models/gemini-2.5-flash:generateContent").

    Raises:
        As `http.send`.
    """
    return http.send(to, path, body, timeout_s, provider=PROVIDER)


def size(body: Any, path: str = "") -> Size:
    """Estimate of a request's tokens: the prompt's bytes / 4, and the most output, for each of `candidateCount`.

    The model is that of the path. Never raises; a body of unknown shape has no tokens.
    """
    if not isinstance(body, Mapping):
        return Size(output_tokens=0)
    model, operation = model_of(path, body), operation_of(path)
    config = next((found for name in _CONFIGS if isinstance(found := body.get(name), Mapping)), {})
    stated = most_output({**config, **{name: body[name] for name in _CONFIGS if name in body}}, *_LIMITS)
    if operation is not None and not operation.writes:
        stated = 0
    return Size(
        input_tokens=text_tokens(*map(body.get, _PROMPT), model=model),
        output_tokens=stated,
        choices=max(1, stated_tokens(config, "candidateCount", "candidate_count") or 1),
        model=model,
    )


_LIMITS = ("maxOutputTokens", "max_output_tokens")
