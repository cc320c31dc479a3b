"""The API for programs that make calls in process: `get_advanced_rate_limiter()`, one object in a process.

A call waits in its lane like calls on queues, shares it fairly with them, and runs in the caller's thread or event
loop. If lanes cannot be used (they are switched off, or Redis is away), it goes on all the same, `RATE_LIMIT_DELAY`
apart.
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
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs
from redis import RedisError

from ratelimit_worker import plugins
from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.config import NO_REDIS
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import BadInput, ConfigurationError, DeadlineExceeded, StoreUnavailable
from ratelimit_worker.fingerprint import Scope
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.flow.call.admit import LOOK_AGAIN_S, Admission, Sleep, Steps, inside, run_unpaced
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.flow.call.execute import Executor
from ratelimit_worker.flow.call.judge import Rules
from ratelimit_worker.flow.lane import pin
from ratelimit_worker.inprocess.alike import Alike, InLane, Sets
from ratelimit_worker.inprocess.basic import BasicPace
from ratelimit_worker.inprocess.desk import Desk
from ratelimit_worker.inprocess.drive import InLoop, InThread, Mail, is_async
from ratelimit_worker.inprocess.lane import lane_of
from ratelimit_worker.inprocess.mailbox import Turn
from ratelimit_worker.inprocess.options import Options
from ratelimit_worker.inprocess.own_modes import OwnModes, apart_s
from ratelimit_worker.inprocess.renewal import Renewals
from ratelimit_worker.inprocess.sharing import Sharing
from ratelimit_worker.inprocess.slices import turn_to_begin
from ratelimit_worker.person import this_person
from ratelimit_worker.policy.timeout import timeouts
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.desks import Desks
from ratelimit_worker.stores.reach import reach, redis_errors
from ratelimit_worker.wiring import Services, services

log = logging.getLogger(__name__)

DAY_S = 86_400.0
PROBE_EVERY_S = 3.0  #: before the first call, `is_enabled` asks Redis at most this often, seconds

#: Settled in place of an answer that is not shared, so that the answer does not go to Redis.
UNKEPT = Answers(dumps=lambda _: "", loads=json.loads)


class AdvancedRateLimiter:
    """In-process calls, and the cluster's functions for programs.

    Args:
        live: None: the process's own services, from the environment.
        clock, sleep, sleep_async, jitter: For this process's own waits; tests pass theirs.
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
        self._sets = Sets()
        self._sharing = Sharing()
        self._renewals = Renewals()
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
        """Call `func(*args, **kwargs)` when its lane releases it, and again after failures that are retried.

        For an `async def` function, a coroutine is returned; it runs in the caller's loop.

        Args:
            func_name: What statistics call it; the function's own name when None.
            options: As `Options`: lane, context_tags, cache_enabled, cache_incomplete, tenant, priority, deadline_s,
                cost, stale_ttl, stale_while_revalidate, shed_below, over_budget, timeout_s, classify, cache_key,
                cache_ttl, refresh, no_store, namespace, version, ignore.
        Raises:
            Exception: what `func` last raised, unchanged.
            DeadlineExceeded: it was not its turn before its deadline.
            LaneFull, LanesFull, LaneShedding, BudgetSpent, BadInput: the lane refused it; `func` was not called.
            ConfigurationError: a setting is wrong.
        """
        name = _name_of(func, func_name)
        given = dict(kwargs or {})
        if is_async(func):
            return self._call_async(func, name, args, given, context, options)
        alike = self._sets.of(name, context, options)
        driver = InThread(self._sleep)
        steps = self._steps(func, alike, args, given, driver)
        return driver.drive(steps, partial(func, *args, **given))

    async def _call_async(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        context: str,
        options: dict[str, Any],
    ) -> Any:
        await turn_to_begin()
        alike = self._sets.of(name, context, options)  # only now, since thousands may be made in one step of a loop
        driver = InLoop(self._sleep_async)
        steps = self._steps(func, alike, args, kwargs, driver)
        return await driver.drive(steps, partial(func, *args, **kwargs))

    def _steps(
        self,
        func: Callable[..., Any],
        alike: Alike,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        driver: InThread | InLoop,
    ) -> Steps:
        live, how = self.services, alike.how
        settings = live.settings
        lane = _lane_of(func, kwargs, how)
        if not settings.enable_advanced_rate_limiting:
            return self._without_lanes(live, lane, how, "they are switched off")
        if not live.redis_url:
            return self._without_lanes(live, lane, how, NO_REDIS)
        desk = self._desk_of(live)
        here = desk.in_lanes.of(alike, lane)
        plan = enqueue.filled(
            here.frame, args, kwargs, now=time.time(), learned=live.learned_usage, tokenizer=live.tokenizer
        )
        fingerprint = self._fingerprint(plan, func, alike, args, kwargs)
        if fingerprint is not None:
            plan = structs.replace(plan, fingerprint=fingerprint)

        def take_part(ref: str) -> Turn:
            hear: Callable[[Mail], None] = driver.mailbox()
            return desk.wait(ref, hear, fingerprint)

        return Admission(
            call_id=plan.publication,
            task=alike.name,
            plan=plan,
            worker=desk.worker,
            desk=desk,
            take_part=take_part,
            executor=self._executor(desk, alike, here, plan),
            unpaced=lambda: self._basic.reserve(settings.rate_limit_delay, desk.why or "Redis is away"),
            arguments=(lambda: (args, kwargs)) if settings.capture_content else None,
            renew=lambda: self._renew(func, alike, args, kwargs, driver),
        ).steps()

    def _fingerprint(
        self,
        plan: Plan,
        func: Callable[..., Any],
        alike: Alike,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> str | None:
        """Return what identifies equal calls; None: the call shares nothing, or runs inside its equal."""
        if plan.sharing is None:
            return None
        scope = enqueue.scope_of(plan, alike.name, alike.how.version)
        fingerprint = self._sharing.fingerprint(func, scope, args, kwargs, alike.how.by)
        if any(outer.fingerprint == fingerprint for outer in inside.get()):
            return None  # it would wait for itself
        return fingerprint

    def _renew(
        self,
        func: Callable[..., Any],
        alike: Alike,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        driver: InThread | InLoop,
    ) -> None:
        """Make the call as a renewal, behind the calls that somebody waits for; its answer replaces the old one."""
        anew = Alike(alike.name, structs.replace(alike.how, refresh=True, priority="low", shed_below=None))
        lane, attempt = _lane_of(func, kwargs, alike.how), partial(func, *args, **kwargs)
        if isinstance(driver, InLoop):
            loop = InLoop(self._sleep_async)
            self._renewals.in_loop(lane, lambda: loop.drive(self._steps(func, anew, args, kwargs, loop), attempt))
        else:
            thread = InThread(self._sleep)
            self._renewals.in_thread(lane, lambda: thread.drive(self._steps(func, anew, args, kwargs, thread), attempt))

    def _executor(self, desk: Desk, alike: Alike, here: InLane, plan: Plan) -> Executor:
        """What makes the attempts at a call: the same for all calls that are made alike."""
        if plan.fingerprint is None:
            found = here.unshared
            if found is None:
                found = here.unshared = self._new_executor(desk, plan.lane, UNKEPT, alike.how)
            return found
        found = here.shared
        if found is None:
            answers = self._sharing.answers(alike.name, plan.max_body_bytes)
            found = here.shared = self._new_executor(desk, plan.lane, answers, alike.how)
        return found

    def _new_executor(self, desk: Desk, lane: str, answers: Answers, how: Options) -> Executor:
        live, settings = desk.live, desk.live.settings
        return Executor(
            lanes=desk,
            rules=Rules(
                answers=answers,
                jitter=self._jitter,
                policy=desk.policy_of(lane),
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
            tracer=lambda: live.tracer,
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
        """Explain which calls share an answer with this one, without making it.

        Args:
            func: May be decorated with `@optimize_api_call`; its options there are used.
            options: As for `make_rate_limited_call`.
        Returns:
            `shares`: whether it does; `why` not; `key`: equal for calls that share; `counts`: for each part that counts
            (`argument 0`, `self.model`) a few digits of a hash, by which two calls can be compared; `left_out`: parts
            of `self` that do not count, and what they are.
        Raises:
            BadInput: an option or a `cache_key` is invalid.
        """
        called = getattr(func, "__func__", func)
        if (decorated := getattr(called, "optimized", None)) is not None:
            if called is not func:
                args = (func.__self__, *args)  # type: ignore[attr-defined]
            func, func_name, options = decorated.function, decorated.name, {**decorated.options, **options}
            context = options.pop("context")
        how, name, given = Options(context=context, **options), _name_of(func, func_name), dict(kwargs or {})
        how.check()
        settings = self.services.settings
        lane, tenant = _lane_of(func, given, how), how.tenant or ""
        scope = Scope(name, lane, enqueue.namespace_of(how.namespace, tenant), how.version, context)
        found = self._sharing.explain(func, scope, args, given, how.by)
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
        """One attempt at the basic pace, or at that of the mode that this process has set for itself."""
        how.check()
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
        """Whether calls go through lanes now: they are switched on, and Redis was there at the last look.

        Once this process has made a call, its desk looks all the time; before that, this asks Redis, at most every 3 s.
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
        """Pin a mode for the whole cluster: normal, reduced, emergency or halt; "auto" (or "resume") ends the pin.

        If no Redis is configured, it holds for this process only: a pace in REDUCED and EMERGENCY, a wait in HALT.

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
            StoreUnavailable: the tracking database is away. (If Redis is away, `missing` says what is unknown.)
        """
        from ratelimit_worker.inprocess.figures import comprehensive_stats

        return comprehensive_stats(self.services, time.time())

    def export_analytics(self, path: str | Path | None = None) -> dict[str, Any] | None:
        """The report of the last 24 hours: written to `path` (.json, .csv or .html), or returned if that is None.

        Raises:
            BadInput: the name has another ending.
            StoreUnavailable: the tracking database is away.
        """
        from ratelimit_worker.inprocess.figures import sources
        from ratelimit_worker.reports import analytics

        return analytics.export(sources(self.services), path)

    def invalidate_cache(self, context: str | None = None) -> int:
        """Delete kept answers (of one context; None: all) → how many. Without a configured Redis none are kept.

        Raises:
            StoreUnavailable: Redis is away, and may still have kept answers.
        """
        from ratelimit_worker.stores.answers import forget

        live = self.services
        if not live.redis_url:
            return 0
        reach(live.redis)
        with redis_errors():
            return forget(live.redis, context)

    def cleanup(self) -> dict[str, int]:
        """Delete outcomes older than `MAISD_RETENTION_DAYS` and calls of dead processes → how many.

        Raises:
            StoreUnavailable: the tracking database is away. (If Redis is away, this is only logged.)
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
        """End this process's part in the cluster; the next call begins anew. It also ends when the process ends."""
        with self._lock:
            desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    @property
    def services(self) -> Services:
        """The services that this uses.

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
            old.close()  # the server has changed; a parent process's own services are not closed here
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
    _limiter, _making = None, threading.Lock()  # the parent's threads, which may hold the lock, are not here


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
