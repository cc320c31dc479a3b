"""Which calls come with the product? Chat, embeddings and messages over HTTP, and one line of a Batch file.

`chat_completion.delay(model="gpt-4o", messages=[...], max_tokens=200)`: the arguments are the provider's own request
body. Where requests go and as whom says the environment alone (`OPENAI_BASE_URL`, `OPENAI_API_KEY`, …): an address or a
key never comes out of a call's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ratelimit_worker.app import ensure_app, llm_task
from ratelimit_worker.calls import Category, Response
from ratelimit_worker.config import environment
from ratelimit_worker.errors import AuthenticationFailed, BadInput
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.completion import flaw_of, streams
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.providers import anthropic, openai
from ratelimit_worker.providers.http import Endpoint, KeyUnusable, ProviderRefused, wait_for_key

ensure_app()

#: What the provider says of a request itself: the answer to a Batch line. All else is nobody's answer.
REFUSALS = frozenset({Category.INVALID_REQUEST, Category.CONTENT_FILTERED})
#: Status of a refusal inside a 200 that tells none.
_UNTOLD_STATUS = 400


# The sizes are asked for when a call is made, so a stream is refused before anything waits or is sent.
def _openai_size(*args: Any, **body: Any) -> Size:
    _check_whole("", body)
    return openai.size(body)


def _anthropic_size(*args: Any, **body: Any) -> Size:
    _check_whole("", body)
    return anthropic.size(body)


def _line_size(url: str = "", body: Any = None, **_: Any) -> Size:
    _check_whole(url, body)
    return anthropic.size(body) if is_anthropic(url) else openai.size(body)


def _check_whole(url: str, body: Any) -> None:
    streamed = streams(url, body)
    if streamed is not None:
        raise BadInput(f"{streamed} asks for a stream, and the whole answer is needed; leave it out")


def _endpoint(provider: Any) -> Endpoint:
    """Where requests of a provider go, as `environment` says it now.

    Raises:
        AuthenticationFailed: there is no key, or its file holds none for longer than a moment: no fault of the call's.
    """
    try:
        return wait_for_key(lambda: provider.endpoint(environment()))
    except KeyUnusable as error:
        raise AuthenticationFailed(str(error)) from error


@llm_task(name="ratelimit_worker.chat_completion", provider=openai.PROVIDER, cost=_openai_size)
def chat_completion(**body: Any) -> Any:
    """One chat completion of an OpenAI-shaped API; returns the answer's body.

    Raises:
        CallFailed: the provider gave none, after all retries.
    """
    return openai.request(_endpoint(openai), openai.CHAT_PATH, body).body


@llm_task(name="ratelimit_worker.embedding", provider=openai.PROVIDER, cost=_openai_size)
def embedding(**body: Any) -> Any:
    """Embeddings of an OpenAI-shaped API; returns the answer's body.

    Raises:
        CallFailed: as `chat_completion`.
    """
    return openai.request(_endpoint(openai), openai.EMBEDDINGS_PATH, body).body


@llm_task(name="ratelimit_worker.message", provider=anthropic.PROVIDER, cost=_anthropic_size)
def message(**body: Any) -> Any:
    """One message of an Anthropic-shaped API; returns the answer's body.

    Raises:
        CallFailed: as `chat_completion`.
    """
    return anthropic.request(_endpoint(anthropic), body).body


# Whoever sends a Batch file wants each of its lines asked, the same question twice too.
@llm_task(name="ratelimit_worker.batch_line", cost=_line_size, cache=False)
def batch_line(url: str, body: Any) -> dict[str, Any]:
    """One line of a Batch file → {"status_code", "request_id", "body"}, also where the provider refuses that line.

    Args:
        url: The line's path, such as "/v1/chat/completions".
    Raises:
        CallFailed: the provider gave no answer, after all retries, or does not answer this account, whatever it asks
            (`AuthenticationFailed`, `QuotaExhausted`).
    """
    try:
        if is_anthropic(url):
            answer = anthropic.request(_endpoint(anthropic), body, url)
        else:
            answer = openai.request(_endpoint(openai), url, body)
    except ProviderRefused as refused:
        answer = _refusal(refused.response)
    return {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}


def _refusal(response: Response) -> Response:
    """The provider's own refusal of a line, with the status that it means.

    Raises:
        ProviderRefused: it is no word about the line.
    """
    if response.status < 300:  # the provider behind said no, within a 200
        flaw = flaw_of(response.body, response.headers, response.path)
        status = flaw.status if flaw is not None and flaw.status is not None else response.status
        response = replace(response, status=status)
    failure = classify_response(response)
    if failure is None or failure.category not in REFUSALS:
        raise ProviderRefused(response)
    return replace(response, status=_UNTOLD_STATUS) if response.status < 300 else response


def is_anthropic(url: str) -> bool:
    """Whether a path is Anthropic's."""
    return url.rstrip("/").endswith(anthropic.MESSAGES_PATH)


def lane_of_line(url: str, body: Any) -> str:
    """The lane of a Batch line: provider and model, as for the other built-in tasks."""
    model = body.get("model") if isinstance(body, Mapping) else None
    provider = anthropic.PROVIDER if is_anthropic(url) else openai.PROVIDER
    return f"{provider}:{model}" if isinstance(model, str) and model else "default"
