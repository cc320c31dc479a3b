"""How a client with its own rate limiter sends a file: one httpx client, and callers that wait for the limiter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import httpx
from batch import Arguments, work_off

_TRANSIENT = {500, 502, 503, 504, 529}


class Rate(Protocol):
    """A client's rate limiter."""

    def wait_s(self, now_s: float) -> float:
        """Seconds until the request may go."""
        ...

    def learn(self, now_s: float, refused: bool, /) -> None:
        """Take note of an answer, and whether it was a refusal."""
        ...


def send_paced(
    given: Arguments,
    limiter: Callable[[float], Rate],
    *,
    may_retry: Callable[[], bool],
    answered: Callable[[bool], None],
    backoff_s: Callable[[int], float],
) -> None:
    """Send all calls by all callers, with at most `given.attempts` attempts each (10 by default).

    Args:
        limiter: Makes the limiter from the time, seconds.
        may_retry: Called before each retry; returns whether it may be made.
        answered: Called when a call has its answer (neither 429 nor transient), with whether it took a retry.
        backoff_s: Returns the wait before a retry (from 0), seconds.
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
        with turn:  # only one waits for the limiter, so that a lower rate applies to all after it
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
