"""httpx with 32 callers behind the AWS SDKs' "adaptive" retry mode (cubic.py), 10 attempts."""

from __future__ import annotations

from batch import arguments
from cubic import AdaptiveRate, RetryQuota, backoff_s
from paced import send_paced


def main() -> None:
    """Send all calls."""
    quota = RetryQuota()
    send_paced(arguments(), AdaptiveRate, may_retry=quota.take, answered=quota.succeeded, backoff_s=backoff_s)


if __name__ == "__main__":
    main()
