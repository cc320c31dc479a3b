"""Reads request bodies, and writes completions and error bodies, in the formats of OpenAI and Anthropic.

The answer to a body is a function of the body and the seed: the same text and the same usage every time. It never
echoes the prompt.
"""

from __future__ import annotations

import math
from enum import StrEnum
from hashlib import blake2b
from random import Random
from typing import Any

import msgspec

from ratelimit_worker.calls import Cost
from ratelimit_worker.simulate.scenario import Fault

#: Output tokens that a request without max_tokens is charged.
DEFAULT_MAX_TOKENS = 256
#: Longest answer, even if max_tokens allows more.
LONGEST_ANSWER_TOKENS = 2048
_DEFAULT_DIMENSIONS = 16
_LARGEST_DIMENSIONS = 4096
_LARGEST_MAX_TOKENS = 2**31 - 1

_WORDS = (
    "the a this that each most every another first next last early late small large plain careful steady quiet open "
    "river garden letter market bridge engine window season teacher harbour mountain kitchen paper signal method "
    "answer reason example question result number measure pattern balance change effort moment detail purpose keeps "
    "gives takes makes holds shows brings leaves begins follows carries returns explains compares prepares slowly "
    "quickly often rarely usually clearly together apart again enough almost perhaps instead therefore because and "
    "but or so while although under over between beside after before during without within across toward"
)
#: An answer is a slice of this list that begins at one of the first 4096 words: far cheaper than drawing each word.
_POOL = Random(7).choices(_WORDS.split(), k=4096 + LONGEST_ANSWER_TOKENS)


class Endpoint(StrEnum):
    """The paths that are served."""

    CHAT = "/v1/chat/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"


class Asked(msgspec.Struct):
    """The fields of a request's body that are read."""

    model: str = "simulated"
    messages: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    stream: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def cost(self, endpoint: Endpoint) -> Cost:
        """What the request is charged on admission: a token per 4 bytes of prompt (as JSON), and max_tokens."""
        prompt_bytes = len(self.messages) + len(self.system) + len(self.input)
        return Cost(input_tokens=math.ceil(prompt_bytes / 4), output_tokens=self._most(endpoint))

    def name(self, field: str) -> str | None:
        """A string from the metadata; None: the field is missing or not a string."""
        value = (self.metadata or {}).get(field)
        return value if isinstance(value, str) else None

    def _most(self, endpoint: Endpoint) -> int:
        if endpoint is Endpoint.EMBEDDINGS:
            return 0
        for given in (self.max_completion_tokens, self.max_tokens, self.max_output_tokens):
            if given is not None:
                return given
        return DEFAULT_MAX_TOKENS


_ASKED = msgspec.json.Decoder(Asked)


def read(endpoint: Endpoint, body: bytes) -> Asked | str:
    """The request's decoded body, or one line that says why the provider answers 400."""
    try:
        body.decode()  # msgspec does not check fields that stay raw, which may be invalid UTF-8
        asked = _ASKED.decode(body)
        if endpoint is Endpoint.EMBEDDINGS and asked.input:
            msgspec.json.decode(asked.input)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"We could not parse the JSON body of your request. ({error})"
    prompt = "messages" if endpoint in {Endpoint.CHAT, Endpoint.MESSAGES} else "input"
    if bytes(getattr(asked, prompt)) in {b"", b"null", b"[]"}:
        return f"Missing required parameter: '{prompt}'."
    if endpoint is Endpoint.MESSAGES and asked.max_tokens is None:
        return "max_tokens: Field required"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        given = getattr(asked, name)
        if given is not None and not 1 <= given <= _LARGEST_MAX_TOKENS:
            return f"Invalid '{name}': expected a value from 1 to {_LARGEST_MAX_TOKENS}."
    if asked.dimensions is not None and not 1 <= asked.dimensions <= _LARGEST_DIMENSIONS:
        return f"Invalid 'dimensions': expected 1 to {_LARGEST_DIMENSIONS}, but got {asked.dimensions}."
    if asked.stream:
        return "Streaming is not simulated: leave 'stream' out."
    return asked


def answer(
    endpoint: Endpoint,
    asked: Asked,
    *,
    digest: bytes,
    seed: int,
    answer_id: str,
    created: int,
    cached_share: float = 0.0,
) -> tuple[bytes, Cost]:
    """A completion (or embeddings) as JSON, and the usage in it.

    Args:
        digest: sha256 of the request's body.
        answer_id: Unique per request.
        created: Seconds since the epoch.
        cached_share: Share of the input that the provider has cached, 0 to 1.
    """
    charged = asked.cost(endpoint)
    if endpoint is Endpoint.EMBEDDINGS:
        return _embeddings(asked, charged.input_tokens, seed), Cost(input_tokens=charged.input_tokens)
    text, length = _text(digest, seed, charged.output_tokens)
    full = length >= charged.output_tokens
    usage = Cost(input_tokens=charged.input_tokens, output_tokens=length)
    write = {Endpoint.CHAT: _chat, Endpoint.RESPONSES: _response, Endpoint.MESSAGES: _message}[endpoint]
    written = write(asked.model, text, full, usage, answer_id, created)
    if cached := cached_tokens(usage.input_tokens, cached_share):
        _tell_cached(written["usage"], endpoint, cached)
    return msgspec.json.encode(written), usage


