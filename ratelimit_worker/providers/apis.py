"""The known APIs, by name, and one way to send a request to any of their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ratelimit_worker.calls import Response
from ratelimit_worker.errors import BadInput
from ratelimit_worker.policy.endpoints import operation_of, provider_of
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.providers import anthropic, google, http, openai


class Api(Protocol):
    """A module for one API."""

    PROVIDER: str
    ACCOUNT: http.Account

    def endpoint(self, environment: Mapping[str, str], base_url: str | None = None) -> http.Endpoint:
        """Address and key for it."""
        ...

    def size(self, body: Any, path: str = "") -> Size:
        """Estimate of a request's tokens."""
        ...


APIS: Mapping[str, Api] = {openai.PROVIDER: openai, anthropic.PROVIDER: anthropic, google.PROVIDER: google}


def api_named(provider: Any) -> Api:
    """The API of a provider.

    Raises:
        BadInput: there is none of that name.
    """
    api = APIS.get(provider) if isinstance(provider, str) else None
    if api is None:
        raise BadInput(f"provider={provider!a:.60}: use {', '.join(APIS)}")
    return api


def api_of(path: str) -> Api:
    """The API that a path belongs to, if no provider is named."""
    return APIS[provider_of(path)]


def size(body: Any, path: str) -> Size:
    """Estimate of a request's tokens, by the format of its operation, whichever provider answers."""
    operation = operation_of(path)
    return APIS[operation.provider if operation is not None else openai.PROVIDER].size(body, path)


def request(api: Api, to: http.Endpoint, path: str, body: Any, timeout_s: float | None = None) -> Response:
    """Send one request to any path.

    Raises:
        As `http.send`.
    """
    return http.send(to, path, body, timeout_s, provider=api.PROVIDER)
