"""Is Redis there, and what does it say where it is not? One line for people, and no longer wait than they have.

A frozen server takes connections and answers nothing, so who asks it something first asks whether it lives.
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

REACH_S = 1.0  #: for a server that lives, its first answer; a command is promised to end within 2 s
MOST_LETTERS = 200


def first_line(error: BaseException) -> str:
    """What an error says, as one line without passwords; its class where it says nothing."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    return one_line(without_passwords(said))[:MOST_LETTERS] or type(error).__name__


def unavailable(
    error: BaseException,
    what: str = "Redis",
    call_id: str | None = None,
    accepted: Literal["no", "maybe"] = "no",
) -> StoreUnavailable:
    """Our error for one of Redis or of what talks to it: `what`, and its first line. One that is ours keeps its words.

    Args:
        call_id, accepted: As in `StoreUnavailable`.
    """
    said = error.said if isinstance(error, StoreUnavailable) else f"{what}: {first_line(error)}"
    return StoreUnavailable(said, call_id, accepted)


@contextmanager
def redis_errors(what: str = "Redis") -> Iterator[None]:
    """redis-py's errors as ours, which begin with `what`.

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
    """`reach` for who asks several things in a row: a server that has not answered is not waited for again."""
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