def cached_tokens(input_tokens: int, share: float) -> int:
    """Input tokens that the provider has cached; `share`: 0 to 1."""
    return int(input_tokens * share)


def usage_told(input_tokens: int, output_tokens: int, cached: int) -> dict[str, Any]:
    """The usage of a request, as in OpenAI's chat completions."""
    told: dict[str, Any] = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    if cached:
        _tell_cached(told, Endpoint.CHAT, cached)
    return told


def _tell_cached(usage: dict[str, Any], endpoint: Endpoint, cached: int) -> None:
    if endpoint is Endpoint.MESSAGES:  # Anthropic's input_tokens do not include cached ones
        usage["input_tokens"] -= cached
        usage["cache_read_input_tokens"] = cached
    elif endpoint is Endpoint.RESPONSES:
        usage["input_tokens_details"] = {"cached_tokens": cached}
    else:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}


def _text(digest: bytes, seed: int, most_tokens: int) -> tuple[str, int]:
    """An answer of a quarter to all of the maximum, one word a token, and its tokens; each has another first word."""
    drawn = blake2b(digest, digest_size=24, key=str(seed).encode()[:64]).digest()
    longest = min(most_tokens, LONGEST_ANSWER_TOKENS)
    shortest = max(1, longest // 4)
    length = shortest + int.from_bytes(drawn[:8]) % (longest - shortest + 1)
    start = int.from_bytes(drawn[8:16]) % 4096
    return " ".join([drawn[16:].hex(), *_POOL[start : start + length - 1]]), length


def _chat(model: str, text: str, full: bool, usage: Cost, answer_id: str, created: int) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if full else "stop",
            }
        ],
        "usage": usage_told(usage.input_tokens, usage.output_tokens, 0),
        "system_fingerprint": "fp_simulated",
    }


def _response(model: str, text: str, full: bool, usage: Cost, answer_id: str, created: int) -> dict[str, Any]:
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": created,
        "status": "incomplete" if full else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if full else None,
        "model": model,
        "output": [
            {
                "type": "message",
                "id": f"msg_{answer_id}",
                "status": "incomplete" if full else "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.tokens,
        },
    }


def _message(model: str, text: str, full: bool, usage: Cost, answer_id: str, created: int) -> dict[str, Any]:
    del created  # Anthropic's answers do not have it
    return {
        "id": f"msg_{answer_id}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "max_tokens" if full else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
    }


def _embeddings(asked: Asked, input_tokens: int, seed: int) -> bytes:
    given = msgspec.json.decode(asked.input)
    # A text or one list of tokens is one input; a list of either is many.
    many = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    size = asked.dimensions or _DEFAULT_DIMENSIONS
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(item, size, seed)}
        for index, item in enumerate(given if many else [given])
    ]
    usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _vector(item: object, size: int, seed: int) -> list[float]:
    """A vector of length 1 that depends only on the input and the seed."""
    chance = Random(blake2b(msgspec.json.encode(item), digest_size=16, key=str(seed).encode()[:64]).digest())
    raw = [chance.gauss(0.0, 1.0) for _ in range(size)]
    length = math.hypot(*raw)
    return [value / length for value in raw]


# --- errors ---------------------------------------------------------------------------------------------------------

_HTML = "text/html"
_JSON = "application/json"
_DIMENSION_WORDS = {
    "requests": ("requests per min (RPM)", "requests per minute"),
    "tokens": ("tokens per min (TPM)", "tokens per minute"),
    "input_tokens": ("input tokens per min (TPM)", "input tokens per minute"),
    "output_tokens": ("output tokens per min (TPM)", "output tokens per minute"),
}
#: Fault -> message, OpenAI's type and code, Anthropic's type.
_ERRORS: dict[Fault, tuple[str, str, str | None, str]] = {
    Fault.BAD_REQUEST: (
        "The request was rejected as scripted.",
        "invalid_request_error",
        None,
        "invalid_request_error",
    ),
    Fault.UNAUTHORIZED: (
        "Incorrect API key provided.",
        "invalid_request_error",
        "invalid_api_key",
        "authentication_error",
    ),
    Fault.PAYMENT_REQUIRED: ("Payment is required.", "insufficient_quota", "billing_not_active", "billing_error"),
    Fault.FORBIDDEN: (
        "Your key may not use this resource.",
        "invalid_request_error",
        "permission_denied",
        "permission_error",
    ),
    Fault.NOT_FOUND: ("The model does not exist.", "invalid_request_error", "model_not_found", "not_found_error"),
    Fault.REQUEST_TIMEOUT: ("The request took too long to arrive.", "timeout", None, "timeout_error"),
    Fault.CONFLICT: ("The resource was changed by another request.", "conflict_error", None, "conflict_error"),
    Fault.TOO_LARGE: ("The request is too large.", "invalid_request_error", None, "request_too_large"),
    Fault.UNPROCESSABLE: (
        "The request cannot be processed.",
        "invalid_request_error",
        None,
        "invalid_request_error",
    ),
    Fault.RATE_LIMITED: ("Rate limit reached.", "requests", "rate_limit_exceeded", "rate_limit_error"),
    Fault.SERVER_ERROR: (
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
        None,
        "api_error",
    ),
    Fault.UNAVAILABLE: (
        "The engine is currently overloaded, please try again later.",
        "server_error",
        None,
        "api_error",
    ),
    Fault.OVERLOADED: ("Overloaded", "server_error", "overloaded", "overloaded_error"),
}
_SAME_AS = {Fault.AUTH: Fault.UNAUTHORIZED, Fault.OUTAGE: Fault.UNAVAILABLE}


