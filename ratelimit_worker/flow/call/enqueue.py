"""What is decided when a call is made: its `Plan`, with lane, class, tenant, cost and deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import urandom
from typing import Any

from msgspec import Struct, structs

from ratelimit_worker.calls import Cost, LaneLimits, Priority
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.lane import Basic, Told, encode_basic, encode_escalates
from ratelimit_worker.contracts.plan import Estimated, Plan, Sharing, Shedding
from ratelimit_worker.errors import BadInput
from ratelimit_worker.fingerprint import Scope
from ratelimit_worker.policy import choices, day, estimate, pace
from ratelimit_worker.policy.choices import MOST_DEADLINE_S, MOST_NAME, MOST_TIMEOUT_S, MOST_TTL_S
from ratelimit_worker.policy.estimate import Learned, Size

DEFAULT_LANE = "default"
EVERYBODY = "*"  #: the namespace of tasks that share answers across tenants
ON_LEADER_FAILURE = ("share", "retry")  #: when a leader fails: its followers get its error, or the first of them asks
OVER_BUDGET = ("wait", "fail")  #: what a call does while a budget of money is spent
NOTHING_TOLD = LaneLimits()


class Kind(Struct, frozen=True, kw_only=True):
    """What a task sets for all its calls."""

    task: str = ""  #: its name, by which tokens are learned
    lane: str | None = None
    provider: str | None = None  #: names the lane, together with the argument `model`, if no lane is given
    context: str = ""
    tags: tuple[str, ...] = ()
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    #: (*args, **kwargs) of the call → its cost, or its size by its arguments; None: `estimate.size_of` is used
    cost: Callable[..., Cost | Size] | None = None
    cache: bool = True  #: its calls share answers with those that are the same
    cache_ttl_s: float | None = None  #: an answer is kept so long; None: as the settings say
    cache_incomplete: bool = False  #: also one that was truncated, refused or filtered
    stale_ttl_s: float = 0.0  #: and so long beyond that, for a lane in EMERGENCY or HALT
    revalidate_s: float = 0.0  #: so long beyond its time it is given all the same, while one call renews it
    shed_below: str | None = None  #: calls of a class below this one fail while their lane is in EMERGENCY or HALT
    over_budget: str = "wait"  #: as of `OVER_BUDGET`
    timeout_s: float | None = None  #: of one attempt; None: as lane and settings say, or by what is learned
    namespace: str | None = None  #: only calls of the same share answers; None: of the same tenant
    across_tenants: bool = False  #: calls of all tenants share answers
    on_leader_failure: str = "share"  #: one of `ON_LEADER_FAILURE`


class Said(Struct, frozen=True, kw_only=True):
    """What is set for one call. None: as its kind says."""

    lane: str | None = None
    tenant: str | None = None
    priority: str | int | None = None
    deadline_s: float | None = None  #: from now until it must be answered
    context: str | None = None
    tags: Sequence[str] | None = None
    cost: Cost | None = None  #: what it takes from the budget; None: estimated from its arguments and earlier answers
    cache: bool | None = None  #: False: it is sent in any case, and its answer is its own
    cache_incomplete: bool | None = None  #: whether an answer that was truncated, refused or filtered is kept
    stale_ttl: float | None = None  #: seconds
    stale_while_revalidate: float | None = None  #: seconds
    shed_below: str | None = None  #: a class
    over_budget: str | None = None  #: as of `OVER_BUDGET`
    timeout_s: float | None = None  #: of one attempt
    cache_ttl: float | None = None  #: how long its answer is kept, seconds
    namespace: str | None = None  #: answers are shared only within it
    refresh: bool | None = None  #: it asks anew even if an answer is kept, and its own answer replaces that
    no_store: bool | None = None  #: its answer is not kept


NOTHING_SAID = Said()


def nothing_learned(_: str) -> Learned | None:
    """In place of learned figures: nothing is known."""
    return None


def nothing_counted(_: Iterable[Any], __: str) -> int | None:
    """In place of a tokenizer: nothing can be counted."""
    return None


class Frame(Struct, frozen=True, kw_only=True):
    """The part of a plan that calls of a kind with equal options share: decided once, and `filled` for each call."""

    kind: Kind
    plan: Plan  #: without publication, deadline and what follows from arguments
    within_s: float  #: from when a call is made until it must be answered
    cost: Cost | None  #: None: it follows from the arguments


def plan(
    kind: Kind,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settings: Settings,
    said: Said = NOTHING_SAID,
    *,
    now: float,
    learned: Callable[[str], Learned | None] = nothing_learned,
    tokenizer: Callable[[Iterable[Any], str], int | None] = nothing_counted,
) -> Plan:
    """The plan of one call.

    Args:
        now, learned, tokenizer: As of `filled`.
    Raises:
        BadInput: a name, priority, deadline or time is invalid.
    """
    made = frame(kind, settings, said, lane_of(kind, said.lane, kwargs))
    return filled(made, args, kwargs, now=now, learned=learned, tokenizer=tokenizer)


def lane_of(kind: Kind, said: Any, kwargs: Mapping[str, Any]) -> str:
    """The lane of a call.

    Args:
        said: What the call itself says; None: nothing.
    Raises:
        BadInput: it is no name.
    """
    return choices.name("lane", _first(said, kind.lane, _lane_from(kind, kwargs), DEFAULT_LANE))


def frame(kind: Kind, settings: Settings, said: Said, lane: str) -> Frame:
    """The frame for all calls of a kind, in a lane, with these options.

    Raises:
        BadInput: a name, priority, deadline or time is invalid.
    """
    tenant = choices.name("tenant", _first(said.tenant, kind.tenant), empty=True)
    its_class = priority_of(_first(said.priority, kind.priority))
    incomplete = _first(said.cache_incomplete, kind.cache_incomplete)
    return Frame(
        kind=kind,
        within_s=choices.number(
            "deadline_s", _first(said.deadline_s, kind.deadline_s, settings.deadline_s), MOST_DEADLINE_S
        ),
        cost=None if said.cost is None else choices.cost(said.cost),
        plan=Plan(
            lane=lane,
            tenant=tenant,
            weight=told(settings, lane).tenants.get(tenant, 1.0),
            priority=its_class,
            deadline_s=0.0,
            context=choices.name("context", _first(said.context, kind.context), empty=True),
            tags=tuple(choices.names("tags", _first(said.tags, kind.tags))),
            publication="",
            max_waiting=settings.max_waiting,
            max_body_bytes=int(settings.max_payload_mb * 1024 * 1024),
            timeout_s=_timeout_s(_first(said.timeout_s, kind.timeout_s)),
            sharing=_sharing(kind, settings, said, incomplete),
            shedding=_shedding(its_class, _first(said.shed_below, kind.shed_below)),
            over_budget=_over_budget(_first(said.over_budget, kind.over_budget)),
        ),
    )


def filled(
    made: Frame,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    now: float,
    learned: Callable[[str], Learned | None] = nothing_learned,
    tokenizer: Callable[[Iterable[Any], str], int | None] = nothing_counted,
) -> Plan:
    """The plan of one call in a frame.

    Args:
        now: Seconds since the epoch.
        learned: Returns what was learned of a task and model, by `estimate.key`; must not block.
        tokenizer: Counts the tokens of all texts in some values, for a model; None: it cannot. Used while nothing was
            learned.
    Raises:
        BadInput: the cost that its task returns is invalid.
    """
    cost, estimated, usual = made.cost, None, 0
    if cost is None:
        cost, estimated, usual = _cost(made.kind, args, kwargs, made.plan.lane, learned, tokenizer)
    return structs.replace(
        made.plan,
        cost=choices.cost(cost),
        deadline_s=now + made.within_s,
        publication=urandom(16).hex(),
        estimated=estimated,
        usual_nanousd=usual,
    )


def check(said: Said, cache_ttl: float | None = None) -> None:
    """Check options given before there is a call (in a decorator), or for a call outside lanes. None: not set.

    Args:
        cache_ttl: Seconds; set for kinds of calls only.

    Raises:
        BadInput: as `plan`.
    """
    if said.lane is not None:
        choices.name("lane", said.lane)
    for what, value in (("tenant", said.tenant), ("context", said.context)):
        if value is not None:
            choices.name(what, value, empty=True)
    if said.tags is not None:
        choices.names("tags", said.tags)
    if said.priority is not None:
        priority_of(said.priority)
    if said.deadline_s is not None:
        choices.number("deadline_s", said.deadline_s, MOST_DEADLINE_S)
    if said.cost is not None and not callable(said.cost):
        choices.cost(said.cost)
    for seconds in (cache_ttl, said.cache_ttl):
        if seconds is not None:
            choices.number("cache_ttl", seconds, MOST_TTL_S, zero=True)
    if said.namespace is not None:
        choices.name("namespace", said.namespace)
    if said.stale_ttl is not None:
        _beyond_s("stale_ttl", said.stale_ttl)
    if said.stale_while_revalidate is not None:
        _beyond_s("stale_while_revalidate", said.stale_while_revalidate)
    _shedding(Priority.NORMAL, said.shed_below)
    if said.over_budget is not None:
        _over_budget(said.over_budget)
    _timeout_s(said.timeout_s)


def _first(*said: Any) -> Any:
    """The first value that is not None; an empty name or a zero counts."""
    return next((value for value in said if value is not None), None)


def priority_of(value: Any) -> Priority:
    """A class from its name, or from a Celery priority on Redis (0 is the highest, 9 the lowest).

    Raises:
        BadInput: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= 9:
            raise BadInput(f"priority={value}: use 0 (highest) to 9, or high, normal, low")
        return Priority.HIGH if value < 3 else Priority.NORMAL if value < 7 else Priority.LOW
    try:
        return Priority(value)
    except (ValueError, TypeError) as error:
        raise BadInput(f"priority={value!a:.60}: use high, normal, low, or 0 (highest) to 9") from error


