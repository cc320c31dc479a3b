"""Which calls come with the product? Chat, embeddings and messages over HTTP, and one line of a Batch file.

`chat_completion.delay(model="gpt-4o", messages=[...], max_tokens=200)`: the arguments are the provider's own request
body. Where requests go and as whom says the environment alone (`OPENAI_BASE_URL`, `OPENAI_API_KEY`, …): an address or a
key never comes out of a call's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratelimit_worker.app import ensure_app, llm_task
from ratelimit_worker.calls import Category
from ratelimit_worker.config import environment
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.policy.retry import RULES
from ratelimit_worker.providers import anthropic, openai
from ratelimit_worker.providers.http import ProviderRefused

ensure_app()

#: Failures after which a call waits in its lane; a Batch line has no answer yet.
WAITED_FOR = frozenset({Category.RATE_LIMITED, Category.QUOTA_EXHAUSTED})


def _openai_size(*args: Any, **body: Any) -> Size:
    return openai.size(body)


def _anthropic_size(*args: Any, **body: Any) -> Size:
    return anthropic.size(body)


def _line_size(url: str = "", body: Any = None, **_: Any) -> Size:
    return anthropic.size(body) if is_anthropic(url) else openai.size(body)


@llm_task(name="ratelimit_worker.chat_completion", provider=openai.PROVIDER, cost=_openai_size)
def chat_completion(**body: Any) -> Any:
    """One chat completion of an OpenAI-shaped API; returns the answer's body.

    Raises:
        CallFailed: the provider gave none, after all retries.
    """
    return openai.request(openai.endpoint(environment()), openai.CHAT_PATH, body).body


@llm_task(name="ratelimit_worker.embedding", provider=openai.PROVIDER, cost=_openai_size)
def embedding(**body: Any) -> Any:
    """Embeddings of an OpenAI-shaped API; returns the answer's body.

    Raises:
        CallFailed: as `chat_completion`.
    """
    return openai.request(openai.endpoint(environment()), openai.EMBEDDINGS_PATH, body).body


@llm_task(name="ratelimit_worker.message", provider=anthropic.PROVIDER, cost=_anthropic_size)
def message(**body: Any) -> Any:
    """One message of an Anthropic-shaped API; returns the answer's body.

    Raises:
        CallFailed: as `chat_completion`.
    """
    return anthropic.request(anthropic.endpoint(environment()), body).body


# Whoever sends a Batch file wants each of its lines asked, the same question twice too.
@llm_task(name="ratelimit_worker.batch_line", cost=_line_size, cache=False)
def batch_line(url: str, body: Any) -> dict[str, Any]:
    """One line of a Batch file → {"status_code", "request_id", "body"}, also where the provider refuses it for good.

    Args:
        url: The line's path, such as "/v1/chat/completions".
    Raises:
        CallFailed: the provider gave no answer at all, after all retries.
    """
    try:
        if is_anthropic(url):
            answer = anthropic.request(anthropic.endpoint(environment()), body, url)
        else:
            answer = openai.request(openai.endpoint(environment()), url, body)
    except ProviderRefused as refused:
        failure = classify_response(refused.response)
        if failure is None or failure.category in RULES or failure.category in WAITED_FOR:
            raise
        answer = refused.response
    return {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}


def is_anthropic(url: str) -> bool:
    """Whether a path is Anthropic's."""
    return url.rstrip("/").endswith(anthropic.MESSAGES_PATH)


def lane_of_line(url: str, body: Any) -> str:
    """The lane of a Batch line: provider and model, as for the other built-in tasks."""
    model = body.get("model") if isinstance(body, Mapping) else None
    provider = anthropic.PROVIDER if is_anthropic(url) else openai.PROVIDER
    return f"{provider}:{model}" if isinstance(model, str) and model else "default"
