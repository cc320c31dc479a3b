"""What is decided when a call is made? Its lane, class, tenant, cost and deadline: its `Plan`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
ON_LEADER_FAILURE = ("share", "retry")  #: what becomes of the calls that follow one that fails
NOTHING_TOLD = LaneLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a task says of all its calls."""

    task: str = ""  #: its name, under which its tokens are learned
    lane: str | None = None
    provider: str | None = None  #: with the argument `model`, names the lane where none is given
    context: str = ""
    tags: tuple[str, ...] = ()
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    #: (*args, **kwargs) of the call → what it takes from the budget, or what its arguments say of its tokens; None: as
    #: `estimate.size_of` reads them
    cost: Callable[..., Cost | Size] | None = None
    cache: bool = True  #: its calls share answers with those that are the same
    cache_ttl_s: float | None = None  #: an answer is kept so long; None: as the settings say
    cache_incomplete: bool = False  #: also one that was truncated, refused or filtered
    stale_ttl_s: float = 0.0  #: and so long beyond that, for a lane in EMERGENCY or HALT
    shed_below: str | None = None  #: calls of a class below this one fail while their lane is in EMERGENCY or HALT
    timeout_s: float | None = None  #: of one attempt; None: as lane and settings say, or by what is learned
    namespace: str | None = None  #: only calls of the same share answers; None: of the same tenant
    across_tenants: bool = False  #: calls of all tenants share answers
    on_leader_failure: str = "share"  #: as of `ON_LEADER_FAILURE`


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one call says of itself. None: as its kind says."""

    lane: str | None = None
    tenant: str | None = None
    priority: str | int | None = None
    deadline_s: float | None = None  #: from now until it must be answered
    context: str | None = None
    tags: Sequence[str] | None = None
    cost: Cost | None = None  #: what it takes from the budget; None: what its arguments and the answers of its like say
    cache: bool | None = None  #: False: it is made, whatever was answered or is on its way
    cache_incomplete: bool | None = None  #: whether an answer that was truncated, refused or filtered is kept
    stale_ttl: float | None = None  #: seconds
    shed_below: str | None = None  #: a class
    timeout_s: float | None = None  #: of one attempt
    cache_ttl: float | None = None  #: seconds for which its answer is kept
    namespace: str | None = None  #: only calls of the same share answers
    refresh: bool | None = None  #: it asks anew though an answer is kept, which its own takes the place of
    no_store: bool | None = None  #: its answer is not kept


def nothing_learned(_: str) -> Learned | None:
    """Nobody knows anything of any task."""
    return None


def nothing_counted(_: Iterable[Any], __: str) -> int | None:
    """There is no tokenizer."""
    return None


def plan(
    kind: Kind,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    settings: Settings,
    said: Said = Said(),
    *,
    now: float,
    learned: Callable[[str], Learned | None] = nothing_learned,
    tokenizer: Callable[[Iterable[Any], str], int | None] = nothing_counted,
) -> Plan:
    """The plan of one call.

    Args:
        now: Seconds since the epoch.
        learned: By `estimate.key`, what the answers of a task and model have taught; asked once, and never waited for.
        tokenizer: Tokens of all texts in some values, for a model; None where it cannot say. Asked while nothing is
            learned.
    Raises:
        BadInput: a name, a priority, a deadline or a time that cannot be.
    """
    lane = choices.name("lane", _first(said.lane, kind.lane, _lane_from(kind, kwargs), DEFAULT_LANE))
    within = choices.number(
        "deadline_s", _first(said.deadline_s, kind.deadline_s, settings.deadline_s), MOST_DEADLINE_S
    )
    cost, estimated = said.cost, None
    if cost is None:
        cost, estimated = _cost(kind, args, kwargs, lane, learned, tokenizer)
    tenant = choices.name("tenant", _first(said.tenant, kind.tenant), empty=True)
    its_class = priority_of(_first(said.priority, kind.priority))
    stale_s = _stale_s(_first(said.stale_ttl, kind.stale_ttl_s))
    incomplete = _first(said.cache_incomplete, kind.cache_incomplete)
    return Plan(
        lane=lane,
        tenant=tenant,
        weight=told(settings, lane).tenants.get(tenant, 1.0),
        priority=its_class,
        cost=choices.cost(cost),
        deadline_s=now + within,
        context=choices.name("context", _first(said.context, kind.context), empty=True),
        tags=tuple(choices.names("tags", _first(said.tags, kind.tags))),
        publication=uuid.uuid4().hex,
        max_waiting=settings.max_waiting,
        max_body_bytes=int(settings.max_payload_mb * 1024 * 1024),
        estimated=estimated,
        timeout_s=_timeout_s(_first(said.timeout_s, kind.timeout_s)),
        sharing=_sharing(kind, settings, said, stale_s, incomplete),
        shedding=_shedding(its_class, _first(said.shed_below, kind.shed_below)),
    )


def check(said: Said, cache_ttl: float | None = None) -> None:
    """Choices that are made before there is a call (a decorator's), or for one without a lane. None: nothing is said.

    Args:
        cache_ttl: Seconds; only a kind of calls says it.

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
        _stale_s(said.stale_ttl)
    _shedding(Priority.NORMAL, said.shed_below)
    _timeout_s(said.timeout_s)


def _first(*said: Any) -> Any:
    """What the nearest says: an empty name or a zero is said, and None is not."""
    return next((value for value in said if value is not None), None)


def priority_of(value: Any) -> Priority:
    """A class from its name, or from a Celery priority on Redis (0 is the highest, 9 the lowest).

    Raises:
        BadInput: neither.
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
    """Fields of a lane that is new: what was configured, and the set-points to start from."""
    limits = told(settings, lane)
    paced = settings.enable_advanced_rate_limiting or limits.shared  # without calls of its own it has nothing to pace
    fields = limit_fields(limits) if paced else basic_fields(settings, limits)
    return fields if escalates(settings) else {**fields, **encode_escalates(False)}


def escalates(settings: Settings) -> bool:
    """Whether the law may change the mode of a lane."""
    return settings.enable_auto_escalation and settings.enable_advanced_rate_limiting


def basic_fields(settings: Settings, after: LaneLimits) -> dict[str, float | str | bytes]:
    """The same where MAISD_ENABLE_ADVANCED_RATE_LIMITING is off: one call per RATE_LIMIT_DELAY, or fewer if so told.

    Args:
        after: What holds when it is on again; kept in the lane's hash until then.
    """
    rates_rpm = [after.rpm] if after.rpm is not None else []
    if settings.rate_limit_delay > 0:
        rates_rpm.append(60 / settings.rate_limit_delay)
    rpm = min(rates_rpm, default=None)
    limits = replace(after, rpm=rpm, unlimited=rpm is None and after.tpm is None, adaptive=False)
    return limit_fields(limits) | encode_basic(Basic(replace(after, tenants={}), settings.rate_limit_delay))


def limit_fields(limits: LaneLimits) -> dict[str, float | str | bytes]:
    """Fields of a lane for what a person told of it, and the set-points to start from."""
    paces = pace.set_points(pace.initial(limits), 0.0)[1] if not limits.unlimited else pace.NOT_PACED
    return as_told(limits).encode() | paces.encode()


def as_told(limits: LaneLimits) -> Told:
    """Limits as a lane's hash keeps them: with the steps of the zone in which its days end, for the scripts."""
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
) -> tuple[Cost, Estimated | None]:
    """What a call takes from the budget, and what settling learns from; None where the task says what it costs."""
    size: Any = kind.cost(*args, **kwargs) if kind.cost is not None else estimate.size_of(args, kwargs)
    if isinstance(size, Cost):
        return size, None
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
    return estimate.cost(reserved, known), estimated


