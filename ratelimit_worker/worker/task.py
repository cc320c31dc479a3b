"""How does a Celery task become a call? `apply_async` plans it into its lane, `__call__` makes one attempt at it.

Only a translation into Celery's words; what is decided stands in `flow`.
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
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial, wraps
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
from ratelimit_worker.flow.lane import pin
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
#: Options of `apply_async` that are the plan's.
CHOICES = (
    *("lane", "tenant", "context", "tags", "cost", "deadline_s", "timeout_s"),
    *("cache", "cache_incomplete", "stale_ttl", "shed_below"),
    *("cache_ttl", "namespace", "refresh", "no_store"),
)
CANCEL = ("leave", "revoke")  #: what may become of a call that nobody awaits any more
#: Options by which Celery sends a call for a canvas that is under way: nobody is there to catch an error.
CANVAS = frozenset({"parent_id", "group_id", "chord"})
#: Options of a call that belongs to a canvas, and how the request of one that is made in process has them.
CANVAS_HERE = {name: name for name in ("chain", "chord", "group_index", "root_id", "parent_id")} | {"group_id": "group"}
CANVAS_HEADER = "rlw_canvas"
IN_HAND_S = 60.0  #: no bound of ours: Celery's time-outs and its one retry come first
NO_MORE = "Can't retry"  #: how `Task.retry` begins when it gives up
REPLACED = "Replaced by new task"  #: what `Task.replace` says in its Ignore
WITHIN = "_ratelimit_worker_within"  #: marks a method that runs within the attempt, with the call's arguments
BEGUN = "rlw_begun"  #: of a request: its attempt has begun
PLANNED = "rlw_plan"  #: of a request whose attempt has begun: its plan
#: Exceptions by which Celery's parent process knows that a child was lost or told to end; raised by a task, they would
#: be taken for that. After a MemoryError it acknowledges nothing.
FOR_CELERY = (MemoryError, WorkerLostError, Terminated)
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
    Request: ClassVar[Any] = "ratelimit_worker.worker.request:CallRequest"
    _own_request: ClassVar[Any] = None  #: of a class behind or before this one
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure_or_timeout = acks_on_failure = acks_on_timeout = True
    serializer = "json"  # pickle would run code from a message
    track_started = False  # the lane knows what runs
    # `task_default_rate_limit` is for tasks that no lane paces.
    from_config = tuple(pair for pair in Task.from_config if pair[0] != "rate_limit")
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
    cache_version: ClassVar[str] = ""
    cache_ignores: ClassVar[Sequence[str]] = ()
    cache_namespace: ClassVar[str | None] = None
    share_across_tenants: ClassVar[bool] = False
    on_leader_failure: ClassVar[str] = "share"
    classify: ClassVar[Rule | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What a class of somebody's own does around a task happens within the attempt, with the call's arguments.

        Raises:
            ConfigurationError: it takes messages in a way of its own (`Strategy`, as batches do).
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
            namespace=self.cache_namespace,
            across_tenants=self.share_across_tenants,
            on_leader_failure=self.on_leader_failure,
        )
        live = services_of(self.app)
        if self.provider and options.get("lane") is None and self.lane is None and "model" not in kwargs:
            where = _place_of_model(self.run)
            model = args[where] if where is not None and where < len(args) else None
            if isinstance(model, str) and model:
                options["lane"] = f"{self.provider}:{model}"
        return enqueue.plan(
            kind,
            args,
            kwargs,
            live.settings,
            enqueue.Said(**options),
            now=time.time(),
            learned=live.learned_usage if live.redis_url else enqueue.nothing_learned,
            tokenizer=live.tokenizer,
        )

    def fingerprint(self, plan: Plan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """What calls with the same answer have in common.

        Args:
            args, kwargs: As JSON has them.
        """
        known = _parameters(self.run, tuple(self.cache_ignores))
        return fingerprint(enqueue.scope_of(plan, self.name, self.cache_version), known.bound(args, kwargs))

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's. `task_id=`, where the task's own function takes no such argument, is the call's id."""
        named = {}
        if "task_id" in kwargs and not _takes_task_id(self.run):
            named["task_id"] = kwargs.pop("task_id")
        return self.apply_async(args, kwargs, **named)

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """`.delay()` for an event loop, which goes on meanwhile → the result, which can be awaited.

        `cancel=`, where the task's own function has no such argument, is that of `aapply_async`.
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
            cancel: What becomes of the call where whoever awaits it, or awaits that it is sent, is cancelled: "leave"
                it, or "revoke" it.
        Raises:
            BadInput, LaneFull, LanesFull, LaneShedding, StoreUnavailable: as `apply_async`.
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
            result = await sent  # it may be in its lane by now
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
            BadInput: arguments or options that cannot be; nothing was sent.
            LaneFull: the lane holds as many calls as it may.
            LanesFull: the lane is new, and there are as many as may be.
            LaneShedding: the lane is in EMERGENCY or HALT, and calls of this class are shed then.
            StoreUnavailable: Redis is away, full or read-only, and says so within 2 s; `accepted` tells whether the
                call may run all the same.
        """
        running = self.app.current_worker_task
        if running is None or CANVAS.isdisjoint(options):  # else a canvas goes on, and nobody would hear of it
            own_options.check_for(self, options, CHOICES)
        if self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, **_named(task_id, producer, link, link_error, shadow), **options)
        if in_memory(self.app):  # a queue within this process, which no worker reads: a test
            return self._here(args, kwargs, task_id, link, link_error, options)
        _check_way(self.app, options.get("connection"), producer)
        chosen = {name: options.pop(name, None) for name in CHOICES}
        priority = options.pop("priority", None)
        # of attempts before, where a call that has ended is made anew under its id
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
        # What a worker has in hand goes on after a pause of Redis; nobody would make it again.
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
            args, kwargs = loads(dumps([args or (), kwargs or {}]))  # as a worker would get them
        except EncodeError as error:
            raise BadInput(f"the arguments of {self.name} are not JSON: {first_line(error)}") from error
        canvas = {name: options.pop(option) for option, name in CANVAS_HERE.items() if option in options}
        headers = {**(options.pop("headers", None) or {}), CANVAS_HEADER: canvas}
        self.store_eager_result = True  # whoever waits for the end of a canvas looks there
        with denied_join_result():
            return self.apply(args, kwargs, link, link_error, task_id, headers=headers, **options)

    def apply(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> EagerCall:
        """As Celery's: here and now, in this process; through the call's lane, if its Redis is there.

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
            resent(request.id)  # else it has raised
            setattr(request, GOES_ON, True)
            return again
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

    def _answered(
        self, task_id: str, hit: AnsweredAlready, args: Any, kwargs: Any, options: Mapping[str, Any]
    ) -> CallResult:
        """The result of a call that was answered before: stored under its own id, and there at once."""
        _, value = ANSWERS.decode(hit.answer)
        result = self.AsyncResult(task_id)
        result.ignored = options.get("ignore_result", self.ignore_result)
        if hit.stored:
            result.is_known(value)
        elif not result.ignored:
            # As of a call that ran: a backend that sends results asks for the queue of replies.
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
        """Whether a class behind this one has a `__call__` of its own."""
        behind = cls.__mro__[cls.__mro__.index(CallTask) + 1 :]
        return next(one for one in behind if "__call__" in vars(one)) is not Task

    def _attempt(self, inner: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run `inner` as an attempt at this call; as it is, where this is none or is within one."""
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
            if inspect.iscoroutine(answer):  # nothing was asked yet: its first step is not made
                answer.close()
                raise ConfigurationError(
                    f"{self.name} is an async def, and a worker of Celery's awaits nothing: let the task call "
                    "asyncio.run(…), or give it a base whose __call__ does"
                )
            return answer

        attempt = executor(live, facts.lane, type(self).classify).execute
        try:
            with QUARANTINE.shared() as may_run:
                result = attempt(replace(facts, taken=not may_run), run, self._restore)
            if isinstance(result, MustBeAlone):
                with QUARANTINE.alone():
                    result = attempt(replace(facts, alone=True), run, self._restore)
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
            setattr(request, name, value)  # Celery's own `apply` knows of none
        setattr(request, BEGUN, True)
        if asked is None or header is None:
            return inner(*args, **kwargs)
        return asked.eagerly(Plan.decode(header), self.name, inner, args, kwargs, type(self).classify)

    def show_arguments(self) -> None:
        """Put the arguments back before the attempt has begun, for a hook or a signal's handler of the app's."""
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
        # in place: Celery hands the same objects to on_success, after_return and the signals
        request.args[:] = args
        request.kwargs.clear()
        request.kwargs.update(kwargs)
        for name, value in (canvas or {}).items():
            setattr(request, name, value)


def _named(task_id: str | None, producer: Any, link: Any, link_error: Any, shadow: str | None) -> dict[str, Any]:
    """Options of Celery's `apply_async`, by name: an override in somebody's class may take the first two only."""
    told = {"task_id": task_id, "producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
    return {name: value for name, value in told.items() if value is not None}


def _has_own(one: type, name: str) -> bool:
    """Whether a class that is neither ours nor Celery's says something of that name (what we made of it apart)."""
    return one not in {CallTask, Task} and name in vars(one) and not isinstance(vars(one)[name], property)


def _request_class(task: CallTask) -> type:
    """The class of a task's requests, which a worker asks for: somebody's own, with what it needs to know of a call."""
    from ratelimit_worker.worker.request import CallRequest  # agents do without Celery's worker

    return _mixed(symbol_by_name(task._own_request), CallRequest)


def _result_class(own: type) -> type:
    """The class of a call's results, where the task has a class of its own for them (such as Celery's abortable)."""
    return CallResult if own is AsyncResult else _mixed(CallResult, own)


@cache
def _mixed(first: type, second: type) -> type:
    """Both in one, the first before the second; one of them, where it is the other as well."""
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
    """The class of which a task that makes calls is made: what the app, or its author, has of its own comes with it.

    Args:
        base: What the author named; None: the app's own (`task_cls`; Django's has `delay_on_commit`).
    Raises:
        ConfigurationError: it is no class of tasks.
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
    """Send a call inside: what goes wrong with Redis is one error, in time → the producer to send it with.

    Args:
        most_s: Seconds after which it is an error, whatever Celery's time-outs are.
    Raises:
        StoreUnavailable: Redis is away, full or read-only.
    """
    with deciding(most_s) as decision:
        taken = None
        try:
            if producer is None:  # else every thread that publishes waits for those before it
                taken = app.producer_pool.acquire(block=True, timeout=decision.left_s())
            yield taken or producer
        except (OperationalError, LimitExceeded, RedisError, OSError, StoreUnavailable) as error:
            raise unavailable(error, "Redis said", call_id, "maybe" if decision.sent else "no") from error
        finally:
            if taken is not None:
                taken.release()


def sends(app: Any) -> Callable[..., Any]:
    """The app's `send_task`, with the errors of `.delay()` where it is a call that is sent by its name."""
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
    """Where a task's function takes its argument `model` among those without a name; None: nowhere."""
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
    """A call goes through its lane, or the way it was sent is refused.

    Raises:
        ConfigurationError: the app, or the connection that was given, has no lanes.
    """
    if installation_of(app) is None:
        raise ConfigurationError(
            f"the app {app.main or ''!r} has no lanes for its calls: call ratelimit_worker.install(app) on it"
        )
    for name, given in (("connection", connection), ("producer", getattr(producer, "__connection__", None))):
        if given is not None and asked_of(given) is None:
            raise ConfigurationError(f"{name}=: it leads past the lanes; leave it out, or take one of app.pool")


def _in_celerys_words(call_id: str, result: Result) -> Any:
    """What an attempt came to, as Celery hears it → the answer of one that was answered."""
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
            if isinstance(error, Exception):  # raised by a clean-up while the process ends
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
    )


def _going_on(plan: Plan, before: Plan, attempts: int, tries: int) -> Plan:
    """After self.retry or replace: the same call goes on, so its deadline and the count of its attempts do too."""
    return structs.replace(
        plan,
        deadline_s=before.deadline_s,
        continuation=Continuation(attempts=attempts, tries=tries, goes_on=True),
        fingerprint=before.fingerprint,
    )


def _as_before(plan: Plan, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The choices for a call that is retried: Celery repeats none of them, and makes its priority 0, the highest."""
    sharing = plan.sharing
    repeated = {
        "lane": plan.lane,
        "tenant": plan.tenant,
        "context": plan.context,
        "tags": plan.tags,
        "cache": sharing is not None,
        "cache_incomplete": sharing is not None and sharing.keeps_incomplete,
        "stale_ttl": sharing.stale_ttl_s if sharing is not None else 0.0,
        "shed_below": "high" if plan.shedding is not None else "low",  # its class is the same, so: yes, or no
        "timeout_s": plan.timeout_s,
        "cache_ttl": sharing.ttl_s if sharing is not None else None,
        "refresh": sharing is not None and sharing.refresh,
        "no_store": sharing is not None and not sharing.stores,
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


def _interrupted(error: BaseException) -> bool:
    """Whether this process, or the task's greenlet, is being ended: a child that got a signal, a worker that leaves."""
    return terminate_handler_fired() or jobs.interrupted(error)


def executor(live: Services, lane: str = enqueue.DEFAULT_LANE, rule: Rule | None = None) -> Executor:
    """The executor over the services of a process, for calls of a lane, of a task with this rule."""
    usual: Executor
    policies: Callable[[str], RetryPolicy]
    usual, policies = live.once("executor", lambda: _executor(live))
    policy = policies(lane)
    rules = usual.rules
    if policy is rules.policy and rule is None:
        return usual
    classify = plugins.classifier(rule) if rule else rules.classify
    return replace(usual, rules=replace(rules, policy=policy, classify=classify))


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
        given_up=HELD.overdue.__contains__,
        interrupted=_interrupted,
        timeout_told_s=lambda lane: enqueue.timeout_told_s(live.settings, lane),
        latencies=live.learned_latencies,
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
    """What an app answers: which tasks make calls, what is configured of lanes, how a call is made in process."""

    def lane_fields(lane: str) -> Fields:
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
        refuse=refuse(app, ANSWERS, lambda attempt: services_of(app).encode_outcome(attempt)),
        lane_fields=lane_fields,
        fingerprint=fingerprint_of,
        result_form=result_form,
        eagerly=eagerly,
    )


def warm_up(live: Services, slots: int = 1) -> None:
    """Connect and load the scripts before the first call: released calls that meet a cold worker start as a burst."""
    if "ratelimit_worker.providers.http" in sys.modules:  # else no task of this process asks by it
        from ratelimit_worker.providers import http

        http.warm_up(min(slots, MOST_WARM_CLIENTS))
    live.lanes.run.load()
    executor(live)
