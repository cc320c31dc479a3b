"""httpx with 32 callers behind the AWS SDKs' "adaptive" retry mode (cubic.py), 10 attempts."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
from batch import arguments, work_off
from cubic import AdaptiveRate, RetryQuota, backoff_s

_TRANSIENT = {500, 502, 503, 504, 529}


def main() -> None:
    """Send all calls."""
    given = arguments()
    attempts = given.attempts or 10
    lock, rate, quota = threading.Lock(), AdaptiveRate(time.monotonic()), RetryQuota()
    client = httpx.Client(
        base_url=given.base_url,
        headers={"authorization": "Bearer race"},
        timeout=600.0,
        limits=httpx.Limits(max_connections=given.callers, max_keepalive_connections=given.callers),
    )

    def once(body: dict[str, Any]) -> int | None:
        with lock:
            wait_s = rate.wait_s(time.monotonic())
        time.sleep(wait_s)
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
                    quota.succeeded(retry > 0)
                return status
            with lock:
                again = retry + 1 < attempts and quota.take()
            if not again:
                return status
            time.sleep(backoff_s(retry))
        return None

    work_off(given, send)


if __name__ == "__main__":
    main()
