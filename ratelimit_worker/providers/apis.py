"""Which APIs are spoken here, and how does a request for any of their paths go out? One name for each account."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ratelimit_worker.calls import Response
from ratelimit_worker.errors import BadInput
from ratelimit_worker.policy.endpoints import operation_of, provider_of
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.providers import anthropic, google, http, openai


class Api(Protocol):
    """A module that speaks an API."""

    PROVIDER: str
    ACCOUNT: http.Account

    def endpoint(self, environment: Mapping[str, str], base_url: str | None = None) -> http.Endpoint:
        """Who we are to it."""
        ...

    def size(self, body: Any, path: str = "") -> Size:
        """What a body says of its tokens."""
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
    """The API that a path belongs to, where nobody names a provider."""
    return APIS[provider_of(path)]


def size(body: Any, path: str) -> Size:
    """What a request says of its tokens, by the shape that its operation has, whoever answers it."""
    operation = operation_of(path)
    return APIS[operation.provider if operation is not None else openai.PROVIDER].size(body, path)


def request(api: Api, to: http.Endpoint, path: str, body: Any, timeout_s: float | None = None) -> Response:
    """Send one request for whatever path.

    Raises:
        As `http.send`.
    """
    return http.send(to, path, body, timeout_s, provider=api.PROVIDER)
