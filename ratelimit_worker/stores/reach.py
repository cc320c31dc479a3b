"""Is Redis there? Its errors become one line for people, and no command waits long for it.

A frozen server accepts connections and does not answer, so commands first check whether it answers at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.outage import without_passwords
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.stores.decide import deciding

REACH_S = 1.0  #: time for the first answer; a command is promised to end within 2 s
MOST_LETTERS = 200


def first_line(error: BaseException) -> str:
    """An error's text in one line without passwords, or its class if it has no text."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return one_line(without_passwords(said))[:MOST_LETTERS] or type(error).__name__


def unavailable(
    error: BaseException,
    what: str = "Redis",
    call_id: str | None = None,
    accepted: Literal["no", "maybe"] = "no",
) -> StoreUnavailable:
    """Our error for one of Redis or its client: `what`, and the first line of the error. Our own errors stay the same.

    Args:
        call_id, accepted: As in `StoreUnavailable`.
    """
    said = error.said if isinstance(error, StoreUnavailable) else f"{what}: {first_line(error)}"
    return StoreUnavailable(said, call_id, accepted)


@contextmanager
def redis_errors(what: str = "Redis") -> Iterator[None]:
    """Translate redis-py's errors to ours, which begin with `what`.

    Raises:
        StoreUnavailable: Redis is away, full or read-only.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        raise unavailable(error, what) from error


def reach(client: Redis, most_s: float = REACH_S) -> None:
    """Return when the server answers.

    Args:
        most_s: Seconds.
    Raises:
        StoreUnavailable: it cannot be reached, or does not answer in time; names it.
    """
    try:
        with redis_errors(), deciding(most_s) as decision:
            client.ping()
    except StoreUnavailable as error:
        if decision.is_over:
            told = f"Redis at {_where(client)} did not answer within {most_s:g} s: is it frozen, or the address wrong?"
            raise StoreUnavailable(told) from error
        raise


def reach_once(client: Redis) -> Callable[[], None]:
    """`reach` for several exchanges in a row: a server that has not answered once is not waited for again."""
    failed: list[StoreUnavailable] = []

    def asked() -> None:
        if failed:
            raise failed[0]
        try:
            reach(client)
        except StoreUnavailable as error:
            failed.append(error)
            raise

    return asked


def _where(client: Redis) -> str:
    options = client.connection_pool.connection_kwargs
    if "host" in options:
        return f"{options['host']}:{options.get('port', 6379)}"
    return str(options.get("path", "its address"))
