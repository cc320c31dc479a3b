"""How does a Celery task become a call? `apply_async` plans it into its lane, `__call__` makes one attempt at it.

Only a translation into Celery's words; what is decided stands in `flow`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from celery import Task
from celery.exceptions import Ignore, Reject, TaskPredicate
from celery.exceptions import Retry as CeleryRetry
from celery.utils import uuid
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.json import dumps, loads
from redis import RedisError

from ratelimit_worker import plugins
from ratelimit_worker.calls import Cost, Outcome, Priority
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flow import enqueue, pin
from ratelimit_worker.flow.execute import Again, Answered, Executor, Facts, GaveUp, MustBeAlone, own_retry, tries_used
from ratelimit_worker.flow.settle import Answers
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.policy.own_retry import Goes, Stays, Wish
from ratelimit_worker.policy.retry import RetryPolicy
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.ports import Begun
from ratelimit_worker.providers import http
from ratelimit_worker.stores.lanes import AnsweredFromCache
from ratelimit_worker.stores.patient import PatientLanes
from ratelimit_worker.wiring import policy_of, services
from ratelimit_worker.worker import transport
from ratelimit_worker.worker.intake import read_json
from ratelimit_worker.worker.quarantine import QUARANTINE
from ratelimit_worker.worker.refusal import refuse
from ratelimit_worker.worker.result import CallResult
from ratelimit_worker.worker.transport import HEADER, unpack_body

ANSWERS = Answers(dumps=dumps, loads=loads)
#: Options of `apply_async` that are the plan's.
CHOICES = (
    *("lane", "tenant", "context", "tags", "cost", "deadline_s", "timeout_s"),
    *("cache", "cache_incomplete", "stale_ttl", "shed_below"),
)
#: Options by which Celery sends a call for a canvas that is under way: nobody is there to catch an error.
CANVAS = frozenset({"parent_id", "group_id", "chord"})
NO_MORE = "Can't retry"  #: how `Task.retry` begins when it gives up
REPLACED = "Replaced by new task"  #: what `Task.replace` says in its Ignore
MOST_WARM_CLIENTS = 16  #: made before the first call, 4 ms each


class StaysInLane(CeleryRetry):
    """The lane sends the call again; what raises this has used none of the task's retries.

    A `Retry`, so that whatever lets Celery's own pass (`autoretry_for`, a task's `except`) lets this pass too.
    """


class CallTask(Task):
    """Base class of every task that calls a provider.

    Class attributes, or options of `@llm_task`: `lane`, `provider` (with the argument `model` it names the lane),
    `context`, `tags`, `tenant`, `call_priority`, `deadline_s`, `cost`, `cache`, `cache_incomplete`, `stale_ttl`,
    `shed_below`, `timeout_s` (seconds of one attempt), `cache_ttl` (seconds), `classify`. The same names as options of
    `apply_async` but for the last two, with `priority` for the class (high, normal, low, or Celery's 0 to 9).

    `classify` is a plain function of the exception that the task raised (a `staticmethod` in a class body): its
    `Category`, a whole `Failure`, or None, and our own rules hold.
    """

    abstract = True
    Request = "ratelimit_worker.worker.request:CallRequest"
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure_or_timeout = True
    resultrepr_maxsize = 1  # an answer may hold what was asked: never in events or logs

    lane: ClassVar[str | None] = None
    provider: ClassVar[str | None] = None
    context: ClassVar[str] = ""
    tags: ClassVar[Sequence[str]] = ()
    tenant: ClassVar[str] = ""
    call_priority: ClassVar[str | int] = Priority.NORMAL
    deadline_s: ClassVar[float | None] = None
    cost: ClassVar[Callable[..., Cost | Size] | None] = None
    cache: ClassVar[bool] = True
    cache_ttl: ClassVar[float | None] = None
    cache_incomplete: ClassVar[bool] = False
    stale_ttl: ClassVar[float] = 0.0
    shed_below: ClassVar[str | None] = None
    timeout_s: ClassVar[float | None] = None
    classify: ClassVar[Rule | None] = None

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The header that a call with these arguments gets."""
        cost = type(self).cost
        kind = enqueue.Kind(
            task=self.name,
            lane=self.lane,
            provider=self.provider,
            context=self.context,
            tags=tuple(self.tags),
            tenant=self.tenant,
            priority=enqueue.priority_of(self.call_priority),
            deadline_s=self.deadline_s,
            cost=cost.__func__ if isinstance(cost, staticmethod) else cost,
            cache=self.cache,
            cache_ttl_s=self.cache_ttl,
            cache_incomplete=self.cache_incomplete,
            stale_ttl_s=self.stale_ttl,
            shed_below=self.shed_below,
            timeout_s=self.timeout_s,
        )
        live = services()
        return enqueue.plan(
            kind,
            args,
            kwargs,
            live.settings,
            now=time.time(),
            learned=live.learned_usage,
            tokenizer=live.tokenizer,
            **options,
        )

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """As Celery's, into the call's lane.

        Raises:
            BadInput: arguments or options that cannot be; nothing was sent.
            LaneFull: the lane holds as many calls as it may.
            LaneShedding: the lane is in EMERGENCY or HALT, and calls of this class are shed then.
            StoreUnavailable: Redis is away, full or read-only.
        """
        if self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, task_id, producer, link, link_error, shadow, **options)
        chosen = {name: options.pop(name, None) for name in CHOICES}
        priority, running = options.pop("priority", None), self.app.current_worker_task
        number = options.pop("number", 0)  # attempts that were made before, under the same id
        mine = (
            running.request if running is not None else self.request
        )  # another task's, when it is replaced by this one
        goes_on = task_id is not None and mine.id == task_id and mine.get("rlw_number") is not None
        before = mine.get(HEADER) if goes_on else None
        if before is not None and mine.task == self.name and "retries" in options:
            chosen, priority = _as_before(before, chosen), before["class"]
        plan = self.plan(args or (), kwargs or {}, priority=priority, **chosen)
        if before is not None:
            # self.retry or replace: the same call goes on, so its deadline and the count of its attempts do too
            plan |= {"deadline": before["deadline"], "number": mine.get("rlw_number")}
            plan |= {"again": True, "fp": before.get("fp"), "tries": tries_used(task_id or "")}
        else:
            plan |= {"at_once": True, **({"number": number} if number else {})}
            if "sheds" in plan and CANVAS.isdisjoint(options):
                plan["sheds"] = "raise"
        task_id = task_id or uuid()
        headers = {**(options.pop("headers", None) or {}), HEADER: plan}
        options.setdefault("argsrepr", f"<{plan['lane']}>")
        options.setdefault("kwargsrepr", "{}")
        try:
            return super().apply_async(
                args, kwargs, task_id, producer, link, link_error, shadow, headers=headers, **options
            )
        except AnsweredFromCache as hit:
            return self._answered(task_id, hit.answer, options)
        except EncodeError as error:
            raise BadInput(f"the arguments of {self.name} are not JSON: {_first_line(error)}") from error
        except (OperationalError, RedisError) as error:
            raise StoreUnavailable(f"the call was not accepted, Redis said: {_first_line(error)}") from error

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """As Celery's, for what a provider did not cause. `autoretry_for` comes here too.

        A provider's failure is told the lane. What costs no try there (a 429, an outage) uses no retry: the lane sends
        the call again. Every other retry is Celery's, and goes no sooner than the provider's Retry-After.

        The error for a call that may not be retried any more does not repeat the arguments.
        """
        request = self.request
        if not (request.called_directly or request.is_eager):
            wish = Wish(
                wait_s=self._wished_s(eta, countdown),
                same=args is None and kwargs is None and not options,
                same_lane=options.get("lane") in (None, (request.get(HEADER) or {}).get("lane")),
                goes_on=not throw,
            )
            verdict = own_retry(request.id, (exc, sys.exception()), wish)
            if isinstance(verdict, Stays):
                raise StaysInLane("the lane sends it again", exc=exc or sys.exception(), when=verdict.after_s)
            if isinstance(verdict, Goes) and verdict.after_s is not None:
                eta, countdown = None, verdict.after_s
        try:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        except self.MaxRetriesExceededError as error:
            if error is exc or not str(error).startswith(NO_MORE):
                raise
            told = f"{NO_MORE} {self.name}[{request.id}]: max_retries is reached"
            more = {"task_args": error.task_args, "task_kwargs": error.task_kwargs}
            raise self.MaxRetriesExceededError(told, **more) from error.__cause__

    def _wished_s(self, eta: datetime | None, countdown: float | None) -> float | None:
        """Seconds until a retry as call or task say it; None: neither does, and Celery's own default would hold."""
        if countdown is not None:
            return float(countdown)
        if eta is not None:
            return max(0.0, (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp() - time.time())
        return chosen_delay_s(self)

    def _answered(self, task_id: str, answer: bytes, options: Mapping[str, Any]) -> CallResult:
        """The result of a call that was answered before: stored under its own id, and there at once."""
        _, value = ANSWERS.decode(answer)
        result = self.AsyncResult(task_id)
        result.ignored = options.get("ignore_result", self.ignore_result)
        if not result.ignored:
            try:
                self.backend.mark_as_done(task_id, value)
            except RedisError as error:
                raise StoreUnavailable(f"the answer was not stored, Redis said: {_first_line(error)}") from error
        parent = self.app.current_worker_task if options.get("add_to_parent", True) else None
        if parent:
            parent.add_trail(result)
        return result

    def AsyncResult(self, task_id: str, **kwargs: Any) -> CallResult:  # noqa: N802 - Celery's name
        """The result of one call, by its id."""
        return CallResult(task_id, backend=self.backend, task_name=self.name, app=self.app, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        plan = request.get(HEADER)
        tag = (request.get("properties") or {}).get("delivery_tag")
        if request.called_directly or request.is_eager or plan is None or tag is None:
            return super().__call__(*args, **kwargs) if request.called_directly else self.run(*args, **kwargs)
        facts = Facts(
            call_id=request.id,
            tag=tag,
            task=self.name,
            plan=plan,
            queue=(request.delivery_info or {}).get("routing_key") or "",
            worker=f"{request.hostname}/{os.getpid()}",
            arguments=(lambda: (request.args, request.kwargs)) if services().settings.capture_content else None,
        )

        def run(begun: Begun) -> Any:
            self._restore(begun.body)
            request.rlw_number = begun.number
            return self.run(*request.args, **request.kwargs)

        attempt = executor(facts.lane, type(self).classify).execute
        with QUARANTINE.shared():
            result = attempt(facts, run, self._restore)
        if isinstance(result, MustBeAlone):
            with QUARANTINE.alone():
                result = attempt(replace(facts, alone=True), run, self._restore)
        match result:
            case Answered(value):
                return value
            case Again(after_s, error):
                raise CeleryRetry(str(error), exc=error, when=after_s)
            case GaveUp(error):
                raise error
            case _:
                raise Ignore

    def _restore(self, payload: bytes) -> None:
        """Put arguments and canvas back where Celery looks for them."""
        if not payload:
            return
        args, kwargs, canvas = read_json(unpack_body(payload))
        request = self.request
        # in place: Celery hands the same objects to on_success, after_return and the signals
        request.args[:] = args
        request.kwargs.clear()
        request.kwargs.update(kwargs)
        for name, value in (canvas or {}).items():
            setattr(request, name, value)


def chosen_delay_s(task: Task) -> float | None:
    """A task's `default_retry_delay`, seconds; None: it has Celery's own."""
    said_by = next(one for one in (task, *type(task).__mro__) if "default_retry_delay" in vars(one))
    return None if said_by is Task else float(task.default_retry_delay or 0.0)


def _as_before(plan: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The choices for a call that is retried: Celery repeats none of them, and makes its priority 0, the highest."""
    repeated = {
        "lane": plan["lane"],
        "tenant": plan["tenant"],
        "context": plan["context"],
        "tags": plan["tags"],
        "cache": "ttl" in plan,
        "cache_incomplete": "short" in plan,
        "stale_ttl": plan.get("stale", 0.0),
        "shed_below": "high" if "sheds" in plan else "low",  # its class is the same, so: yes, or no
        "timeout_s": plan.get("timeout"),
    }
    return {name: repeated.get(name) if value is None else value for name, value in chosen.items()}


def _meaning(word: BaseException) -> Outcome:
    """What Celery does with a call whose task raised one of its words."""
    if isinstance(word, Reject):
        return Outcome.SNOOZED if word.requeue else Outcome.FAILED
    if isinstance(word, Ignore) and str(word) != REPLACED:
        return Outcome.FAILED
    return Outcome.RETRIED


def _behind(word: BaseException) -> tuple[BaseException | None, ...]:
    """What one of Celery's words may have been raised for: its own say, then what was being handled."""
    said = [getattr(word, name, None) for name in ("exc", "reason")]
    context = None if word.__suppress_context__ else word.__context__
    return (*(one if isinstance(one, BaseException) else None for one in said), word.__cause__, context)


_executors: dict[int, tuple[Executor, Callable[[str], RetryPolicy]]] = {}


def executor(lane: str = enqueue.DEFAULT_LANE, rule: Rule | None = None) -> Executor:
    """The executor of this process (a forked child builds its own) for calls of a lane, of a task with this rule."""
    found = _executors.get(os.getpid())
    if found is None:
        live = services()
        policies = policy_of(live.settings)
        made = Executor(
            lanes=PatientLanes(live.redis),
            answers=ANSWERS,
            encode_outcome=live.encode_outcome,
            lease_s=live.settings.visibility_timeout_seconds,
            policy=policies(enqueue.DEFAULT_LANE),
            reconcile=lambda lane: enqueue.told(live.settings, lane).reconcile,
            timeout_told_s=lambda lane: enqueue.timeout_told_s(live.settings, lane),
            latencies=live.learned_latencies,
            pass_through=(TaskPredicate, Ignore, Reject),
            means=_meaning,
            behind=_behind,
            classify=plugins.classifier(),
        )
        found = _executors[os.getpid()] = (made, policies)
    usual, policies = found
    policy = policies(lane)
    if policy is usual.policy and rule is None:
        return usual
    return replace(usual, policy=policy, classify=plugins.classifier(rule) if rule else usual.classify)


def plan_by_name(app: Any) -> Callable[[str, list[Any], dict[str, Any]], Mapping[str, Any] | None]:
    """Plans of calls that were sent by name (`send_task`, a stock producer), for the transport."""

    def find(name: str, args: list[Any], kwargs: dict[str, Any]) -> Mapping[str, Any] | None:
        task = app.tasks.get(name)
        return task.plan(args, kwargs) if isinstance(task, CallTask) else None

    return find


def connect_transport(app: Any) -> None:
    """Tell the transport what only the app knows: which tasks make calls, and what was configured of their lanes."""
    transport.PLAN[:] = [plan_by_name(app)]
    transport.IS_CALL[:] = [lambda name: isinstance(app.tasks.get(name), CallTask)]
    transport.REFUSE[:] = [refuse(app, ANSWERS, lambda attempt: services().encode_outcome(attempt))]
    transport.LANE_FIELDS[:] = [lambda lane: pin.lane_fields(services().control, services().settings, lane)]


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def warm_up(slots: int = 1) -> None:
    """Connect and load the scripts before the first call: released calls that meet a cold worker start as a burst."""
    http.warm_up(min(slots, MOST_WARM_CLIENTS))
    services().lanes.run.load()
    executor()