def _sharing(kind: Kind, settings: Settings, said: Said, stale_s: float, incomplete: bool) -> Sharing | None:
    """How a call shares answers; None where it does not."""
    join, ttl_s, namespace = settings.enable_request_deduplication, 0.0, _namespace(kind, said)
    context = _first(said.context, kind.context)
    if settings.enable_intelligent_caching:
        by_context = settings.cache_ttl_by_context.get(context)
        said_s = _first(said.cache_ttl, kind.cache_ttl_s, by_context, settings.cache_ttl_seconds)
        ttl_s = choices.number("cache_ttl", said_s, MOST_TTL_S, zero=True)
    elif join:  # a second call that comes just after the first's answer is a duplicate too
        ttl_s = settings.dedup_window_seconds
    if not settings.enable_intelligent_caching:
        stale_s = 0.0
    if not _first(said.cache, kind.cache) or not (join or ttl_s > 0 or stale_s > 0):
        return None
    return Sharing(
        ttl_s=ttl_s,
        stale_ttl_s=stale_s,
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
    """Whose answers a call takes and gives, where that is not its tenant: `=` and a name, or everybody's."""
    named = _first(said.namespace, kind.namespace)
    if named is not None:
        return f"={choices.name('namespace', named)}"
    return EVERYBODY if kind.across_tenants else None


def scope_of(plan: Plan, task: str, version: str = "") -> Scope:
    """Among which calls the answer of one is shared.

    Args:
        version: Of the task's function or prompt.
    """
    told = plan.sharing.namespace if plan.sharing is not None else None
    return Scope(task, plan.lane, f"of {plan.tenant}" if told is None else told, version, plan.context)


def leader_failure(wish: str) -> str:
    """What becomes of those that follow a call that has failed.

    Raises:
        BadInput: nothing that can be.
    """
    if wish not in ON_LEADER_FAILURE:
        raise BadInput(f"on_leader_failure={wish!a:.60}: use {' or '.join(ON_LEADER_FAILURE)}")
    return wish


def _timeout_s(seconds: float | None) -> float | None:
    return None if seconds is None else choices.number("timeout_s", seconds, MOST_TIMEOUT_S)


def _stale_s(seconds: float) -> float:
    return choices.number("stale_ttl", seconds, MOST_TTL_S, zero=True)


def _shedding(its_class: Priority, below: str | None) -> Shedding | None:
    """None where this class is never shed; else whoever waits for its result hears of it, or its sender if so told."""
    if below is None:
        return None
    ladder = [one.value for one in Priority]
    if below not in ladder:
        raise BadInput(f"shed_below={below!a:.60}: use high, normal or low")
    return Shedding.RESULT if ladder.index(its_class) > ladder.index(below) else None


def timeout_told_s(settings: Settings, lane: str) -> float | None:
    """What MAISD_LANES says of the time-outs of a lane, or MAISD_TIMEOUT_SECONDS of all; None: nothing."""
    said = settings.lanes.get(lane)
    return said.timeout_s if said is not None and said.timeout_s is not None else settings.timeout_seconds


def timeout_of(seconds: float | None, settings: Settings, lane: str) -> float | None:
    """What a call says of its own time-out, or else what lane and settings say.

    Raises:
        BadInput: the call says what cannot be.
    """
    own = _timeout_s(seconds)
    return timeout_told_s(settings, lane) if own is None else own


def told(settings: Settings, lane: str) -> LaneLimits:
    """What MAISD_LANES says of a lane."""
    said = settings.lanes.get(lane) or NOTHING_TOLD
    if not said.adaptive and not said.unlimited and not said.shared and said.rpm is None:
        return replace(said, rpm=settings.calls_per_minute)  # a lane that may not find its rate needs one
    return said


def _lane_from(kind: Kind, kwargs: Mapping[str, Any]) -> str | None:
    model = kwargs.get("model")
    if kind.provider and isinstance(model, str) and model:
        return f"{kind.provider}:{model}"
    return None