def lane_fields(settings: Settings, lane: str) -> dict[str, float | str | bytes]:
    """Fields of a new lane: its configured limits, and first set-points."""
    limits = told(settings, lane)
    paced = settings.enable_advanced_rate_limiting or limits.shared  # a parent has no calls of its own to pace
    fields = limit_fields(limits) if paced else basic_fields(settings, limits)
    return fields if escalates(settings) else {**fields, **encode_escalates(False)}


def escalates(settings: Settings) -> bool:
    """Whether the law may change the mode of a lane."""
    return settings.enable_auto_escalation and settings.enable_advanced_rate_limiting


def basic_fields(settings: Settings, after: LaneLimits) -> dict[str, float | str | bytes]:
    """`lane_fields` if MAISD_ENABLE_ADVANCED_RATE_LIMITING is off: one call per RATE_LIMIT_DELAY, or fewer by limits.

    Args:
        after: The limits to restore when it is on again; kept in the lane's hash until then.
    """
    rates_rpm = [after.rpm] if after.rpm is not None else []
    if settings.rate_limit_delay > 0:
        rates_rpm.append(60 / settings.rate_limit_delay)
    rpm = min(rates_rpm, default=None)
    limits = replace(after, rpm=rpm, unlimited=rpm is None and after.tpm is None, adaptive=False)
    return limit_fields(limits) | encode_basic(Basic(replace(after, tenants={}), settings.rate_limit_delay))


