"""Tasks that retry by themselves around a provider; a worker gets them with `-I tests.own_retries_app`."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Reject

from ratelimit_worker.app import llm_task
from ratelimit_worker.calls import Response
from ratelimit_worker.providers.http import ProviderRefused
from tests.fleet_app import _read, _write, app

SHARED: dict[str, Any] = {"app": app, "shared": False, "cache": False}


class Wrapped(Exception):
    """A team's own error around the provider's."""


def provider(name: str, status: int, fails: int, retry_after: str = "") -> int:
    """Fails so often with this status, then answers with the number of requests that it had before."""
    asked = len(_read(name))
    _write(name, str(status))
    if asked < fails:
        headers = {"retry-after": retry_after} if retry_after else {}
        raise ProviderRefused(Response(status=status, headers=headers, body={"error": {"message": "no"}}))
    return asked


@llm_task(**SHARED, lane="auto", bind=True, autoretry_for=(Exception,), max_retries=2)
def auto(self: Any, name: str, status: int, fails: int, retry_after: str = "") -> list[int]:
    """The commonest rule; Celery's default delay, 180 s."""
    return [provider(name, status, fails, retry_after), self.request.retries]


@llm_task(**SHARED, lane="backoff", bind=True, autoretry_for=(Exception,), retry_backoff=True, retry_jitter=False)
def backoff(self: Any, name: str, status: int, fails: int, retry_after: str = "") -> list[int]:
    """The same with Celery's backoff: a second, two, four."""
    return [provider(name, status, fails, retry_after), self.request.retries]


@llm_task(**SHARED, lane="never", bind=True, autoretry_for=(Exception,), max_retries=0)
def never(self: Any, name: str, status: int, fails: int, retry_after: str = "") -> list[int]:
    """A rule that allows no retry."""
    return [provider(name, status, fails, retry_after), self.request.retries]


@llm_task(**SHARED, lane="own", bind=True, max_retries=2)
def own(self: Any, how: str, name: str, status: int, fails: int, retry_after: str = "") -> list[int]:
    """Its own `self.retry`, in several ways."""
    try:
        return [provider(name, status, fails, retry_after), self.request.retries]
    except ProviderRefused as error:
        if how == "exc":
            raise self.retry(exc=error, countdown=0.01) from error
        if how == "no exc":
            raise self.retry(countdown=0.01) from error
        if how == "wrapped":
            raise self.retry(exc=Wrapped("no luck"), countdown=0.01) from error
        if how == "for later":
            raise self.retry(exc=error, countdown=2) from error
        if how == "other arguments":
            raise self.retry(args=("exc", name, status, fails), countdown=0.01, exc=error) from error
        if how == "no throw":
            self.retry(exc=error, countdown=0.01, throw=False)
            return [-1, self.request.retries]
        if how == "ignore":
            raise Ignore from error
        if how == "reject":
            raise Reject(error, requeue=True) from error
        raise


@llm_task(**SHARED, lane="fallback", bind=True, max_retries=1)
def fallback(self: Any, name: str, status: int, fails: int) -> list[int]:
    """Answers by itself when its retries are used up."""
    try:
        return [provider(name, status, fails), self.request.retries]
    except ProviderRefused as error:
        try:
            raise self.retry(countdown=0.01) from error
        except self.MaxRetriesExceededError:
            return [-1, self.request.retries]


@llm_task(**SHARED, lane="swallowed", bind=True, max_retries=1)
def swallowed(self: Any, name: str, status: int, fails: int) -> list[int]:
    """Whatever its retry raises, it goes on."""
    try:
        return [provider(name, status, fails), self.request.retries]
    except ProviderRefused as error:
        try:
            self.retry(exc=error, countdown=0.01)
        except Exception as word:
            raise Wrapped("it ends otherwise") from word
        return []
