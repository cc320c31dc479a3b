"""The openai SDK with 32 callers and its own retries: 2 by default, or --attempts minus 1."""

from __future__ import annotations

from typing import Any

from batch import arguments, work_off
from openai import APIStatusError, OpenAI


def main() -> None:
    """Send all calls."""
    given = arguments()
    retries = {} if given.attempts is None else {"max_retries": given.attempts - 1}
    client = OpenAI(base_url=given.base_url, api_key="race", **retries)

    def send(body: dict[str, Any]) -> int | None:
        try:
            client.chat.completions.create(**body)
        except APIStatusError as error:
            return int(error.status_code)
        return 200

    work_off(given, send)


if __name__ == "__main__":
    main()
