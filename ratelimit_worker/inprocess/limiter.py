"""What can a program ask for that makes its calls itself? `get_advanced_rate_limiter()`: one object a process.

A call waits in its lane like one on a queue, fair with those, and runs in the caller's thread or event loop. Where
there is no lane to wait in (switched off, or Redis is away) it goes ahead all the same, `RATE_LIMIT_DELAY` apart.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs
from redis import RedisError

from ratelimit_worker import plugins
from ratelimit_worker.calls import Cost, Mode, ModeChange
from ratelimit_worker.config import NO_REDIS
from ratelimit_worker.contracts.plan import Sender, Shedding
from ratelimit_worker.errors import BadInput, ConfigurationError, DeadlineExceeded, StoreUnavailable
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.flow.call.admit import LOOK_AGAIN_S, Admission, Sleep, Steps, inside, run_unpaced
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.flow.call.execute import Executor
from ratelimit_worker.flow.call.judge import Rules
from ratelimit_worker.flow.lane import pin
from ratelimit_worker.inprocess.basic import BasicPace
from ratelimit_worker.inprocess.desk import Desk
from ratelimit_worker.inprocess.drive import InLoop, InThread, Mail, is_async
from ratelimit_worker.inprocess.lane import lane_of
from ratelimit_worker.inprocess.mailbox import Turn
from ratelimit_worker.inprocess.own_modes import OwnModes, apart_s
from ratelimit_worker.inprocess.sharing import CacheKey, Sharing, check_key
from ratelimit_worker.inprocess.slices import turn_to_begin
from ratelimit_worker.person import this_person
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.policy.timeout import timeouts
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.desks import Desks
from ratelimit_worker.stores.reach import reach, redis_errors
from ratelimit_worker.wiring import Services, policy_of, services

log = logging.getLogger(__name__)

DAY_S = 86_400.0
PROBE_EVERY_S = 3.0  #: `is_enabled` asks a Redis that nobody has called on so often at most

#: Of an answer that is not shared nothing goes to Redis: nobody but the caller waits for it.
UNKEPT = Answers(dumps=lambda _: "", loads=json.loads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a call is to be made, beside what it calls.

    Args:
        lane: None: `<provider>:<model>` as far as the arguments tell, else "default".
        cache_enabled: Whether its answer is shared: one that is kept or on its way may stand for the call.
        cache_incomplete: Whether an answer that was truncated, refused or filtered is kept, too.
        stale_ttl: Seconds for which an answer is kept beyond its time, for a lane in EMERGENCY or HALT.
        shed_below: A call of a class below this one raises `LaneShedding` while its lane is in EMERGENCY or HALT.
        timeout_s: Seconds that one attempt may take: built-in providers obey, and the function may ask
            `ratelimit_worker.timeout_s()`; None: as lane and settings say, or by what is learned.
        classify: Told what the function raised, as for a task: its `Category`, a `Failure`, or None for our own rules.
        cache_key: Calls with the same one share, whatever function, `self` and arguments are: plain data, or a function
            of the call's arguments (`self` first) that returns it; None from it: this call shares nothing.
    """

    context: str = "general"
    context_tags: Sequence[str] = ()
    cache_enabled: bool = True
    cache_incomplete: bool = False
    lane: str | None = None
    tenant: str = ""
    priority: str | int = "normal"
    deadline_s: float | None = None
    cost: Cost | None = None
    stale_ttl: float = 0.0
    shed_below: str | None = None
    timeout_s: float | None = None
    classify: Rule | None = None
    cache_key: CacheKey = None

    def __post_init__(self) -> None:
        enqueue.check(self.said)
        check_key(self.cache_key)

    @property
    def said(self) -> enqueue.Said:
        """What that says of the call, as every call says it."""
        return enqueue.Said(
            lane=self.lane,
            tenant=self.tenant,
            context=self.context,
            tags=self.context_tags,
            priority=self.priority,
            deadline_s=self.deadline_s,
            cost=self.cost,
            cache=self.cache_enabled,
            cache_incomplete=self.cache_incomplete,
            stale_ttl=self.stale_ttl,
            shed_below=self.shed_below,
            timeout_s=self.timeout_s,
        )


