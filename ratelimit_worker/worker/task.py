"""A Celery task becomes a call: `apply_async` plans it and puts it into its lane, `__call__` makes one attempt.

This module only translates between Celery and `flow`, which makes the decisions.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial, wraps
from operator import attrgetter
from typing import Any, ClassVar

from billiard.common import terminate_handler_fired
from billiard.exceptions import Terminated, WorkerLostError
from celery import Celery, Task
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, TaskPredicate
from celery.exceptions import Retry as CeleryRetry
from celery.result import AsyncResult, denied_join_result
from celery.utils import uuid
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError
from kombu.utils.imports import symbol_by_name
from kombu.utils.json import dumps, loads
from msgspec import structs
from redis import RedisError

from ratelimit_worker import plugins
from ratelimit_worker.calls import Cost, Outcome, Priority
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.call import ResultForm
from ratelimit_worker.contracts.lane import Fields
from ratelimit_worker.contracts.plan import HEADER, Continuation, Plan, Sender, Shedding
from ratelimit_worker.errors import BadInput, ConfigurationError, StoreUnavailable, TaskAborted
from ratelimit_worker.fingerprint import ANY, Parameters, fingerprint
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.flow.call.conclude import Again, Answered, Facts, GaveUp, PassedOn
from ratelimit_worker.flow.call.execute import (
    Executor,
    Interrupted,
    MustBeAlone,
    Result,
    own_retry,
    resent,
    tries_used,
)
from ratelimit_worker.flow.call.judge import Rules
from ratelimit_worker.flow.call.self_doubt import SelfDoubt
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.policy.own_retry import Goes, Stays, Wish
from ratelimit_worker.policy.retry import RetryPolicy
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.ports import Begun
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.decide import DECIDE_S, current, deciding
from ratelimit_worker.stores.patient import PATIENCE, PatientLanes
from ratelimit_worker.stores.reach import first_line, unavailable
from ratelimit_worker.wiring import Services, policy_of
from ratelimit_worker.worker import jobs, lost, own_options, sending
from ratelimit_worker.worker.backend import GOES_ON, Backend, left_by
from ratelimit_worker.worker.ending import settles_later
from ratelimit_worker.worker.installed import (
    Asked,
    Eagerly,
    asked_of,
    asked_of_app,
    in_memory,
    installation_of,
    services_of,
)
from ratelimit_worker.worker.intake import read_json
from ratelimit_worker.worker.quarantine import QUARANTINE
from ratelimit_worker.worker.refusal import refuse
from ratelimit_worker.worker.result import CallResult, EagerCall, revoke_unawaited
from ratelimit_worker.worker.transport import HELD, AnsweredAlready, unpack_body

ANSWERS = Answers(dumps=dumps, loads=loads)
#: Options of `apply_async` that go into the plan.
CHOICES = (
    *("lane", "tenant", "context", "tags", "cost", "deadline_s", "timeout_s"),
    *("cache", "cache_incomplete", "stale_ttl", "stale_while_revalidate", "shed_below", "over_budget"),
    *("cache_ttl", "namespace", "refresh", "no_store"),
)
CANCEL = ("leave", "revoke")  #: what can be done with a call when awaiting it is cancelled
#: Options with which Celery sends a call of a running canvas: there is no caller that could catch an error.
CANVAS = frozenset({"parent_id", "group_id", "chord"})
#: Options of a call that belongs to a canvas, and their names in the request of a call that is made in process.
CANVAS_HERE = {name: name for name in ("chain", "chord", "group_index", "root_id", "parent_id")} | {"group_id": "group"}
CANVAS_HEADER = "rlw_canvas"
IN_HAND_S = 60.0  #: bound for sends by a worker; long, so that Celery's own time-outs and its one retry come first
NO_MORE = "Can't retry"  #: beginning of the message with which `Task.retry` gives up
REPLACED = "Replaced by new task"  #: message of the Ignore that `Task.replace` raises
WITHIN = "_ratelimit_worker_within"  #: marks a method that runs within the attempt, with the call's arguments
BEGUN = "rlw_begun"  #: attribute of a request whose attempt has begun
PLANNED = "rlw_plan"  #: attribute with the plan, of a request whose attempt has begun
#: Exceptions that mean, for Celery's parent process, that a child was lost or told to end: raised by a task, they would
#: be misunderstood. After a MemoryError it acknowledges nothing.
FOR_CELERY = (MemoryError, WorkerLostError, Terminated)
MOST_FRAMES = 100  #: lanes of one task for which it keeps what their calls have in common
#: The attributes of a task that become the kind of its calls, but for `tags` (a list can change) and `cost`.
_OF_KIND = attrgetter(
    *("name", "lane", "provider", "context", "tenant", "call_priority", "deadline_s", "timeout_s"),
    *("cache", "cache_ttl", "cache_incomplete", "stale_ttl", "stale_while_revalidate", "shed_below", "over_budget"),
    *("cache_namespace", "share_across_tenants", "on_leader_failure"),
)
MOST_WARM_CLIENTS = 16  #: HTTP clients made before the first call, 4 ms each


class StaysInLane(CeleryRetry):
    """The lane sends the call again, and none of the task's retries is used.

    It derives from Celery's `Retry`, so that code which lets that pass (`autoretry_for`, a task's `except`) also lets
    this pass.
    """


class Usual:
    """What is the same for all calls of a task that have no options of their own, decided once for each lane.

    Args:
        told: The attributes of the task from which it was decided.
    """

    def __init__(self, kind: enqueue.Kind, settings: Settings, told: tuple[Any, ...]) -> None:
        self.kind, self.settings, self.told = kind, settings, told
        self._frames: dict[str, enqueue.Frame] = {}

    def frame(self, lane: str) -> enqueue.Frame:
        """As `enqueue.frame`."""
        found = self._frames.get(lane)
        if found is None:
            found = enqueue.frame(self.kind, self.settings, enqueue.NOTHING_SAID, lane)
            if len(self._frames) < MOST_FRAMES:
                self._frames[lane] = found
        return found


class CallTask(Task):
    """Base class of every task that calls a provider.

    Class attributes, or options of `@llm_task`: `lane`, `provider` (with the argument `model` it names the lane),
    `context`, `tags`, `tenant`, `call_priority`, `deadline_s`, `cost`, `cache`, `cache_incomplete`, `stale_ttl`,
    `stale_while_revalidate`, `shed_below`, `over_budget`, `timeout_s` (seconds of one attempt), `cache_ttl` (seconds),
    `classify`. The same names as options of `apply_async` but for the last, with `priority` for the class (high,
    normal, low, or Celery's 0 to 9).

    `classify` is a plain function (a `staticmethod` in a class body) that gets the exception which the task raised. It
    returns a `Category`, a whole `Failure`, or None, so that our own rules hold.
    """

    abstract = True
    Request: ClassVar[Any] = "ratelimit_worker.worker.request:CallRequest"
    _kept_usual: Usual | None = None
    _own_request: ClassVar[Any] = None  #: the Request of another class that this one is combined with
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure_or_timeout = acks_on_failure = acks_on_timeout = True
    serializer = "json"  # pickle would run code from a message
    track_started = False  # the lane knows which calls run
    # `task_default_rate_limit` is only for tasks that no lane paces.
    from_config = tuple(pair for pair in Task.from_config if pair[0] != "rate_limit")
    resultrepr_maxsize = 1  # an answer may repeat the prompt, so it must never be in events or logs

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
    stale_while_revalidate: ClassVar[float] = 0.0
    shed_below: ClassVar[str | None] = None
    over_budget: ClassVar[str] = "wait"
    timeout_s: ClassVar[float | None] = None
    cache_version: ClassVar[str] = ""
    cache_ignores: ClassVar[Sequence[str]] = ()
    cache_namespace: ClassVar[str | None] = None
    share_across_tenants: ClassVar[bool] = False
    on_leader_failure: ClassVar[str] = "share"
    classify: ClassVar[Rule | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Run the `__call__` of a user's subclass within the attempt, with the call's real arguments.

        Raises:
            ConfigurationError: the class reads messages itself (`Strategy`, as batches do).
        """
        super().__init_subclass__(**kwargs)
        if cls.Strategy is not Task.Strategy:
            raise ConfigurationError(
                f"{cls.__name__} has a Strategy of its own: it reads messages past the lane, and would see a reference "
                "in place of arguments; leave it to ordinary tasks"
            )
        own = next((vars(one)["Request"] for one in cls.__mro__ if _has_own(one, "Request")), None)
        if own is not None:
            cls._own_request = own
            cls.Request = property(_request_class)
        if not hasattr(cls.__call__, WITHIN):
            cls.__call__ = _within_attempt(cls.__call__)  # type: ignore[method-assign]
        if cls.before_start is not Task.before_start and not hasattr(cls.before_start, WITHIN):
            cls.before_start = _with_arguments(cls.before_start)

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> Plan:
        """The plan that a call with these arguments gets."""
        said = {name: value for name, value in options.items() if value is not None}
        plain, live = not said, services_of(self.app)
        if self.provider and "lane" not in said and self.lane is None and "model" not in kwargs:
            where = _place_of_model(self.run)
            model = args[where] if where is not None and where < len(args) else None
            if isinstance(model, str) and model:
                said["lane"] = f"{self.provider}:{model}"
        usual = self._usual(live.settings)
        lane = enqueue.lane_of(usual.kind, said.get("lane"), kwargs)
        return enqueue.filled(
            usual.frame(lane) if plain else enqueue.frame(usual.kind, live.settings, enqueue.Said(**said), lane),
            args,
            kwargs,
            now=time.time(),
            learned=live.learned_usage if live.redis_url else enqueue.nothing_learned,
            tokenizer=live.tokenizer,
        )

    def _usual(self, settings: Settings) -> Usual:
        """What is the same for this task's calls; made anew when one of its attributes or the settings have changed."""
        cost = type(self).cost
        told = (_OF_KIND(self), tuple(self.tags), cost)
        kept = self._kept_usual
        if kept is not None and kept.settings is settings and kept.told == told:
            return kept
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
            revalidate_s=self.stale_while_revalidate,
            shed_below=self.shed_below,
            over_budget=self.over_budget,
            timeout_s=self.timeout_s,
            namespace=self.cache_namespace,
            across_tenants=self.share_across_tenants,
            on_leader_failure=self.on_leader_failure,
        )
        found = self._kept_usual = Usual(kind, settings, told)
        return found

    def fingerprint(self, plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The fingerprint: it is equal for calls that are the same.

        Args:
            args, kwargs: As decoded from JSON.
        """
        known = _parameters(self.run, tuple(self.cache_ignores))
        return fingerprint(enqueue.scope_of(plan, self.name, self.cache_version), known.bound(args, kwargs))

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's. `task_id=` is the call's id, unless the task's function has an argument of that name."""
        named = {}
        if "task_id" in kwargs and not _takes_task_id(self.run):
            named["task_id"] = kwargs.pop("task_id")
        return self.apply_async(args, kwargs, **named)

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """`.delay()` for an event loop, without blocking it → the result, which can be awaited.

        `cancel=` is as in `aapply_async`, unless the task's function has an argument of that name.
        """
        named = {}
        if "cancel" in kwargs and "cancel" not in inspect.signature(self.run).parameters:
            named["cancel"] = kwargs.pop("cancel")
        if "task_id" in kwargs and not _takes_task_id(self.run):
            named["task_id"] = kwargs.pop("task_id")
        return await self.aapply_async(args, kwargs, **named)

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        cancel: str = "leave",
        **options: Any,
    ) -> Any:
        """`apply_async` for an event loop, with the same options → the result, which can be awaited.

        Args:
            cancel: What to do with the call if awaiting it (or its sending) is cancelled: "leave" it, or "revoke" it.
        Raises:
            BadInput, LaneFull, LanesFull, LaneShedding, BudgetSpent, StoreUnavailable: as `apply_async`.
        """
        if cancel not in CANCEL:
            raise BadInput(f"cancel={cancel!r}: one of {', '.join(CANCEL)}")
        send = sending.in_thread(self.apply_async, args, kwargs, **options)
        if cancel == "leave":
            return await send
        sent = asyncio.ensure_future(send)
        try:
            result = await asyncio.shield(sent)
        except asyncio.CancelledError:
            result = await sent  # it may be in its lane already
            if isinstance(result, CallResult):
                await revoke_unawaited(result)
            raise
        if isinstance(result, CallResult):
            result.revoked_with_await = True
        return result

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
            BadInput: arguments or options are invalid; nothing was sent.
            LaneFull: the lane holds as many calls as it may.
            LanesFull: the lane is new, and there are as many lanes as allowed.
            LaneShedding: the lane is in EMERGENCY or HALT, and calls of this class are shed then.
            BudgetSpent: a budget of money is spent, and calls of this task fail then.
            StoreUnavailable: Redis is away, full or read-only, and says so within 2 s; `accepted` tells whether the
                call may run all the same.
        """
        running = self.app.current_worker_task
        # otherwise a canvas goes on, and no caller would get an error
        if running is None or CANVAS.isdisjoint(options):
            own_options.check_for(self, options, CHOICES)
        if self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, **_named(task_id, producer, link, link_error, shadow), **options)
        if in_memory(self.app):  # in tests: a queue within this process, which no worker reads
            return self._here(args, kwargs, task_id, link, link_error, options)
        _check_way(self.app, options.get("connection"), producer)
        chosen = {name: options.pop(name, None) for name in CHOICES}
        priority = options.pop("priority", None)
        # earlier attempts, if a call that has ended is made anew under its id
        number = options.pop("number", None)
        # another task's, when it is replaced by this one
        mine = running.request if running is not None else self.request
        goes_on = task_id is not None and mine.id == task_id and mine.get("rlw_number") is not None
        before: Plan | None = mine.get(PLANNED) if goes_on else None
        if before is not None and mine.task == self.name and "retries" in options:
            chosen, priority = _as_before(before, chosen), before.priority
        plan = self.plan(args or (), kwargs or {}, priority=priority, **chosen)
        if before is not None:
            plan = _going_on(plan, before, mine.get("rlw_number"), tries_used(task_id or ""))
        else:
            plan = _of_a_caller(plan, number, told_by_raising=CANVAS.isdisjoint(options))
        task_id = task_id or uuid()
        headers = {**(options.pop("headers", None) or {}), HEADER: plan.encode()}
        options.setdefault("argsrepr", f"<{plan.lane}>")
        options.setdefault("kwargsrepr", "{}")
        # Sent by a worker: wait longer for Redis, since nobody would send it again.
        in_hand = running is not None and (goes_on or not CANVAS.isdisjoint(options))
        with accepting(self.app, task_id, producer, IN_HAND_S if in_hand else DECIDE_S) as given:
            try:
                named = _named(task_id, given, link, link_error, shadow)
                result = super().apply_async(args, kwargs, headers=headers, **named, **options)
                lost.made(self.app, task_id, self.name, plan)
                return result
            except AnsweredAlready as hit:
                return self._answered(task_id, hit, args, kwargs, options)
            except EncodeError as error:
                raise BadInput(f"the arguments of {self.name} are not JSON: {first_line(error)}") from error

    def _here(
        self, args: Any, kwargs: Any, task_id: str | None, link: Any, link_error: Any, options: dict[str, Any]
    ) -> EagerCall:
        try:
            args, kwargs = loads(dumps([args or (), kwargs or {}]))  # as a worker would receive them
        except EncodeError as error:
            raise BadInput(f"the arguments of {self.name} are not JSON: {first_line(error)}") from error
        canvas = {name: options.pop(option) for option, name in CANVAS_HERE.items() if option in options}
        headers = {**(options.pop("headers", None) or {}), CANVAS_HEADER: canvas}
        self.store_eager_result = True  # code that waits for the end of a canvas looks there
        with denied_join_result():
            return self.apply(args, kwargs, link, link_error, task_id, headers=headers, **options)

    def apply(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> EagerCall:
        """As Celery's: at once, in this process; through the call's lane if Redis is there.

        Raises:
            BadInput: as `apply_async`.
        """
        chosen = {name: options.pop(name, None) for name in CHOICES}
        plan = self.plan(args or (), kwargs or {}, priority=options.pop("priority", None), **chosen)
        headers = {**(options.pop("headers", None) or {}), HEADER: plan.encode()}
        return EagerCall.of(super().apply(args, kwargs, *more, headers=headers, **options))

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
        """As Celery's, except after failures of a provider. `autoretry_for` calls this too.

        The lane learns of a provider's failure. If it costs no try (a 429, an outage), the lane sends the call again,
        and no retry is used. Every other retry is Celery's own, but not before the provider's Retry-After.

        The error for a call without retries left does not contain the arguments.
        """
        request = self.request
        if not (request.called_directly or request.is_eager):
            wish = Wish(
                wait_s=self._wished_s(eta, countdown),
                same=args is None and kwargs is None and not options,
                same_lane=options.get("lane") in (None, getattr(request.get(PLANNED), "lane", None)),
                goes_on=not throw,
            )
            verdict = own_retry(request.id, (exc, sys.exception()), wish)
            if isinstance(verdict, Stays):
                raise StaysInLane("the lane sends it again", exc=exc or sys.exception(), when=verdict.after_s)
            if isinstance(verdict, Goes) and verdict.after_s is not None:
                eta, countdown = None, verdict.after_s
        try:
            again = super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
            resent(request.id)  # reached only with throw=False
            setattr(request, GOES_ON, True)
            return again
        except self.MaxRetriesExceededError as error:
            if error is exc or not str(error).startswith(NO_MORE):
                raise
            told = f"{NO_MORE} {self.name}[{request.id}]: max_retries is reached"
            more = {"task_args": error.task_args, "task_kwargs": error.task_kwargs}
            raise self.MaxRetriesExceededError(told, **more) from error.__cause__

    def _wished_s(self, eta: datetime | None, countdown: float | None) -> float | None:
        """Seconds until a retry, as chosen by call or task; None: neither, so Celery's default would hold."""
        if countdown is not None:
            return float(countdown)
        if eta is not None:
            return max(0.0, (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp() - time.time())
        return chosen_delay_s(self)

    def _answered(
        self, task_id: str, hit: AnsweredAlready, args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> CallResult:
        """The result of a call that got a kept answer: stored under its own id, and available at once."""
        _, value = ANSWERS.decode(hit.answer)
        result = self.AsyncResult(task_id)
        result.ignored = options.get("ignore_result", self.ignore_result)
        if hit.stored:
            result.is_known(value)
        elif not result.ignored:
            # As for a call that ran: a backend that sends results needs the queue for replies.
            request = Context(
                id=task_id,
                task=self.name,
                args=list(args or ()),
                kwargs=dict(kwargs or {}),
                reply_to=options.get("reply_to") or self.app.thread_oid,
                correlation_id=task_id,
            )
            self.backend.mark_as_done(task_id, value, request=request)
        parent = self.app.current_worker_task if options.get("add_to_parent", True) else None
        if parent:
            parent.add_trail(result)
        return result

    def AsyncResult(self, task_id: str, **kwargs: Any) -> CallResult:  # noqa: N802 - Celery's name
        """The result of one call, by its id."""
        behind = super().AsyncResult
        if behind.__func__ is Task.AsyncResult:
            return CallResult(task_id, backend=self.backend, task_name=self.name, app=self.app, **kwargs)
        found: CallResult = behind(task_id, **kwargs)
        found.__class__ = _result_class(type(found))
        found.task_name = self.name
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._attempt(super().__call__ if self._is_wrapped() else self.run, args, kwargs)

    setattr(__call__, WITHIN, True)

    @classmethod
    def _is_wrapped(cls) -> bool:
        """Whether a base class has its own `__call__`."""
        behind = cls.__mro__[cls.__mro__.index(CallTask) + 1 :]
        return next(one for one in behind if "__call__" in vars(one)) is not Task

    def _attempt(self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run `inner` as an attempt at this call; directly, if this is not a call or an attempt is running already."""
        request = self.request
        if request.called_directly:
            return inner(*args, **kwargs) if inner != self.run else super().__call__(*args, **kwargs)
        if request.get(BEGUN):
            return inner(*args, **kwargs)
        if request.is_eager:
            return self._eagerly(inner, args, kwargs)
        header = request.get(HEADER)
        tag = (request.get("properties") or {}).get("delivery_tag")
        if header is None or tag is None:
            raise ConfigurationError(
                f"{self.name} makes calls, and this worker's app {self.app.main or ''!r} has no lanes: "
                "call ratelimit_worker.install(app) on it"
            )
        live, plan = services_of(self.app), Plan.decode(header)
        facts = Facts(
            call_id=request.id,
            tag=tag,
            task=self.name,
            plan=plan,
            queue=(request.delivery_info or {}).get("routing_key") or "",
            worker=f"{request.hostname}/{os.getpid()}",
            arguments=(lambda: (request.args, request.kwargs)) if live.settings.capture_content else None,
            settles_later=settles_later(self, request),
        )

        def run(begun: Begun) -> Any:
            self._restore(begun.body)
            request.rlw_number = begun.number
            setattr(request, PLANNED, plan)
            setattr(request, BEGUN, True)
            answer = inner(*request.args, **request.kwargs)
            if inspect.iscoroutine(answer):  # nothing was sent yet, since the coroutine has not started
                answer.close()
                raise ConfigurationError(
                    f"{self.name} is an async def, which a Celery worker does not await: let the task call "
                    "asyncio.run(…), or give it a base whose __call__ does"
                )
            return answer

        attempt = executor(live, facts.lane, type(self).classify).execute
        try:
            with QUARANTINE.shared() as may_run:
                result = attempt(structs.replace(facts, taken=not may_run), run, self._restore)
            if isinstance(result, MustBeAlone):
                with QUARANTINE.alone():
                    result = attempt(structs.replace(facts, alone=True), run, self._restore)
        except (RedisError, OSError) as away:
            if not PATIENCE.is_over():
                raise
            raise left_by(away) from away
        return _in_celerys_words(request.id, result)

    def _eagerly(self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        request, asked = self.request, asked_of_app(self.app)
        headers = request.headers or {}
        header = headers.get(HEADER)
        for name, value in headers.pop(CANVAS_HEADER, {}).items():
            setattr(request, name, value)  # Celery's own `apply` does not set them
        setattr(request, BEGUN, True)
        if asked is None or header is None:
            return inner(*args, **kwargs)
        return asked.eagerly(Plan.decode(header), self.name, inner, args, kwargs, type(self).classify)

    def show_arguments(self) -> None:
        """Put the arguments back before the attempt begins, for a hook or signal handler of the app."""
        request = self.request
        tag = (request.get("properties") or {}).get("delivery_tag")
        if request.get(HEADER) is None or tag is None or request.is_eager:
            return
        stored: Any = services_of(self.app).redis.get(keys.payload(tag.rpartition(".")[0]))
        self._restore(stored or b"")

    def _restore(self, payload: bytes) -> None:
        """Put arguments and canvas back where Celery looks for them."""
        if not payload:
            return
        args, kwargs, canvas = read_json(unpack_body(payload))
        request = self.request
        # in place, since Celery passes the same objects to on_success, after_return and the signals
        request.args[:] = args
        request.kwargs.clear()
        request.kwargs.update(kwargs)
        for name, value in (canvas or {}).items():
            setattr(request, name, value)


def _named(task_id: str | None, producer: Any, link: Any, link_error: Any, shadow: str | None) -> dict[str, Any]:
    """Options of Celery's `apply_async`, by name, since an override may only take the first two by position."""
    told = {"task_id": task_id, "producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
    return {name: value for name, value in told.items() if value is not None}


def _has_own(one: type, name: str) -> bool:
    """Whether a class that is neither ours nor Celery's defines that name (wrappers that we made do not count)."""
    return one not in {CallTask, Task} and name in vars(one) and not isinstance(vars(one)[name], property)


def _request_class(task: CallTask) -> type:
    """The class of a task's requests in a worker: a user's own, combined with ours."""
    from ratelimit_worker.worker.request import CallRequest  # here, since agents do not need Celery's worker

    return _mixed(symbol_by_name(task._own_request), CallRequest)


def _result_class(own: type) -> type:
    """The class of a call's results, if the task has its own class for them (such as Celery's abortable)."""
    return CallResult if own is AsyncResult else _mixed(CallResult, own)


@cache
def _mixed(first: type, second: type) -> type:
    """A class that combines both, the first before the second; only one of them if it derives from the other."""
    for one, other in ((first, second), (second, first)):
        if issubclass(one, other):
            return one
    return type(second.__name__, (first, second), {"__module__": second.__module__})


def _within_attempt(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def within(self: CallTask, *args: Any, **kwargs: Any) -> Any:
        return self._attempt(partial(call, self), args, kwargs)

    setattr(within, WITHIN, True)
    return within


def _with_arguments(before_start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(before_start)
    def within(self: CallTask, task_id: str, args: Any, kwargs: Any) -> Any:
        self.show_arguments()
        return before_start(self, task_id, args, kwargs)

    setattr(within, WITHIN, True)
    return within


def base_for(app: Celery, base: type | None) -> type:
    """The base class of a task that makes calls, combined with the class of the app or the author.

    Args:
        base: The author's class; None: the app's (`task_cls`; Django's has `delay_on_commit`).
    Raises:
        ConfigurationError: it is not a task class.
    """
    wanted = base if base is not None else app.Task
    if base is None and wanted.__mro__[1] is Task:
        return CallTask
    if not (isinstance(wanted, type) and issubclass(wanted, Task)):
        raise ConfigurationError(f"base={base!r}: a task class derives from celery.Task or ratelimit_worker.CallTask")
    if issubclass(wanted, CallTask):
        return wanted
    return type(wanted.__name__, (CallTask, wanted), {"abstract": True, "__module__": wanted.__module__})


@contextmanager
def accepting(app: Any, call_id: str, producer: Any, most_s: float = DECIDE_S) -> Iterator[Any]:
    """Send a call within this block: problems with Redis become one error, in time → the producer to send it with.

    Args:
        most_s: Seconds after which it fails, whatever Celery's time-outs are.
    Raises:
        StoreUnavailable: Redis is away, full or read-only.
    """
    with deciding(most_s) as decision:
        taken = None
        try:
            if producer is None:  # from a pool, or every thread that publishes would wait for those before it
                taken = app.producer_pool.acquire(block=True, timeout=decision.left_s())
            yield taken or producer
        except (OperationalError, LimitExceeded, RedisError, OSError, StoreUnavailable) as error:
            raise unavailable(error, "Redis said", call_id, "maybe" if decision.sent else "no") from error
        finally:
            if taken is not None:
                taken.release()


def sends(app: Any) -> Callable[..., Any]:
    """Give the app's `send_task` the errors of `.delay()`, for calls that are sent by name."""
    send = app.send_task

    @wraps(send)
    def send_task(name: str, *args: Any, **options: Any) -> Any:
        task = app.tasks.get(name)
        if current() is not None or not isinstance(task, CallTask):
            return send(name, *args, **options)
        _check_way(app, options.get("connection"), options.get("producer"))
        if app.current_worker_task is None or CANVAS.isdisjoint(options):
            own_options.check(options, CHOICES)
        chosen = {one: options.pop(one) for one in (*CHOICES, "priority") if one in options}
        if chosen:
            told = inspect.signature(send).bind(name, *args, **options).arguments
            plan = task.plan(told.get("args") or (), told.get("kwargs") or {}, **chosen)
            options["headers"] = {**(options.get("headers") or {}), HEADER: plan.encode()}
        options["task_id"] = call_id = options.get("task_id") or uuid()
        with accepting(app, call_id, options.pop("producer", None)) as producer:
            return send(name, *args, producer=producer, **options)

    return send_task


@cache
def _parameters(run: Callable[..., Any], ignored: tuple[str, ...]) -> Parameters:
    return Parameters.of(run, ignored, plain=lambda default: json.loads(dumps(default)))


@cache
def _place_of_model(run: Callable[..., Any]) -> int | None:
    """The position of the argument `model` of a task's function; None: it has none."""
    positional = [
        one.name
        for one in inspect.signature(run).parameters.values()
        if one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD}
    ]
    return positional.index("model") if "model" in positional else None


@cache
def _takes_task_id(run: Callable[..., Any]) -> bool:
    parameters = inspect.signature(run).parameters
    return "task_id" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def chosen_delay_s(task: Task) -> float | None:
    """A task's `default_retry_delay`, seconds; None: it has Celery's own."""
    said_by = next(one for one in (task, *type(task).__mro__) if "default_retry_delay" in vars(one))
    return None if said_by is Task else float(task.default_retry_delay or 0.0)


def _check_way(app: Celery, connection: Any, producer: Any) -> None:
    """Check that a call goes through its lane.

    Raises:
        ConfigurationError: the app, or the given connection, has no lanes.
    """
    if installation_of(app) is None:
        raise ConfigurationError(
            f"the app {app.main or ''!r} has no lanes for its calls: call ratelimit_worker.install(app) on it"
        )
    for name, given in (("connection", connection), ("producer", getattr(producer, "__connection__", None))):
        if given is not None and asked_of(given) is None:
            raise ConfigurationError(f"{name}=: this connection has no lanes; leave it out, or take one from app.pool")


def _in_celerys_words(call_id: str, result: Result) -> Any:
    """Translate the result of an attempt for Celery → the answer, if there is one."""
    match result:
        case Answered(value):
            return value
        case Again(after_s, error):
            raise CeleryRetry(str(error), exc=error, when=after_s)
        case GaveUp(error):
            if isinstance(error, Exception) and not isinstance(error, FOR_CELERY):
                raise error
            raise TaskAborted(call_id, type(error).__name__) from error
        case PassedOn(word):
            raise word
        case Interrupted(error):
            if isinstance(error, Exception):  # raised by clean-up code while the process ends
                raise SystemExit(1) from error
            raise error
        case _:
            raise Ignore


def _of_a_caller(plan: Plan, number: int | None, told_by_raising: bool) -> Plan:
    return structs.replace(
        plan,
        sender=Sender.CALLER,
        continuation=Continuation(attempts=number, ended=True) if number is not None else None,
        shedding=Shedding.RAISE if plan.shedding is not None and told_by_raising else plan.shedding,
        over_budget=Shedding.RAISE if plan.over_budget is not None and told_by_raising else plan.over_budget,
    )


def _going_on(plan: Plan, before: Plan, attempts: int, tries: int) -> Plan:
    """After self.retry or replace: the same call goes on, and keeps its deadline and the count of its attempts."""
    return structs.replace(
        plan,
        deadline_s=before.deadline_s,
        continuation=Continuation(attempts=attempts, tries=tries, goes_on=True),
        fingerprint=before.fingerprint,
    )


def _as_before(plan: Plan, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call that is retried: Celery does not repeat them, and sets its priority to 0, the highest."""
    sharing = plan.sharing
    repeated = {
        "lane": plan.lane,
        "tenant": plan.tenant,
        "context": plan.context,
        "tags": plan.tags,
        "cache": sharing is not None,
        "cache_incomplete": sharing is not None and sharing.keeps_incomplete,
        "stale_ttl": sharing.stale_ttl_s if sharing is not None else 0.0,
        "stale_while_revalidate": sharing.revalidate_s if sharing is not None else 0.0,
        "shed_below": "high" if plan.shedding is not None else "low",  # its class is the same, so: yes, or no
        "over_budget": "fail" if plan.over_budget is not None else "wait",
        "timeout_s": plan.timeout_s,
        "cache_ttl": sharing.ttl_s if sharing is not None else None,
        "refresh": sharing is not None and sharing.refresh,
        "no_store": sharing is not None and not sharing.stores,
    }
    return {name: repeated.get(name) if value is None else value for name, value in chosen.items()}


def _meaning(word: BaseException) -> Outcome:
    """What Celery does with a call whose task raised one of its control exceptions."""
    if isinstance(word, Reject):
        return Outcome.SNOOZED if word.requeue else Outcome.FAILED
    if isinstance(word, Ignore) and str(word) != REPLACED:
        return Outcome.FAILED
    return Outcome.RETRIED


def _behind(word: BaseException) -> tuple[BaseException | None, ...]:
    """Errors for which one of Celery's control exceptions may have been raised: its own, then those being handled."""
    said = [getattr(word, name, None) for name in ("exc", "reason")]
    context = None if word.__suppress_context__ else word.__context__
    return (*(one if isinstance(one, BaseException) else None for one in said), word.__cause__, context)


def _interrupted(error: BaseException) -> bool:
    """Whether this process or the task's greenlet is being ended (a child got a signal, a worker leaves)."""
    return terminate_handler_fired() or jobs.interrupted(error)


def executor(live: Services, lane: str = enqueue.DEFAULT_LANE, rule: Rule | None = None) -> Executor:
    """The executor over a process's services, for calls of a lane, and a task with this rule."""
    usual: Executor
    policies: Callable[[str], RetryPolicy]
    usual, policies = live.once("executor", lambda: _executor(live))
    policy = policies(lane)
    rules = usual.rules
    if policy is rules.policy and rule is None:
        return usual
    classify = plugins.classifier(rule) if rule else rules.classify
    return structs.replace(usual, rules=structs.replace(rules, policy=policy, classify=classify))


def _executor(live: Services) -> tuple[Executor, Callable[[str], RetryPolicy]]:
    policies = policy_of(live.settings)
    made = Executor(
        lanes=PatientLanes(live.redis),
        rules=Rules(
            answers=ANSWERS,
            jitter=random.random,
            policy=policies(enqueue.DEFAULT_LANE),
            classify=plugins.classifier(),
            price=live.prices,
            usual_nanousd=live.usual_nanousd,
            reconcile=lambda lane: enqueue.told(live.settings, lane).reconcile,
            pass_through=(TaskPredicate, Ignore, Reject),
            means=_meaning,
            behind=_behind,
        ),
        encode_outcome=live.encode_outcome,
        lease_s=live.settings.visibility_timeout_seconds,
        self_doubt=SelfDoubt(),
        given_up=HELD.overdue.__contains__,
        interrupted=_interrupted,
        shelve=live.shelf.keep,
        timeout_told_s=lambda lane: enqueue.timeout_told_s(live.settings, lane),
        latencies=live.learned_latencies,
        tracer=lambda: live.tracer,
    )
    return made, policies


def plan_by_name(app: Any) -> Callable[[str, list[Any], dict[str, Any], Mapping[str, Any]], Plan | None]:
    """Plans of calls that were sent by name (`send_task`, a stock producer), for the transport."""

    def find(name: str, args: list[Any], kwargs: dict[str, Any], sent: Mapping[str, Any]) -> Plan | None:
        task = app.tasks.get(name)
        chosen = {one: sent[one] for one in CHOICES if one in sent}
        return task.plan(args, kwargs, **chosen) if isinstance(task, CallTask) else None

    return find


def answers_of(app: Celery, eagerly: Eagerly) -> Asked:
    """An app's answers: which tasks make calls, how lanes are configured, how a call is made in process."""

    def lane_fields(lane: str) -> Fields:
        from ratelimit_worker.flow.lane import pin  # imports the law, needed only for a lane's first call

        live = services_of(app)
        return pin.lane_fields(live.control, live.settings, lane)

    def fingerprint_of(name: str, plan: Plan, args: list[Any], kwargs: dict[str, Any]) -> str:
        task = app.tasks.get(name)
        if isinstance(task, CallTask):
            return task.fingerprint(plan, args, kwargs)
        return fingerprint(enqueue.scope_of(plan, name), ANY.bound(args, kwargs))

    def result_form(name: str, call_id: str) -> ResultForm | None:
        backend = app.tasks[name].backend
        return backend.form_of(call_id) if isinstance(backend, Backend) else None

    return Asked(
        plan=plan_by_name(app),
        is_call=lambda name: isinstance(app.tasks.get(name), CallTask),
        calls=lambda: [name for name, task in tuple(app.tasks.items()) if isinstance(task, CallTask)],
        is_broadcast=lambda name: any(
            queue.exchange.name == name and queue.exchange.type == "fanout" for queue in tuple(app.amqp.queues.values())
        ),
        refuse=refuse(app, ANSWERS, lambda: services_of(app)),
        lane_fields=lane_fields,
        fingerprint=fingerprint_of,
        result_form=result_form,
        tracer=lambda: services_of(app).tracer,
        eagerly=eagerly,
    )


def warm_up(live: Services, slots: int = 1) -> None:
    """Connect and load the scripts before the first call: in a cold worker, released calls would begin as a burst."""
    if "ratelimit_worker.providers.http" in sys.modules:  # otherwise no task of this process uses it
        from ratelimit_worker.providers import http

        http.warm_up(min(slots, MOST_WARM_CLIENTS))
    live.lanes.run.load()
    executor(live)
