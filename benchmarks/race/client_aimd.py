"""httpx with 32 callers behind additive increase and multiplicative decrease (aimd.py), 10 attempts."""

from __future__ import annotations

from aimd import AimdRate
from batch import arguments
from cubic import backoff_s
from paced import send_paced


def main() -> None:
    """Send all calls."""
    given = arguments()
    send_paced(given, AimdRate, may_retry=lambda: True, answered=lambda retried: None, backoff_s=backoff_s)


if __name__ == "__main__":
    main()