class AdvancedRateLimiter:
    """In-process calls, and the cluster as a program sees it.

    Args:
        live: None: the process's own services, from the environment.
        clock, sleep, sleep_async, jitter: Of the waits that this process chooses; tests pass theirs.
    """

    def __init__(
        self,
        live: Services | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._live = live
        self._clock, self._sleep, self._sleep_async, self._jitter = clock, sleep, sleep_async, jitter
        self._basic = BasicPace(clock)
        self._own_modes = OwnModes()
        self._sharing = Sharing()
        self._desk: Desk | None = None
        self._probed: tuple[float, bool] = (float("-inf"), False)
        self._lock = threading.Lock()

    # ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────

    def make_rate_limited_call(
        self,
        func: Callable[..., Any],
        func_name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        context: str = "general",
        **options: Any,
    ) -> Any:
        """Call `func(*args, **kwargs)` when its lane lets it, and again where a failure is worth it.

        An `async def` function gives a coroutine to await; it runs in the caller's loop.

        Args:
            func_name: What statistics call it; the function's own name when None.
            options: As `Options`: lane, context_tags, cache_enabled, cache_incomplete, tenant, priority, deadline_s,
                cost, stale_ttl, shed_below, timeout_s, classify, cache_key.
        Raises:
            Exception: what `func` raised last, as it was.
            DeadlineExceeded: the lane had no turn for it within its deadline.
            LaneFull, LaneShedding, BadInput: the lane refused it; `func` was not called.
            ConfigurationError: a setting is wrong.
        """
        how = Options(context=context, **options)
        name = _name_of(func, func_name)
        given = dict(kwargs or {})
        if is_async(func):
            return self._call_async(func, name, args, given, how)
        driver = InThread(self._sleep)
        steps = self._steps(func, name, args, given, how, driver)
        return driver.drive(steps, partial(func, *args, **given))

    async def _call_async(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any], how: Options
    ) -> Any:
        await turn_to_begin()
        driver = InLoop(self._sleep_async)
        steps = self._steps(func, name, args, kwargs, how, driver)
        return await driver.drive(steps, partial(func, *args, **kwargs))

    def _steps(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        how: Options,
        driver: InThread | InLoop,
    ) -> Steps:
        live = self.services
        settings = live.settings
        lane = _lane_of(func, kwargs, how)
        if not settings.enable_advanced_rate_limiting:
            return self._without_lanes(live, lane, how, "they are switched off")
        if not live.redis_url:
            return self._without_lanes(live, lane, how, NO_REDIS)
        desk = self._desk_of(live)
        plan = enqueue.plan(
            enqueue.Kind(task=name, lane=lane),
            args,
            kwargs,
            settings,
            how.said,
            now=time.time(),
            learned=live.learned_usage,
            tokenizer=live.tokenizer,
        )
        fingerprint = None
        if plan.sharing is not None:
            fingerprint = self._sharing.fingerprint(
                func, name, lane, how.context, args, kwargs, how.cache_key, plan.tenant
            )
            if any(outer.fingerprint == fingerprint for outer in inside.get()):
                fingerprint = None  # it would wait for itself
        shedding = Shedding.RAISE if plan.shedding is not None else None
        plan = structs.replace(plan, sender=Sender.CALLER, shedding=shedding, fingerprint=fingerprint)

        def take_part(ref: str) -> Turn:
            hear: Callable[[Mail], None] = driver.mailbox()
            return desk.wait(ref, hear, fingerprint)

        return Admission(
            call_id=uuid.uuid4().hex,
            task=name,
            plan=plan,
            worker=desk.worker,
            desk=desk,
            take_part=take_part,
            executor=self._executor(
                desk,
                plan.lane,
                UNKEPT if fingerprint is None else self._sharing.answers(name, plan.max_body_bytes),
                how,
            ),
            unpaced=lambda: self._basic.reserve(settings.rate_limit_delay, desk.why or "Redis is away"),
            arguments=(lambda: (args, kwargs)) if settings.capture_content else None,
        ).steps()

    def _executor(self, desk: Desk, lane: str, answers: Answers, how: Options) -> Executor:
        live, settings = desk.live, desk.live.settings
        return Executor(
            lanes=desk,
            rules=Rules(
                answers=answers,
                jitter=self._jitter,
                policy=policy_of(settings)(lane),
                classify=plugins.classifier(how.classify),
                price=live.prices,
                usual_nanousd=live.usual_nanousd,
                reconcile=lambda lane: enqueue.told(settings, lane).reconcile,
            ),
            encode_outcome=live.encode_outcome,
            lease_s=desk.lease_s,
            tally=desk.tally,
            timeout_told_s=lambda lane: enqueue.timeout_told_s(settings, lane),
            latencies=live.learned_latencies,
        )

    def explain_key(
        self,
        func: Callable[..., Any],
        func_name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        context: str = "general",
        **options: Any,
    ) -> dict[str, Any]:
        """Which calls share an answer with this one, and by what that is decided; the call is not made.

        Args:
            func: Also one under `@optimize_api_call`, or a method that is: then with the options that it has there.
            options: As of `make_rate_limited_call`.
        Returns:
            `shares`; `why` not; `key`, the same for calls that share; `counts`, for each part that does (`argument 0`,
            `self.model`) a few digits by which two calls can be compared, and nothing of its value; `left_out`, what of
            `self` does not count, and what it is.
        Raises:
            BadInput: an option or a `cache_key` that cannot be.
        """
        called = getattr(func, "__func__", func)
        if (decorated := getattr(called, "optimized", None)) is not None:
            if called is not func:
                args = (func.__self__, *args)  # type: ignore[attr-defined]
            func, func_name, options = decorated.function, decorated.name, {**decorated.options, **options}
            context = options.pop("context")
        how, name, given = Options(context=context, **options), _name_of(func, func_name), dict(kwargs or {})
        settings = self.services.settings
        lane, tenant = _lane_of(func, given, how), how.tenant or ""
        found = self._sharing.explain(func, name, lane, context, args, given, how.cache_key, tenant)
        off = {
            "cache_enabled is false": not how.cache_enabled,
            "MAISD_ENABLE_ADVANCED_RATE_LIMITING is false": not settings.enable_advanced_rate_limiting,
            "no Redis is named": not self.services.redis_url,
            "the settings keep no answer, and let nobody wait for another's": not (
                settings.enable_request_deduplication
                or (settings.enable_intelligent_caching and settings.cache_ttl_seconds > 0)
            ),
        }
        return {**found, **next(({"shares": False, "why": why} for why, holds in off.items() if holds), {})}

    def _without_lanes(self, live: Services, lane: str, how: Options, why: str) -> Steps:
        """One attempt at the basic pace, or as the mode that this process has set for itself lets it."""
        settings = live.settings
        deadline_s = settings.deadline_s if how.deadline_s is None else how.deadline_s
        told_s = enqueue.timeout_of(how.timeout_s, settings, lane)
        until, mode = self._clock() + deadline_s, Mode.NORMAL
        while not live.redis_url and (mode := self._own_modes.of(lane, settings)) is Mode.HALT:
            if (left_s := until - self._clock()) <= 0:
                raise DeadlineExceeded(uuid.uuid4().hex, lane)
            yield Sleep(min(LOOK_AGAIN_S, left_s))
        unpaced = partial(self._basic.reserve, apart_s(mode, settings), why)
        outside = timeouts(told_s=told_s, known=None, now_s=0.0, left_s=deadline_s)
        return (yield from run_unpaced(unpaced, timeouts=outside))

    # ── the cluster ──────────────────────────────────────────────────────────────────────────────────────────────

    def is_enabled(self) -> bool:
        """Whether calls go through lanes now: the switch is on, and Redis was there at the last look.

        Once this process has made a call its desk looks all the time; before, this asks Redis, every 3 s at most.
        """
        live = self.services
        if not live.settings.enable_advanced_rate_limiting:
            return False
        if self._desk is not None and self._desk.opened:
            return self._desk.up
        now = self._clock()
        if now - self._probed[0] >= PROBE_EVERY_S:
            self._probed = (now, _answers(live))
        return self._probed[1]

    def set_mode(
        self, mode: str, lane: str | None = None, for_s: float | None = None, reason: str = ""
    ) -> list[ModeChange]:
        """Pin a mode for the whole cluster: normal, reduced, emergency or halt; "auto" (or "resume") gives it back.

        Where no Redis is named it holds for the calls of this process: a pace in REDUCED and EMERGENCY, a wait in HALT.

        Args:
            lane: None: all lanes.
            for_s: Seconds until the pin ends by itself; None: it stays until "auto".
        Returns:
            The changes, one for each lane concerned.
        Raises:
            BadInput: no such mode, or `for_s` is not above 0.
            StoreUnavailable: Redis is away.
        """
        word = mode.strip().upper()
        if word not in (*Mode, "AUTO", "RESUME"):
            raise BadInput(f"mode={mode!r}: use {', '.join(known.lower() for known in Mode)} or auto")
        live, mode_ = self.services, None if word in ("AUTO", "RESUME") else Mode(word)
        if not live.redis_url:
            return self._own_modes.pin(live.settings, mode_, lane=lane, for_s=for_s, reason=reason, who=this_person())
        reach(live.redis)
        with redis_errors():
            if mode_ is None:
                return pin.auto(live.control, lane=lane, reason=reason, who=this_person())
            return pin.pin(live.control, mode_, lane=lane, for_s=for_s, reason=reason, who=this_person())

    def get_comprehensive_stats(self) -> dict[str, Any]:
        """Volume, errors, cache, retries, latency and modes: `{"15m": …, "1h": …, "24h": …}`, each as `stats` has it.

        Raises:
            StoreUnavailable: the tracking database is away. Where Redis is, `missing` says what could not be told.
        """
        from ratelimit_worker.inprocess.figures import comprehensive_stats

        return comprehensive_stats(self.services, time.time())

    def export_analytics(self, path: str | Path | None = None) -> dict[str, Any] | None:
        """The report of the last 24 hours: written to `path` (.json, .csv or .html), returned where there is none.

        Raises:
            BadInput: the name ends otherwise.
            StoreUnavailable: the tracking database is away.
        """
        from ratelimit_worker.inprocess.figures import sources
        from ratelimit_worker.reports import analytics

        return analytics.export(sources(self.services), path)

    def invalidate_cache(self, context: str | None = None) -> int:
        """Forget kept answers (of one context; None: all) → how many. Where no Redis is named none are kept.

        Raises:
            StoreUnavailable: Redis is away, and what it keeps could be answered from again.
        """
        from ratelimit_worker.stores.answers import forget

        live = self.services
        if not live.redis_url:
            return 0
        reach(live.redis)
        with redis_errors():
            return forget(live.redis, context)

    def cleanup(self) -> dict[str, int]:
        """Delete what is past its time → how many: outcomes older than `MAISD_RETENTION_DAYS`, calls of dead processes.

        Raises:
            StoreUnavailable: the tracking database is away. A Redis that is away holds nothing to clean, and is logged.
        """
        live = self.services
        done = {"outcomes": live.tracker.purge(live.settings.retention_days * DAY_S), "abandoned_calls": 0}
        if not live.redis_url:
            return done
        try:
            reach(live.redis)
            with redis_errors():
                desks, lease_s = Desks(live.redis), live.settings.visibility_timeout_seconds
                done["abandoned_calls"] = desks.forget_absent(f"cleanup-{os.getpid()}", lease_s)
        except StoreUnavailable as error:
            log.warning("cleanup.without_redis %s", error, extra={"cause": str(error)})
        return done

    def close(self) -> None:
        """End this process's part in the cluster; the next call begins anew. Ends by itself with the process."""
        with self._lock:
            desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    @property
    def services(self) -> Services:
        """What this works on.

        Raises:
            ConfigurationError: a setting is wrong.
        """
        return self._live or services()

    def _desk_of(self, live: Services) -> Desk:
        desk = self._desk
        if desk is not None and desk.live is live and desk.pid == os.getpid():
            return desk
        with self._lock:
            old = self._desk
            if old is not None and old.live is live and old.pid == os.getpid():
                return old
            desk = self._desk = Desk(live)
        if old is not None:
            old.close()  # another server; of a parent process it is none of ours, and stays
        return desk