def limit_fields(limits: LaneLimits) -> dict[str, float | str | bytes]:
    """Fields of a lane for limits that a person has set, and first set-points."""
    paces = pace.set_points(pace.initial(limits), 0.0)[1] if not limits.unlimited else pace.NOT_PACED
    return as_told(limits).encode() | paces.encode()


def as_told(limits: LaneLimits) -> Told:
    """Limits in the form of a lane's hash, with the changes of its time zone for the scripts."""
    zone = limits.day_zone
    steps = tuple(day.steps(zone, int(time.time() // day.DAY_S))) if zone else ()
    return Told(limits=limits, day_steps=steps)


def _cost(
    kind: Kind,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    lane: str,
    learned: Callable[[str], Learned | None],
    tokenizer: Callable[[Iterable[Any], str], int | None],
) -> tuple[Cost, Estimated | None, int]:
    """What a call takes from the budget; the estimate with which its answer is compared (None: the task gave the cost);
    and what such calls usually cost, in billionths of a dollar (0: unknown)."""
    size: Any = kind.cost(*args, **kwargs) if kind.cost is not None else estimate.size_of(args, kwargs)
    if isinstance(size, Cost):
        return size, None, 0
    if not isinstance(size, Size):
        choices.cost(size)
    for what in ("input_tokens", "output_tokens", "choices"):
        if getattr(size, what) is not None:
            choices.number(f"cost: {what}", getattr(size, what), choices.MOST_UNITS, "a number", zero=True)
    model = size.model[:MOST_NAME] or lane
    known = learned(estimate.key(kind.task, model))
    counted = None
    if known is None or known.factor_of < estimate.LEAST_ANSWERS:
        counted = tokenizer((*args, *kwargs.values()), size.model)
    reserved = size if counted is None else size._replace(input_tokens=counted, counted=True)
    estimated = Estimated(model, 0 if size.counted else size.input_tokens, size.output_tokens)
    usual = round(known.nanousd) if known is not None and known.nanousd_of else 0
    return estimate.cost(reserved, known), estimated, usual


def _sharing(kind: Kind, settings: Settings, said: Said, incomplete: bool) -> Sharing | None:
    """How a call shares answers; None: it does not."""
    stale_s = _beyond_s("stale_ttl", _first(said.stale_ttl, kind.stale_ttl_s))
    renewed_s = _beyond_s("stale_while_revalidate", _first(said.stale_while_revalidate, kind.revalidate_s))
    join, ttl_s, namespace = settings.enable_request_deduplication, 0.0, _namespace(kind, said)
    context = _first(said.context, kind.context)
    if settings.enable_intelligent_caching:
        by_context = settings.cache_ttl_by_context.get(context)
        said_s = _first(said.cache_ttl, kind.cache_ttl_s, by_context, settings.cache_ttl_seconds)
        ttl_s = choices.number("cache_ttl", said_s, MOST_TTL_S, zero=True)
    elif join:  # a call that comes just after the answer to the same one is a duplicate too
        ttl_s = settings.dedup_window_seconds
    if not settings.enable_intelligent_caching:
        stale_s = renewed_s = 0.0
    if not _first(said.cache, kind.cache) or not (join or ttl_s > 0 or stale_s > 0 or renewed_s > 0):
        return None
    return Sharing(
        ttl_s=ttl_s,
        stale_ttl_s=stale_s,
        revalidate_s=renewed_s,
        join=join,
        max_entries=settings.max_cache_entries,
        max_bytes=int(settings.cache_size_mb * 1024 * 1024),
        keeps_incomplete=incomplete,
        refresh=bool(said.refresh),
        stores=not said.no_store,
        heirs_ask=leader_failure(kind.on_leader_failure) == "retry",
        namespace=namespace,
    )


def _namespace(kind: Kind, said: Said) -> str | None:
    """The namespace within which a call shares answers, if not its tenant: `=` and a name, or everybody's."""
    named = _first(said.namespace, kind.namespace)
    if named is not None:
        return _named_space(named)
    return EVERYBODY if kind.across_tenants else None


def scope_of(plan: Plan, task: str, version: str = "") -> Scope:
    """The scope of the fingerprint: calls can only be the same within it.

    Args:
        version: Version of the task's function or prompt.
    """
    told = plan.sharing.namespace if plan.sharing is not None else None
    return Scope(task, plan.lane, _of_tenant(plan.tenant) if told is None else told, version, plan.context)


def namespace_of(named: str | None, tenant: str) -> str:
    """The namespace within which a call shares answers.

    Args:
        named: The call's own choice; None: its tenant decides.
    """
    return _of_tenant(tenant) if named is None else _named_space(named)


def _of_tenant(tenant: str) -> str:
    return f"of {tenant}"


def _named_space(name: str) -> str:
    return f"={choices.name('namespace', name)}"


def leader_failure(wish: str) -> str:
    """Check what becomes of the followers of a failed leader, and return it.

    Raises:
        BadInput: it is not one of `ON_LEADER_FAILURE`.
    """
    if wish not in ON_LEADER_FAILURE:
        raise BadInput(f"on_leader_failure={wish!a:.60}: use {' or '.join(ON_LEADER_FAILURE)}")
    return wish


def _timeout_s(seconds: float | None) -> float | None:
    return None if seconds is None else choices.number("timeout_s", seconds, MOST_TIMEOUT_S)


def _beyond_s(what: str, seconds: float) -> float:
    """Check for how many seconds beyond its time an answer may be used."""
    return choices.number(what, seconds, MOST_TTL_S, zero=True)


def _shedding(its_class: Priority, below: str | None) -> Shedding | None:
    """How this class is shed; None: never."""
    if below is None:
        return None
    ladder = [one.value for one in Priority]
    if below not in ladder:
        raise BadInput(f"shed_below={below!a:.60}: use high, normal or low")
    return Shedding.RESULT if ladder.index(its_class) > ladder.index(below) else None


def _over_budget(wish: str) -> Shedding | None:
    """How a call is refused while a budget of money is spent (whoever sends it may change that); None: it waits."""
    if wish not in OVER_BUDGET:
        raise BadInput(f"over_budget={wish!a:.60}: use {' or '.join(OVER_BUDGET)}")
    return Shedding.RESULT if wish == "fail" else None


def timeout_told_s(settings: Settings, lane: str) -> float | None:
    """The time-out of an attempt by MAISD_LANES for this lane, or MAISD_TIMEOUT_SECONDS for all; None: not set."""
    said = settings.lanes.get(lane)
    return said.timeout_s if said is not None and said.timeout_s is not None else settings.timeout_seconds


def timeout_of(seconds: float | None, settings: Settings, lane: str) -> float | None:
    """A call's own time-out, else that of lane or settings.

    Raises:
        BadInput: the call's own is invalid.
    """
    own = _timeout_s(seconds)
    return timeout_told_s(settings, lane) if own is None else own


def told(settings: Settings, lane: str) -> LaneLimits:
    """The limits of a lane in MAISD_LANES."""
    said = settings.lanes.get(lane) or NOTHING_TOLD
    if not said.adaptive and not said.unlimited and not said.shared and said.rpm is None:
        return replace(said, rpm=settings.calls_per_minute)  # a lane without adaptive pace needs a rate
    return said


def _lane_from(kind: Kind, kwargs: Mapping[str, Any]) -> str | None:
    model = kwargs.get("model")
    if kind.provider and isinstance(model, str) and model:
        return f"{kind.provider}:{model}"
    return None
