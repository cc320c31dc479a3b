"""Does the base URL lead to the API? A 404 from a path that has not answered yet ends the run before each line fails.

A line's url may be a whole URL if it begins with that base URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ratelimit_worker.errors import BadInput, CallFailed
from ratelimit_worker.providers import http
from ratelimit_worker.providers.apis import api_of


class WrongAddress(BadInput):
    """There is no API at the base URL. Raised once, instead of one failure for each line."""


class Addresses:
    """Which paths of the file's lines have answered so far.

    Args:
        environ: Environment variables of the workers, with their base URLs.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._there: set[str] = set()  #: paths that have answered a request

    def hear(self, path: str, value: Any, error: BaseException | None = None) -> None:
        """Take note of a line's answer.

        Args:
            value: What the task `batch_line` returned.
            error: What it raised.
        Raises:
            WrongAddress: it is a 404 that does not concern a model and came in no good answer, and this path has not
                answered otherwise so far.
        """
        if path in self._there:
            return
        if error is not None:
            if isinstance(error, CallFailed) and error.status == 404:
                raise WrongAddress(error.cause)
            return
        nothing_there = isinstance(value, Mapping) and value.get("status_code") == 404 and "within" not in value
        if not nothing_there or _is_about_a_model(value.get("body")):
            self._there.add(path)
            return
        base = self._base(path)
        last = urlsplit(base.rstrip("/")).path.rpartition("/")[2]
        versioned = last[:1] == "v" and last[1:2].isdigit()
        hint = "is that the API's base URL?" if versioned or "/v1/" in path else "does it lack /v1?"
        raise WrongAddress(f"HTTP 404: nothing answers {path} below {base}; {hint}")

    def below(self, url: str) -> str | None:
        """The path of a whole URL below the base URL that it would be sent to; None: it leads elsewhere.

        A file that was written for the provider's own address may be sent to another one, as with any SDK.
        """
        for base in (self._base(url), _account(url).base_url):
            path = _rest(url, base)
            if path is not None:
                return path
        return None

    def _base(self, path: str) -> str:
        return http.base_url_of(self._environ, _account(path))


def _account(url: str) -> http.Account:
    """The account at the provider whose API has this path or URL."""
    return api_of(urlsplit(url).path if "://" in url else url).ACCOUNT


def _rest(url: str, base: str) -> str | None:
    """The part of a URL after a base URL; None: it does not begin with it."""
    try:
        whole, root = urlsplit(url), urlsplit(base)
        same = _origin(whole) == _origin(root)
    except ValueError:  # not a valid port
        return None
    below, path = root.path.rstrip("/"), whole.path
    if not same or whole.fragment or "@" in whole.netloc:
        return None
    if below and path.startswith(f"{below}/"):
        path = path[len(below) :]
    elif below.count("/") > 1:  # the base is a path of a gateway, and the URL is not below it
        return None
    return f"{path}?{whole.query}" if whole.query else path


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _is_about_a_model(body: Any) -> bool:
    """Whether a 404 comes from the API itself, which knows the path and does not know the model."""
    error = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return isinstance(error, str) and "model" in error.lower()
    return any("model" in str(error.get(name)).lower() for name in ("code", "message", "param"))
