"""How does a client with a rate limiter of its own send a file? One httpx client, callers behind the limiter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import httpx
from batch import Arguments, work_off

_TRANSIENT = {500, 502, 503, 504, 529}


class Rate(Protocol):
    """What holds requests back."""

    def wait_s(self, now_s: float) -> float:
        """Seconds until the request may go."""
        ...

    def learn(self, now_s: float, refused: bool, /) -> None:
        """An answer came."""
        ...


def send_paced(
    given: Arguments,
    limiter: Callable[[float], Rate],
    *,
    may_retry: Callable[[], bool],
    answered: Callable[[bool], None],
    backoff_s: Callable[[int], float],
) -> None:
    """Have all callers send all calls, at most 10 attempts each.

    Args:
        limiter: Makes the limiter, given the time.
        may_retry: Asked before each retry.
        answered: Told of each answer, and whether it took a retry.
        backoff_s: Wait before a retry, from 0, seconds.
    """
    attempts = given.attempts or 10
    lock, turn, rate = threading.Lock(), threading.Lock(), limiter(time.monotonic())
    client = httpx.Client(
        base_url=given.base_url,
        headers={"authorization": "Bearer race"},
        timeout=600.0,
        limits=httpx.Limits(max_connections=given.callers, max_keepalive_connections=given.callers),
    )

    def once(body: dict[str, Any]) -> int | None:
        with turn:  # one waits at a time, so that a rate which falls holds for all that come after it
            with lock:
                wait_s = rate.wait_s(time.monotonic())
            time.sleep(wait_s)
        status: int | None
        try:
            status = client.post("/chat/completions", json=body).status_code
        except httpx.TransportError:
            status = None
        with lock:
            rate.learn(time.monotonic(), status == 429)
        return status

    def send(body: dict[str, Any]) -> int | None:
        for retry in range(attempts):
            status = once(body)
            if status is not None and status != 429 and status not in _TRANSIENT:
                with lock:
                    answered(retry > 0)
                return status
            with lock:
                again = retry + 1 < attempts and may_retry()
            if not again:
                return status
            time.sleep(backoff_s(retry))
        return None

    work_off(given, send)
