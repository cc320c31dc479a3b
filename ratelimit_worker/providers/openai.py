"""Requests and answers of OpenAI's API, and of others with its format (chat, responses, embeddings)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ratelimit_worker.calls import Response
from ratelimit_worker.policy.endpoints import OPENAI, model_of, operation_of
from ratelimit_worker.policy.estimate import Size, embeds, most_output, stated_tokens, text_tokens
from ratelimit_worker.providers import http

PROVIDER = OPENAI
ACCOUNT = http.Account(
    provider=PROVIDER, keys=("OPENAI_API_KEY",), address="OPENAI_BASE_URL", base_url="https://api.openai.com/v1"
)

CHAT_PATH = "/chat/completions"
EMBEDDINGS_PATH = "/embeddings"

_PROMPT = (
    *("messages", "input", "prompt", "instructions", "tools", "functions", "response_format"),
    *("message", "chat_history", "preamble"),  # Cohere's
    *("inputs", "texts", "documents", "query"),  # Voyage, Cohere and rerankers, in this format
    *("file", "image", "images", "mask"),
)


def endpoint(environment: Mapping[str, str], base_url: str | None = None) -> http.Endpoint:
    """Address and key for the API: `OPENAI_BASE_URL`, `OPENAI_API_KEY` or `OPENAI_API_KEY_FILE`, `OPENAI_ORG_ID`, ...

    Args:
        environment: The process's environment, as `config` read it.
        base_url: Instead of `OPENAI_BASE_URL`; never from a call's arguments, since the key is sent there too.
    Raises:
        ConfigurationError, AuthenticationFailed: As in `http.endpoint`.
    """

    def headers(key: str | None) -> dict[str, str]:
        named = {
            "openai-organization": environment.get("OPENAI_ORG_ID", ""),
            "openai-project": environment.get("OPENAI_PROJECT_ID", ""),
        }
        known = {name: value for name, value in named.items() if value}
        return known if key is None else {"authorization": f"Bearer {key}", **known}

    return http.endpoint(environment, ACCOUNT, headers, base_url)


def request(to: http.Endpoint, path: str, body: Any, timeout_s: float | None = None) -> Response:
    """Send one request; `path` is as in a Batch line ("/v1/chat/completions") or below the base ("/embeddings").

    Raises:
        As `http.send`.
    """
    return http.send(to, path, body, timeout_s, provider=PROVIDER)


def size(body: Any, path: str = "") -> Size:
    """Estimate of a request's tokens: the prompt's bytes / 4, and the most output that may come, for each of `n`.

    The maximum is `max_completion_tokens`, `max_output_tokens` or `max_tokens`; 0 for embeddings and other operations
    without output, recognised by the path or, without one, by the body's fields. Never raises; a body of unknown shape
    has no tokens.
    """
    if not isinstance(body, Mapping):
        return Size(output_tokens=0)
    operation, model = operation_of(path), model_of(path, body)
    stated = most_output(body, "max_completion_tokens", "max_output_tokens", "max_tokens")
    if operation is not None and not operation.writes:
        stated = 0
    elif stated is None:
        asks_nothing = all(body.get(name) is None for name in _PROMPT)
        stated = 0 if asks_nothing or (operation is None and embeds(body)) else None
    return Size(
        input_tokens=text_tokens(*map(body.get, _PROMPT), model=model),
        output_tokens=stated,
        choices=max(1, stated_tokens(body, "n") or 1),
        model=model,
    )


def refusal(body: Any) -> str | None:
    """The text with which the model refused; None: it did not. It is the model's text, so it must not be logged."""
    for choice in _objects(body, "choices"):
        message = choice.get("message")
        if isinstance(message, Mapping) and _string(message.get("refusal")):
            return _string(message.get("refusal"))
    for item in _objects(body, "output"):
        for part in _objects(item, "content"):
            if part.get("type") == "refusal":
                return _string(part.get("refusal")) or ""
    return None


def _objects(body: Any, name: str) -> Iterator[Mapping[Any, Any]]:
    found = body.get(name) if isinstance(body, Mapping) else None
    if isinstance(found, list):
        yield from (item for item in found if isinstance(item, Mapping))


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
