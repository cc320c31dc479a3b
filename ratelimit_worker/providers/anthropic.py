"""Requests and answers of Anthropic's API, and of others with its format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratelimit_worker.calls import Response
from ratelimit_worker.policy.endpoints import ANTHROPIC, model_of, operation_of
from ratelimit_worker.policy.estimate import Size, most_output, text_tokens
from ratelimit_worker.policy.usage import finish_reason_of
from ratelimit_worker.providers import http

PROVIDER = ANTHROPIC
ACCOUNT = http.Account(
    provider=PROVIDER,
    keys=("ANTHROPIC_API_KEY",),
    address="ANTHROPIC_BASE_URL",
    base_url="https://api.anthropic.com",
    version="v1",
)
VERSION = "2023-06-01"

MESSAGES_PATH = "/v1/messages"


def endpoint(environment: Mapping[str, str], base_url: str | None = None) -> http.Endpoint:
    """Address and key for the API: `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY` or `ANTHROPIC_API_KEY_FILE`.

    Args:
        environment: The process's environment, as `config` read it.
        base_url: Instead of `ANTHROPIC_BASE_URL`; never from a call's arguments, since the key is sent there too.
    Raises:
        ConfigurationError, AuthenticationFailed: As in `http.endpoint`.
    """

    def headers(key: str | None) -> dict[str, str]:
        version = {"anthropic-version": VERSION}
        return version if key is None else {"x-api-key": key, **version}

    return http.endpoint(environment, ACCOUNT, headers, base_url)


def request(to: http.Endpoint, body: Any, path: str = MESSAGES_PATH, timeout_s: float | None = None) -> Response:
    """Send one request.

    Raises:
        As `http.send`.
    """
    return http.send(to, path, body, timeout_s, provider=PROVIDER)


def size(body: Any, path: str = MESSAGES_PATH) -> Size:
    """Estimate of a request's tokens: bytes / 4 of messages, system and tools, and `max_tokens`.

    The API requires `max_tokens`, and refuses a body without it. Never raises.
    """
    if not isinstance(body, Mapping):
        return Size(output_tokens=0)
    operation, model = operation_of(path), model_of(path, body)
    return Size(
        input_tokens=text_tokens(*map(body.get, ("messages", "system", "tools")), model=model or "claude"),
        output_tokens=0 if operation is not None and not operation.writes else most_output(body, "max_tokens"),
        model=model,
    )


def refusal(body: Any) -> str | None:
    """The text that came with a refusal, "" if there was none; None: there was no refusal. Must not be logged."""
    if not isinstance(body, Mapping) or finish_reason_of(body) != "refusal":
        return None
    content = body.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))
