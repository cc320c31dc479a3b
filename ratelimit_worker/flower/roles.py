"""Who may do what: operators may press buttons and change things by Flower's API; viewers may only look."""

from __future__ import annotations

import base64
from collections.abc import Collection

from tornado import httputil, web

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: Requests that return answers, which may have content of prompts in them.
ANSWERS = "/api/task/result/"
_COOKIE_DAYS = 31  #: validity of Flower's login


def may_operate(name: str, operators: Collection[str]) -> bool:
    """Whether somebody may press buttons.

    Args:
        operators: Names; empty: everybody who is logged in.
    """
    return not operators or name in operators


def is_for_operators(request: httputil.HTTPServerRequest) -> bool:
    """Whether a request would change something, or ask for the answer of a call."""
    return request.method not in SAFE or ANSWERS in request.path


def claimed_name(request: httputil.HTTPServerRequest, cookie_secret: str) -> str:
    """The user that a request names, by basic auth or Flower's login; "": none. Flower itself checks the login."""
    kind, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if kind == "Basic":
        try:
            return base64.b64decode(credentials).decode().partition(":")[0]
        except ValueError:
            return ""
    cookie = request.cookies.get("user")
    known = cookie and web.decode_signed_value(cookie_secret, "user", cookie.value, max_age_days=_COOKIE_DAYS)
    return known.decode("utf-8", "replace") if known else ""