def _name_of(func: Callable[..., Any], told: str | None) -> str:
    return told or getattr(func, "__qualname__", None) or type(func).__qualname__


def _lane_of(func: Callable[..., Any], kwargs: Mapping[str, Any], how: Options) -> str:
    return lane_of(func, kwargs) or enqueue.DEFAULT_LANE if how.lane is None else how.lane


def _answers(live: Services) -> bool:
    try:
        with deciding():
            return bool(live.redis.ping())
    except (RedisError, OSError, StoreUnavailable, ConfigurationError):
        return False


_limiter: AdvancedRateLimiter | None = None
_making = threading.Lock()


def get_advanced_rate_limiter() -> AdvancedRateLimiter:
    """The limiter of this process. Nothing is read or connected before it is used."""
    global _limiter
    with _making:
        if _limiter is None:
            _limiter = AdvancedRateLimiter()
        return _limiter


def _after_fork() -> None:
    global _limiter, _making
    _limiter, _making = None, threading.Lock()  # the parent's threads, and whoever held the lock, are not here


os.register_at_fork(after_in_child=_after_fork)


def make_optimized_llm_call(
    func: Callable[..., Any],
    func_name: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    context: str = "general",
    **options: Any,
) -> Any:
    """`get_advanced_rate_limiter().make_rate_limited_call(...)`."""
    return get_advanced_rate_limiter().make_rate_limited_call(func, func_name, args, kwargs, context, **options)
