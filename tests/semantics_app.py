"""Calls that use what Celery's documentation promises of tasks; a worker gets them with `-I tests.semantics_app`."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from ratelimit_worker.app import llm_task
from ratelimit_worker.calls import Cost
from ratelimit_worker.worker.task import CallTask
from tests.fleet_app import _read, _write, app

SHARED: dict[str, Any] = {"app": app, "shared": False, "cache": False, "lane": "free"}


class Odd(Exception):
    """An exception of the user's own that nobody knows."""


class Odder(Odd):
    """A special case of it."""


def _again(name: str, fail_times: int, error: Exception) -> int:
    tries = len(_read(name))
    _write(name, str(tries))
    if tries < fail_times:
        raise error
    return tries


@llm_task(**SHARED, autoretry_for=(Odd,), retry_kwargs={"max_retries": 2, "countdown": 0.01})
def auto_kwargs(name: str, fail_times: int) -> int:
    """`retry_kwargs` bound it."""
    return _again(name, fail_times, Odd("again"))


@llm_task(**SHARED, autoretry_for=(Odd,), max_retries=None, default_retry_delay=0.01)
def auto_for_ever(name: str, fail_times: int) -> int:
    """No bound."""
    return _again(name, fail_times, Odd("again"))


@llm_task(**SHARED, autoretry_for=(Odd,), max_retries=0)
def auto_never(name: str, fail_times: int) -> int:
    """`max_retries=0`: no retry."""
    return _again(name, fail_times, Odd("again"))


@llm_task(**SHARED, autoretry_for=(Odd,), dont_autoretry_for=(Odder,), default_retry_delay=0.01)
def auto_but(name: str, fail_times: int, odder: bool) -> int:
    """Retried for one, not for the other."""
    return _again(name, fail_times, Odder("no") if odder else Odd("yes"))


@llm_task(**SHARED, autoretry_for=(Odd,), retry_backoff=1, retry_backoff_max=1, retry_jitter=False, max_retries=2)
def auto_backoff(name: str, fail_times: int) -> int:
    """Waits a second before each retry."""
    return _again(name, fail_times, Odd("again"))


@llm_task(**SHARED, bind=True, max_retries=1, default_retry_delay=0.01)
def own_retry(self: Any, name: str, how: str) -> Any:
    """Its own `self.retry`, in several ways."""
    _write(name, f"{how} {self.request.retries} {self.request.id}")
    if how == "exc":
        raise self.retry(exc=Odd("in vain"))
    if how == "no exc":
        raise self.retry()
    if how == "in except":
        try:
            raise Odd("caught")
        except Odd as error:
            raise self.retry() from error
    if how == "more":
        raise self.retry(max_retries=3, exc=Odd("in vain"))
    if how == "other arguments":
        raise self.retry(args=(name, "done"), countdown=0.01)
    if how == "no throw" and not self.request.retries:
        self.retry(throw=False)
        return "first"
    return how


@llm_task(**SHARED, throws=(Odd,))
def expected() -> None:
    """Raises what it says that it raises."""
    raise Odd("expected")


@llm_task(**SHARED)
def unexpected(text: str) -> None:
    """Raises what nobody expects, with its argument in the message."""
    raise Odd(f"no luck with {text}")


@llm_task(**SHARED, bind=True)
def ignored(self: Any, name: str, state: str = "") -> None:
    """Leaves its state to itself."""
    _write(name, "x")
    if state:
        self.update_state(state=state)
    raise Ignore


@llm_task(**SHARED)
def rejected(name: str, requeue: bool) -> str:
    """Rejects its message; when requeued, twice."""
    tries = len(_read(name))
    _write(name, "x")
    if not requeue or tries < 2:
        raise Reject("not now", requeue=requeue)
    return "accepted"


@llm_task(**SHARED, bind=True)
def replaced(self: Any, value: int) -> None:
    """Another takes its place."""
    raise self.replace(doubled.s(value))


@llm_task(**SHARED)
def doubled(value: int) -> int:
    """Twice the value."""
    return 2 * value


@llm_task(**SHARED, soft_time_limit=1)
def slow(name: str, catch: bool) -> str:
    """Exceeds its soft limit."""
    import time

    _write(name, "x")
    try:
        time.sleep(20)
    except SoftTimeLimitExceeded:
        if not catch:
            raise
    return "cleaned up"


@llm_task(**SHARED, time_limit=1)
def too_slow(name: str) -> None:
    """Exceeds its hard limit."""
    import time

    _write(name, "x")
    time.sleep(20)


class Told(CallTask):
    """Writes what its handlers are told."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        _write("handlers", f"success {retval!r} {list(args)} {dict(kwargs)}")

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        _write("handlers", f"failure {exc!r} {list(args)} {dict(kwargs)}")

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        _write("handlers", f"retry {exc!r} {list(args)} {dict(kwargs)}")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        _write("handlers", f"after {status} {list(args)} {dict(kwargs)}")


@llm_task(**{**SHARED, "base": Told}, bind=True, max_retries=1)
def told(self: Any, what: str, more: int = 0) -> str:
    """Ends in each way."""
    if what == "fail":
        raise Odd("failed")
    if what == "retry" and not self.request.retries:
        raise self.retry(countdown=0.01, exc=Odd("once more"))
    return what


@llm_task(**{**SHARED, "lane": "pushed"}, cost=lambda what: Cost(requests=1, input_tokens=what["tokens"]))
def priced(what: Any) -> Any:
    """Its cost is read from its argument, and cannot be for every argument."""
    return what
