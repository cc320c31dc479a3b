"""A task retries by itself (`autoretry_for`, `self.retry`): does the lane or the task retry, and when?

After failures that cost no try the lane does: a refusal, a failure while the provider is known to be away, a used-up
quota. The call goes back to its lane, and none of the task's retries is used. After failures that cost a try the task
does, with its own count and bound, but never before the provider's Retry-After. The lane learns from both.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.errors import CallFailed, RateLimitWorkerError
from ratelimit_worker.policy.evidence import root_of
from ratelimit_worker.policy.retry import Retry, Snooze, Step
from ratelimit_worker.policy.vocabulary import OTHER_ROOTS, PROVIDER_ROOTS


class Wish(Struct, frozen=True, kw_only=True):
    """What a task asks for when it retries.

    Args:
        wait_s: Seconds until the retry; None: neither call nor task gives a time (the framework has a default).
        same: The call is to be made again unchanged: the same arguments, queue and lane.
        same_lane: It at least stays in its lane.
        goes_on: The task continues after the request (`throw=False`), so its attempt cannot be taken back.
    """

    wait_s: float | None = None
    same: bool = True
    same_lane: bool = True
    goes_on: bool = False


class Stays(Struct, frozen=True):
    """The call goes back to its lane for at least `after_s` seconds (0: to its own place), and uses no retry."""

    after_s: float


class Goes(Struct, frozen=True):
    """The task sends it again after `after_s` seconds and counts the retry; None: at the time that it asked for."""

    after_s: float | None


def whose(failure: Failure, step: Step, free: bool, wish: Wish) -> Stays | Goes:
    """Decide who retries.

    A time that call or task has chosen holds if it is longer than Retry-After. If none was chosen, Retry-After, the
    lane's gate or the category's backoff replace the framework's default (Celery's 180 s).

    Args:
        step: What would follow if the task did not retry by itself.
        free: Whether that would cost no try.
    """
    least_s = max(0.0, failure.retry_after_s or 0.0)
    if free and wish.same and not wish.goes_on:
        # In its own place it goes first when the lane's gate opens.
        return Stays(wish.wait_s if wish.wait_s is not None and wish.wait_s > least_s else 0.0)
    if not wish.same_lane:  # the other lane has another budget, about which this failure says nothing
        return Goes(None)
    if wish.wait_s is not None:
        return Goes(least_s if wish.wait_s < least_s else None)
    if isinstance(step, Retry | Snooze):
        return Goes(max(least_s, step.after_s))
    if least_s > 0 or failure.category is Category.RATE_LIMITED:
        return Goes(least_s)
    return Goes(None)


class OwnRule(Struct, frozen=True, kw_only=True):
    """How a task retries by itself, from its definition."""

    task: str
    caught: tuple[str, ...] = ()  #: names of the classes in `autoretry_for`, if these catch failures of a provider
    asks: bool = False  #: its own code calls `retry`
    max_retries: int | None = 3  #: None: no bound
    backoff: bool = False  #: `retry_backoff`
    delay_s: float | None = None  #: the task's own delay; None: it sets none

    def __str__(self) -> str:
        how = [f"autoretry_for={', '.join(self.caught)}"] if self.caught else []
        how += ["self.retry"] if self.asks else []
        bound = "without a bound" if self.max_retries is None else f"max_retries={self.max_retries}"
        if self.backoff:
            when = "after retry_backoff"
        elif self.delay_s is not None:
            when = f"after {self.delay_s:g} s"
        else:
            when = "after the backoff of the failure (not Celery's 180 s, which nobody chose)"
        return (
            f"{self.task} retries by itself ({' and '.join(how)}, {bound}): a 429, and what fails while the provider "
            f"is away, waits in the lane and uses no retry; every other failure of the provider uses one, {when}, "
            "never before Retry-After, and the lane's own tries are not used"
        )


def catches_providers(caught: Sequence[type[BaseException]]) -> bool:
    """Whether `autoretry_for` with these classes catches a provider's failures, of our classes or an SDK's."""
    return any(_catches_providers(kind) for kind in caught)


def _catches_providers(kind: type[BaseException]) -> bool:
    if issubclass(kind, CallFailed) or issubclass(CallFailed, kind):
        return True
    if issubclass(kind, RateLimitWorkerError) or any(root_of(base) in OTHER_ROOTS for base in kind.__mro__):
        return False
    # A connection that fails or takes too long is an OSError in most libraries.
    if issubclass(kind, ConnectionError | TimeoutError) or kind is OSError:
        return True
    if kind.__module__.startswith("ratelimit_worker.providers"):
        return True
    return any(root_of(base) in PROVIDER_ROOTS for base in kind.__mro__)
