"""What does an OpenAI-shaped API (chat, responses, embeddings) want to hear, and what does its answer say?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ratelimit_worker.calls import Cost, Response, Usage
from ratelimit_worker.providers import http

PROVIDER = "openai"
BASE_URL = "https://api.openai.com/v1"

CHAT_PATH = "/chat/completions"
EMBEDDINGS_PATH = "/embeddings"
RESPONSES_PATH = "/responses"

#: Output tokens that a call is charged for when it states no maximum: more than most answers have, so a lane with a
#: token budget is not overrun, and little enough not to starve it. Settling corrects it by the usage that came back.
DEFAULT_OUTPUT_TOKENS = 512

#: An image, a sound or a file in a prompt: about what a picture of 1024 x 1024 costs; its base64 says nothing.
ATTACHMENT_TOKENS = 1_000

_BYTES_PER_TOKEN = 4
_MAX_TOKENS = 10_000_000
_ATTACHMENTS = frozenset({"image_url", "input_image", "image", "input_audio", "file", "input_file", "document"})


def endpoint(environment: Mapping[str, str], base_url: str | None = None) -> http.Endpoint:
    """Who we are to the API: `OPENAI_BASE_URL`, `OPENAI_API_KEY` or `OPENAI_API_KEY_FILE`, `OPENAI_ORG_ID`, ...

    Args:
        environment: The process's environment, as `config` read it.
        base_url: Instead of `OPENAI_BASE_URL`. The key goes there too, so it must not come out of a call's arguments.
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

    return http.endpoint(environment, prefix="OPENAI", default_base_url=BASE_URL, headers=headers, base_url=base_url)


def request(to: http.Endpoint, path: str, body: Any, timeout_s: float = http.READ_TIMEOUT_S) -> Response:
    """Send one request; `path` is as in a Batch line ("/v1/chat/completions") or below the base ("/embeddings").

    Raises:
        As `http.post`, and `BadInput` where `path` is no plain path.
    """
    return http.post(to.url(path), body, to.headers, timeout_s, provider=PROVIDER, usage=usage)


def cost(body: Any) -> Cost:
    """What the API will charge on admission: the prompt's bytes / 4 plus the most output that may come.

    The maximum is `max_completion_tokens`, `max_output_tokens` or `max_tokens`, times `n`; `DEFAULT_OUTPUT_TOKENS`
    where a body with a prompt states none, and 0 for embeddings. A lone `input` of plain text is taken for an embedding
    (a response may look the same: then settling adds what it used). Never raises; no known shape costs one request.
    """
    if not isinstance(body, Mapping):
        return Cost()
    prompt = [body.get(name) for name in ("messages", "input", "prompt", "instructions", "tools", "functions")]
    said = body.get("input")
    answers = (
        any(body.get(name) is not None for name in ("messages", "prompt", "instructions", "tools"))
        or "max_output_tokens" in body
        or (isinstance(said, list) and any(isinstance(item, Mapping) for item in said))
    )
    input_tokens = sum(estimated_tokens(part) for part in prompt if part is not None)
    stated = stated_tokens(body, "max_completion_tokens", "max_output_tokens", "max_tokens")
    output_tokens = stated if stated is not None else DEFAULT_OUTPUT_TOKENS if answers else 0
    choices = max(1, stated_tokens(body, "n") or 1)
    return Cost(input_tokens=input_tokens, output_tokens=min(_MAX_TOKENS, output_tokens * choices))


def usage(body: Any) -> Usage | None:
    """The tokens that the API counted; None where it said nothing."""
    counted = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(counted, Mapping):
        return None
    input_tokens = stated_tokens(counted, "prompt_tokens", "input_tokens")
    output_tokens = stated_tokens(counted, "completion_tokens", "output_tokens")
    return None if input_tokens is None and output_tokens is None else Usage(input_tokens, output_tokens)


def finish_reason(body: Any) -> str | None:
    """Why the first choice ended ("stop", "length", "content_filter", ...); of a response, its reason or status."""
    for choice in _objects(body, "choices"):
        return _string(choice.get("finish_reason"))
    if isinstance(body, Mapping):
        details = body.get("incomplete_details")
        reason = _string(details.get("reason")) if isinstance(details, Mapping) else None
        return reason or _string(body.get("status"))
    return None


def refusal(body: Any) -> str | None:
    """The text with which the model refused; None where it did not. It is the model's, so not fit for a log."""
    for choice in _objects(body, "choices"):
        message = choice.get("message")
        if isinstance(message, Mapping) and _string(message.get("refusal")):
            return _string(message.get("refusal"))
    for item in _objects(body, "output"):
        for part in _objects(item, "content"):
            if part.get("type") == "refusal":
                return _string(part.get("refusal")) or ""
    return None


def estimated_tokens(prompt: Any) -> int:
    """Tokens in a prompt, by its text: UTF-8 bytes / 4, rounded up; attachments by the piece, token ids one each."""
    size, tokens, waiting = 0, 0, [prompt]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            size += len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, Mapping):
            if part.get("type") in _ATTACHMENTS:
                tokens += ATTACHMENT_TOKENS
            else:
                waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, int | float) and not isinstance(part, bool):
            tokens += 1
    return min(_MAX_TOKENS, tokens + -(-size // _BYTES_PER_TOKEN))


def stated_tokens(body: Mapping[Any, Any], *names: str) -> int | None:
    """The first of the named fields that holds a count: a whole number from 0, at most 10 million."""
    for name in names:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return min(value, _MAX_TOKENS)
    return None


def _objects(body: Any, name: str) -> Iterator[Mapping[Any, Any]]:
    found = body.get(name) if isinstance(body, Mapping) else None
    if isinstance(found, list):
        yield from (item for item in found if isinstance(item, Mapping))


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
