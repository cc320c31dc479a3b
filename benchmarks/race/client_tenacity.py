"""A loop paced at the provider's true rate, and tenacity: exponential waits with jitter, 10 attempts."""

from __future__ import annotations

from typing import Any

from batch import Pace, arguments, work_off
from openai import APIConnectionError, APIStatusError, InternalServerError, OpenAI, RateLimitError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential


def main() -> None:
    """Send all calls."""
    given = arguments()
    client = OpenAI(base_url=given.base_url, api_key="race", max_retries=0)
    pace = Pace(given.rpm)

    @retry(
        wait=wait_random_exponential(multiplier=1, max=60),
        stop=stop_after_attempt(given.attempts or 10),
        retry=retry_if_exception_type((RateLimitError, APIConnectionError, InternalServerError)),
        reraise=True,
    )
    def attempt(body: dict[str, Any]) -> None:
        client.chat.completions.create(**body)

    def send(body: dict[str, Any]) -> int | None:
        pace.wait()
        try:
            attempt(body)
        except APIStatusError as error:
            return int(error.status_code)
        return 200

    work_off(given, send)


if __name__ == "__main__":
    main()
