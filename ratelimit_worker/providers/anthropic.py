"""What does an Anthropic-shaped API want to hear, and what does its answer say?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratelimit_worker.calls import Response, Usage
from ratelimit_worker.policy.endpoints import ANTHROPIC, model_of, operation_of
from ratelimit_worker.policy.estimate import Size, counted_tokens, most_output, text_tokens
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
    """Who we are to the API: `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY` or `ANTHROPIC_API_KEY_FILE`.

    Args:
        environment: The process's environment, as `config` read it.
        base_url: Instead of `ANTHROPIC_BASE_URL`. The key goes there too: it must not come out of a call's arguments.
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
    return http.send(to, path, body, timeout_s, provider=PROVIDER, usage=usage)


def size(body: Any, path: str = MESSAGES_PATH) -> Size:
    """What a body says of its tokens: bytes / 4 of messages, system and tools, and `max_tokens`.

    The API demands `max_tokens`, and refuses a body without it. Never raises.
    """
    if not isinstance(body, Mapping):
        return Size(output_tokens=0)
    operation, model = operation_of(path), model_of(path, body)
    return Size(
        input_tokens=text_tokens(*map(body.get, ("messages", "system", "tools")), model=model or "claude"),
        output_tokens=0 if operation is not None and not operation.writes else most_output(body, "max_tokens"),
        model=model,
    )


def usage(body: Any) -> Usage | None:
    """The tokens that the API counted against the budget: input, cache writes included; cache reads are free."""
    counted = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(counted, Mapping):
        return None
    input_tokens = counted_tokens(counted, "input_tokens")
    if input_tokens is not None:
        input_tokens += counted_tokens(counted, "cache_creation_input_tokens") or 0
    output_tokens = counted_tokens(counted, "output_tokens")
    return None if input_tokens is None and output_tokens is None else Usage(input_tokens, output_tokens)


def finish_reason(body: Any) -> str | None:
    """Why the answer ended ("end_turn", "max_tokens", "tool_use", "refusal", ...)."""
    reason = body.get("stop_reason") if isinstance(body, Mapping) else None
    return reason if isinstance(reason, str) else None


def refusal(body: Any) -> str | None:
    """The text that came with a refusal, "" where none did; None where there was no refusal. Not fit for a log."""
    if finish_reason(body) != "refusal":
        return None
    content = body.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))