def fault_answer(fault: Fault, anthropic: bool, request_id: str) -> tuple[int, str, bytes]:
    """Status, content type and body of a fault that is an HTTP answer other than 200."""
    if fault is Fault.QUOTA:
        if anthropic:  # a 400, not a status of its own
            message = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
            return 400, _JSON, anthropic_error("invalid_request_error", message, request_id)
        message = "You exceeded your current quota, please check your plan and billing details."
        return 429, _JSON, openai_error(message, "insufficient_quota", "insufficient_quota")
    if fault in {Fault.BAD_GATEWAY, Fault.GATEWAY_TIMEOUT}:  # the proxy in front of the engine answers in HTML
        title = "502 Bad Gateway" if fault is Fault.BAD_GATEWAY else "504 Gateway Time-out"
        page = f"<html><head><title>{title}</title></head><body><center><h1>{title}</h1></center></body></html>\r\n"
        return int(title[:3]), _HTML, page.encode()
    as_if = _SAME_AS.get(fault, fault)
    message, kind, code, anthropic_kind = _ERRORS[as_if]
    body = anthropic_error(anthropic_kind, message, request_id) if anthropic else openai_error(message, kind, code)
    return int(as_if.value), _JSON, body


def refusal(
    *,
    dimension: str,
    limit: float,
    requested: float,
    retry_after_s: float,
    model: str,
    anthropic: bool,
    request_id: str,
    words: bool = True,
) -> bytes:
    """The body of a 429 of the rate limit: the budget of a dimension of `calls.DIMENSIONS` is used up.

    Args:
        limit: Units a minute.
        requested: Units that the request would cost.
        retry_after_s: inf: it can never pass.
        words: Whether the message names dimension and limit.
    """
    if not words:
        message = "Slow down."
        if anthropic:
            return anthropic_error("rate_limit_error", message, request_id)
        return msgspec.json.encode({"error": {"message": message, "code": "rate_limit_exceeded"}})
    openai_words, anthropic_words = _DIMENSION_WORDS[dimension]
    if anthropic:
        message = f"This request would exceed your organization's rate limit of {round(limit):,} {anthropic_words}."
        return anthropic_error("rate_limit_error", message, request_id)
    kind = "requests" if dimension == "requests" else "tokens"
    told = f"in organization org-simulated on {openai_words}: Limit {round(limit)}"
    if math.isinf(retry_after_s):
        message = f"Request too large for {model} {told}, Requested {round(requested)}."
    else:
        again = f"{math.ceil(retry_after_s * 1000)}ms" if retry_after_s < 1 else f"{retry_after_s:.3f}s"
        message = (
            f"Rate limit reached for {model} {told}, Used {round(limit)}, Requested {round(requested)}. "
            f"Please try again in {again}."
        )
    return openai_error(message, kind, "rate_limit_exceeded")


def crowded(*, bound: int | None, model: str, anthropic: bool, request_id: str) -> bytes:
    """The body of a 429 since `bound` requests are in flight; None: the message does not name this reason."""
    if anthropic:
        about = "concurrent connections" if bound is not None else "acceleration limit"
        message = f"Number of {about} has exceeded your rate limit. Please try again later."
        return anthropic_error("rate_limit_error", message, request_id)
    if bound is None:
        return openai_error(f"Rate limit reached for {model}. Please try again later.", "", "rate_limit_exceeded")
    message = f"Too many concurrent requests for {model} in organization org-simulated: Limit {bound}."
    return openai_error(message, "concurrency", "rate_limit_exceeded")


def openai_error(message: str, kind: str, code: str | None) -> bytes:
    """An error body in OpenAI's shape."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def anthropic_error(kind: str, message: str, request_id: str) -> bytes:
    """An error body in Anthropic's shape."""
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})
