"""Checks of an installation: the settings in force and their sources, and what is wrong, with the fix.

`examine` reads everything; each check is a function of what was read.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from enum import IntEnum, StrEnum
from typing import Any, Protocol
from urllib.parse import urlsplit

from msgspec import Struct, structs

from ratelimit_worker.calls import Mode, Outcome
from ratelimit_worker.config import PREFIX, SECRET_NAMES, Settings
from ratelimit_worker.contracts.budget import Budget
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.contracts.rollup import Cell, CellKey
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.plural import calls_wait, many
from ratelimit_worker.policy import rollup
from ratelimit_worker.policy.price import own_table
from ratelimit_worker.policy.timeout import Latencies, learned_s, p99_s
from ratelimit_worker.ports import BarKind
from ratelimit_worker.providers import network
from ratelimit_worker.reports.bars import held_by
from ratelimit_worker.reports.live import ClusterState, LaneState
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.reports.words import count, moment, overdue_call, per_min, seconds, unknown_task
from ratelimit_worker.stores.live import DatabaseLost, Server
from ratelimit_worker.stores.migrations import HEAD

SKEW_S = 1.0  #: difference of clocks that is reported; deadlines are set by this machine's clock and checked by Redis'
NEARLY_FULL = 0.9  #: share of MAISD_MAX_LANES from which the number of lanes is reported
MANY_WAIT = 10_000  #: outcomes on their way to the database, above which they are reported
LATENCY_OVER_S = 900.0  #: window of the mean latency, seconds
#: Bars of a lane in NORMAL that a person may want to do something about.
_WORTH_A_WORD = frozenset({BarKind.GATE, BarKind.QUOTA, BarKind.BUDGET, BarKind.NEWER, BarKind.PROBES})
MOST_LEARNED = 5  #: tasks and models whose time-outs are shown one by one
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HIDDEN = "***"


class Grade(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"  #: not wrong, but worth knowing
    WRONG = "wrong"


class Code(IntEnum):
    """Exit code of the process for a finding that is wrong."""

    FINE = 0
    FAILED = 1
    UNREACHABLE = 69
    CONFIGURATION = 78


class Finding(Struct, frozen=True):
    """One check."""

    check: str
    level: Grade
    says: str  #: one sentence, with the fix if it is not ok
    code: Code = Code.FINE


class InForce(Struct, frozen=True):
    """One setting."""

    name: str
    value: str  #: secrets masked
    source: str  #: default, or the variable it came from


class Box(Protocol):
    """What these checks need of the outbox."""

    def backlog(self) -> int:
        """Entries that are not in the database yet."""
        ...

    def full(self) -> bool:
        """Whether it is nearly full."""
        ...

    def bad_count(self) -> int:
        """Entries that were ever set aside."""
        ...


def exit_code(findings: Sequence[Finding]) -> int:
    """Exit code of the process: a wrong setting goes first, then a server that cannot be reached."""
    return int(max((finding.code for finding in findings), default=Code.FINE))


# ── settings ───────────────────────────────────────────────────────────────────────────────────────────────────────


def settings_in_force(settings: Settings, environ: Mapping[str, str]) -> list[InForce]:
    """Every setting with its value and its source; secrets are masked."""
    found = []
    for name in (field.name for field in fields(settings) if "parse" in field.metadata):
        variable = PREFIX + name.upper()
        found.append(InForce(variable, shown(name, getattr(settings, name)), _source(variable, settings, environ)))
    delay = "RATE_LIMIT_DELAY"
    source = "environment" if environ.get(delay) else "default"
    return [*found, InForce(delay, shown("rate_limit_delay", settings.rate_limit_delay), source)]


def _source(variable: str, settings: Settings, environ: Mapping[str, str]) -> str:
    if (told := settings.sources.get(variable, "default")) != "default":
        return told
    if variable == f"{PREFIX}REDIS_URL" and settings.redis_url:
        return "CELERY_BROKER_URL"
    if variable == f"{PREFIX}DATABASE_URL" and environ.get("DATABASE_URL"):
        return "DATABASE_URL"
    return "default"


def shown(name: str, value: object) -> str:
    """A setting's value for people: passwords are masked; of a URL, the host stays readable."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        told = {of: one if isinstance(one, float) else _told(one) for of, one in value.items()}
        return json.dumps(told) if told else "-"
    if isinstance(value, float):
        return f"{value:g}"
    if name.upper() == "ALERT_WEBHOOK_SECRET" and value:
        return str(value) if str(value).startswith(("env:", "file:")) else _HIDDEN
    if name.upper() in SECRET_NAMES and value:
        return masked(str(value))
    return str(value) or "-"


def _told(one: Any) -> dict[str, Any]:
    """The table of a lane, a provider, a budget or a model's prices as it was written, without empty values."""
    if isinstance(one, PriceCard):
        return own_table(one)
    if isinstance(one, Budget):
        written = {"usd_per_day": one.usd_per_day, "usd_per_month": one.usd_per_month, "zone": one.zone}
        return {name: value for name, value in written.items() if value}
    table = asdict(one)
    flat = {**table, **table.get("sent_with", {})}
    if not flat.get("paths"):
        flat.pop("paths", None)
    return {name: value for name, value in flat.items() if name != "sent_with" and value not in (None, {})}


def masked(url: str) -> str:
    """A URL without secrets: the user's password, passwords in the query, and a web hook's whole path."""
    if ";" in url and url.startswith("sentinel"):
        return ";".join(masked(one if "://" in one else f"sentinel://{one.strip()}") for one in url.split(";"))
    scheme, _, rest = url.partition("://")
    if scheme in {"http", "https"}:
        host = urlsplit(url).hostname or ""
        return f"{scheme}://{host}/{_HIDDEN}"
    authority, slash, path = rest.partition("/") if not rest.startswith("/") else ("", "", rest)
    user, at, host = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    safe = f"{name}{colon}{_HIDDEN if colon else ''}{at}{host}{slash}{path}"
    return f"{scheme}://" + re.sub(r"(?i)([?&][^=&]*(?:pass|secret|key|token)[^=&]*=)[^&]*", rf"\1{_HIDDEN}", safe)


# ── checks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine(
    settings: Settings,
    sources: Sources,
    outbox: Box | None,
    latencies: Callable[[], Mapping[str, Latencies]],
    own_rules: Callable[[], Mapping[str, str]],
) -> Iterator[Finding]:
    """All checks; each finding is yielded as soon as it is known.

    Args:
        outbox: None: no Redis is configured.
        latencies: Reads how long answers took, by task and model.
        own_rules: Reads how tasks retry by themselves, in words, by task.
    """
    latency: dict[str, float] = {}
    try:
        yield judge_revision(sources.queries.revision())
        now_s = time.time()
        latency = mean_latency_s(sources.queries.cells(now_s - LATENCY_OVER_S, now_s, 60.0))
    except StoreUnavailable as error:
        yield Finding("database", Grade.WRONG, str(error), Code.UNREACHABLE)
    try:
        began_s = time.time()
        live = sources.server
        server = live.server()
        ended_s = time.time()
        yield from judge_server(server)
        yield judge_clock(server.at_s - ended_s, ended_s - began_s)
        state, _ = status(sources)
        yield from judge_file(sources.queries.protected_file(), live.database_lost())
        yield from judge_workers(state, latency)
        yield from judge_lanes(state)
        yield from judge_number(sum(state.modes.values()), state.left_out, settings.max_lanes)
        yield from judge_counters(state.counters)
        if outbox is not None:
            yield from judge_outbox(outbox.backlog(), outbox.full(), outbox.bad_count())
        yield from judge_alerts(settings.alert_webhook_url, live.alerts_waiting())
        yield judge_timeouts(settings, latencies(), now_s=server.at_s)
        yield from judge_own_rules(own_rules())
    except StoreUnavailable as error:
        yield Finding("Redis", Grade.WRONG, str(error).removeprefix("Redis: "), Code.UNREACHABLE)
    except ConfigurationError as error:
        yield Finding("Redis", Grade.WRONG, str(error), Code.CONFIGURATION)
    yield from judge_settings(settings)


def judge_network() -> Finding:
    """Proxies and certificates of this process's environment; checked without any connection."""
    problem = network.problem()
    if problem is not None:
        return Finding("network", Grade.WRONG, problem, Code.CONFIGURATION)
    return Finding("network", Grade.OK, "proxies and certificates of the environment can be used")


def judge_server(server: Server) -> Iterator[Finding]:
    """The Redis server and its settings."""
    yield Finding("Redis", Grade.OK, f"{server.product} {server.version} answers")
    if server.silent:
        yield Finding(
            "Redis",
            Grade.NOTE,
            "this user may not ask INFO, so eviction, persistence and memory were not looked at: allow it with +info",
        )
        return
    policy = server.maxmemory_policy
    if policy is None:
        yield Finding("eviction", Grade.NOTE, "the server does not tell maxmemory-policy; it must be noeviction")
    elif policy != "noeviction":
        yield Finding(
            "eviction",
            Grade.WRONG,
            f"maxmemory-policy is {policy}, so calls would vanish: CONFIG SET maxmemory-policy noeviction",
            Code.CONFIGURATION,
        )
    else:
        yield Finding("eviction", Grade.OK, "maxmemory-policy is noeviction")
    if server.appendonly is False:
        yield Finding(
            "persistence",
            Grade.NOTE,
            "appendonly is off: waiting calls are lost when the server restarts; turn it on",
        )
    elif server.appendonly:
        yield Finding("persistence", Grade.OK, "appendonly is on")
    if server.maxmemory and server.used_memory > 0.9 * server.maxmemory:
        share = server.used_memory / server.maxmemory
        yield Finding(
            "memory", Grade.WRONG, f"{share:.0%} of maxmemory is used; new calls will be refused", Code.FAILED
        )


def judge_clock(ahead_s: float, asked_for_s: float) -> Finding:
    """Whether this machine and Redis agree on the time.

    Args:
        ahead_s: Redis' clock minus ours when its answer had come.
        asked_for_s: How long the requests took; a difference up to this proves nothing.
    """
    skew_s = max(0.0, abs(ahead_s) - asked_for_s)
    if skew_s > SKEW_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        return Finding(
            "clock",
            Grade.NOTE,
            f"Redis' clock is {seconds(skew_s)} {way} this machine's: deadlines are off by that; run NTP on both",
        )
    return Finding("clock", Grade.OK, "this machine and Redis agree on the time")


def judge_revision(revision: str | None) -> Finding:
    """Whether the database's schema is of this version; None: it has no tables yet."""
    if revision is None:
        return Finding("database", Grade.OK, f"reachable; its tables (revision {HEAD}) are made when they are needed")
    if revision == HEAD:
        return Finding("database", Grade.OK, f"reachable, at revision {HEAD}")
    if revision > HEAD:
        return Finding(
            "database",
            Grade.WRONG,
            f"its revision {revision} is newer than this version's {HEAD}: update ratelimit-worker here",
            Code.CONFIGURATION,
        )
    return Finding("database", Grade.NOTE, f"at revision {revision}; the next use brings it to {HEAD}")


def judge_number(lanes: int, left_out: int, most: int) -> Iterator[Finding]:
    """The number of lanes, if it is so large that lanes can hardly be budgets of providers."""
    bound = f"of at most {count(most)} (MAISD_MAX_LANES)" if most else "and no bound is set (MAISD_MAX_LANES)"
    if most and lanes >= NEARLY_FULL * most:
        says = f"there are {count(lanes)} {bound}: calls of new ones are refused then; is a lane named after a user?"
        yield Finding(
            "lanes",
            Grade.WRONG if lanes >= most else Grade.NOTE,
            says,
            Code.FAILED if lanes >= most else Code.FINE,
        )
    if left_out:
        yield Finding(
            "lanes", Grade.NOTE, f"{count(left_out)} of {many(lanes, 'lane')}, used less of late, were not looked at"
        )


def judge_file(read_only: str | None, lost: DatabaseLost | None) -> Iterator[Finding]:
    """A SQLite file that cannot be written, and one that was lost recently.

    Args:
        read_only: Path of the file that cannot be written; None: it can be.
        lost: None: no file was lost.
    """
    if read_only is not None:
        says = f"{read_only} is read-only: outcomes wait in Redis; make it writable (chmod u+w)"
        yield Finding("database", Grade.WRONG, says, Code.FAILED)
    if lost is not None:
        yield Finding("database", Grade.NOTE, f"{moment(lost.at_s)}: {lost.what}; its rows are missing in all figures")


def judge_workers(state: ClusterState, latency_s: Mapping[str, float]) -> Iterator[Finding]:
    """Whether workers run, and whether there are enough.

    Args:
        latency_s: Lane → mean seconds of an answered attempt.
    """
    queues = ", ".join(f"{queue.queue}: {queue.slots}" for queue in state.queues)
    if state.workers:
        yield Finding("workers", Grade.OK, f"{state.workers} alive with {many(state.slots, 'slot')} ({queues})")
    else:
        waiting = sum(lane.waiting + lane.due_later for lane in state.lanes if not lane.workers)
        level, code = (Grade.WRONG, Code.FAILED) if waiting else (Grade.NOTE, Code.FINE)
        yield Finding("workers", level, f"none is alive, and {calls_wait(waiting)}: start one", code)
    for one in state.unknown:
        says = f"{unknown_task(one.task, one.queue)}, and {calls_wait(one.calls)}: start a worker that does"
        yield Finding("tasks", Grade.WRONG, says, Code.FAILED)
    for call in state.overdue:
        says = f"{overdue_call(call, state.at_s)}. Give its client a time-out, see `ratelimit_worker.timeout_s`"
        level, code = (Grade.NOTE, Code.FINE) if call.replaced else (Grade.WRONG, Code.FAILED)
        yield Finding("slots", level, says, code)
    for lane in state.lanes:
        if state.workers and lane.waiting and not lane.workers:
            yield Finding(
                f"lane {lane.lane}",
                Grade.WRONG,
                f"{calls_wait(lane.waiting)} on {', '.join(lane.queues)}, from which no worker takes any",
                Code.FAILED,
            )
        allowed, took_s = lane.allowed_per_min, latency_s.get(lane.lane)
        if allowed and took_s and lane.workers and allowed / 60 * took_s > lane.slots:
            yield Finding(
                f"lane {lane.lane}",
                Grade.NOTE,
                f"{per_min(allowed)} of {seconds(took_s)} each need {allowed / 60 * took_s:.0f} slots, and there are "
                f"{lane.slots}: the budget is wasted for want of workers",
            )


def judge_lanes(state: ClusterState) -> Iterator[Finding]:
    """Lanes that do not send at their own pace: their modes, and what holds back lanes in which calls wait."""
    for lane in state.lanes:
        says = [] if lane.mode is Mode.NORMAL and not lane.pinned else [f"it is in {lane.mode_now}"]
        held = lane.held_by(state.at_s) if says else _stuck(lane, state.at_s)
        if held and lane.waiting:
            says.append(f"{calls_wait(lane.waiting)}, the next is held by {held}")
        if says:
            yield Finding(f"lane {lane.lane}", Grade.NOTE, "; ".join(says))


def _stuck(lane: LaneState, at_s: float) -> str:
    """What holds back a lane in NORMAL, of the bars in `_WORTH_A_WORD`, in a few words; "": none of them."""
    return held_by([bar for bar in lane.bars or () if (bar.parent or bar).kind in _WORTH_A_WORD], at_s)


def judge_counters(counters: Mapping[str, int]) -> Iterator[Finding]:
    """Counters of messages set aside, calls refused or shed, outcomes not recorded, and slots leaked."""
    wrong = {
        "malformed": ("message was", "messages were", "no call and set aside (LRANGE rlw:malformed 0 9)"),
        "refused_full": ("call was", "calls were", "refused: the lane was full"),
        "refused_lanes": ("call was", "calls were", "refused: the lane was new, and there were MAISD_MAX_LANES lanes"),
        "shed": ("call was", "calls were", "shed: the lane was in EMERGENCY or HALT"),
        "unrecorded": ("outcome", "outcomes", "could not be put into the outbox"),
        "leaks": ("slot was", "slots were", "found taken by nobody and freed"),
    }
    found = [
        f"{many(counters[name], one, several)} {says}"
        for name, (one, several, says) in wrong.items()
        if counters.get(name)
    ]
    for says in found:
        yield Finding("counters", Grade.NOTE, says)
    if not found:
        yield Finding("counters", Grade.OK, "nothing was set aside, refused or leaked")


def judge_outbox(backlog: int, full: bool, bad: int) -> Iterator[Finding]:
    """Outcomes on their way to the database."""
    if full:
        yield Finding(
            "outbox",
            Grade.WRONG,
            f"{many(backlog, 'outcome waits', 'outcomes wait')} and the outbox is nearly full: of the oldest only sums "
            "are kept; bring the database back",
            Code.FAILED,
        )
    elif backlog > MANY_WAIT:
        yield Finding(
            "outbox",
            Grade.NOTE,
            f"{many(backlog, 'outcome waits', 'outcomes wait')} for the database: is a worker alive?",
        )
    else:
        yield Finding("outbox", Grade.OK, f"{many(backlog, 'outcome')} on the way to the database")
    if bad:
        yield Finding(
            "outbox", Grade.NOTE, f"{many(bad, 'outcome was', 'outcomes were')} set aside (LRANGE rlw:outbox:bad 0 9)"
        )


def judge_alerts(url: str, waiting: int) -> Iterator[Finding]:
    """The web hook; its URL was checked with the settings."""
    if not url:
        yield Finding("alerts", Grade.OK, f"nobody is told of alerts: {PREFIX}ALERT_WEBHOOK_URL is not set")
        return
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        yield Finding("alerts", Grade.NOTE, f"{masked(url)} is reached in clear: use https")
    if waiting:
        yield Finding(
            "alerts",
            Grade.NOTE,
            f"{count(waiting)} wait for {masked(url)}: is it away? alert.failed in the log of a worker says why",
        )
    else:
        yield Finding("alerts", Grade.OK, f"{masked(url)} is told of alerts and mode changes")


def judge_timeouts(settings: Settings, latencies: Mapping[str, Latencies], now_s: float) -> Finding:
    """How long an attempt may take."""
    said = [f"{settings.timeout_seconds:g} s ({PREFIX}TIMEOUT_SECONDS)"] if settings.timeout_seconds is not None else []
    lanes = {lane: limits.timeout_s for lane, limits in settings.lanes.items() if limits.timeout_s is not None}
    said += [f"lane {lane} {told_s:g} s" for lane, told_s in lanes.items()]
    learned = {name: known for name, known in latencies.items() if p99_s(known) is not None}
    if settings.timeout_seconds is None:
        newest = sorted(learned, key=lambda name: learned[name].at, reverse=True)[:MOST_LEARNED]
        said += [f"{name.replace(chr(10), ' ')} {seconds(learned_s(learned[name], now_s))}" for name in newest]
        said += [f"{len(learned) - len(newest)} more learned"] if len(learned) > len(newest) else []
        said.append("what is not known yet 10 min at most")
    return Finding("time-outs", Grade.OK, f"an attempt may take: {', '.join(said)}")


def judge_own_rules(rules: Mapping[str, str]) -> Iterator[Finding]:
    """Tasks that retry by themselves."""
    for says in rules.values():
        yield Finding("retries", Grade.NOTE, f"task {says}")


def judge_settings(settings: Settings) -> Iterator[Finding]:
    """Settings that are valid but unusual."""
    off = [
        field.name
        for field in fields(settings)
        if field.name.startswith("enable_") and not getattr(settings, field.name)
    ]
    for name in off:
        yield Finding("settings", Grade.NOTE, f"{PREFIX}{name.upper()} is off")
    if settings.capture_content:
        yield Finding(
            "settings",
            Grade.NOTE,
            f"{PREFIX}CAPTURE_CONTENT is on: arguments, answers and tracebacks are kept in the tracking database for "
            f"{settings.retention_days:g} days",
        )
    if settings.emergency_mode:
        yield Finding("settings", Grade.NOTE, f"{PREFIX}EMERGENCY_MODE pins EMERGENCY whenever a worker starts")


def mean_latency_s(cells: Iterable[tuple[CellKey, Cell]]) -> dict[str, float]:
    """Lane → mean seconds of an answered attempt."""
    took: dict[str, tuple[float, int]] = {}
    for key, cell in cells:
        if answers := rollup.outcomes(cell)[Outcome.ANSWERED]:
            total_s, before = took.get(key.series.lane, (0.0, 0))
            took[key.series.lane] = (total_s + cell.latency_s, before + answers)
    return {lane: total_s / answers for lane, (total_s, answers) in took.items()}


# ── output ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings_text(found: Sequence[InForce]) -> str:
    """One line for each setting: name, value and, if it is not the default, the source."""
    wide = max(len(one.name) for one in found)
    return "\n".join(
        f"{one.name.ljust(wide)}  {one.value}{'' if one.source == 'default' else f'  ({one.source})'}" for one in found
    )


def findings_text(findings: Sequence[Finding]) -> str:
    """One line for each finding; those that are wrong come last, nearest to the prompt."""
    order = sorted(findings, key=lambda finding: list(Grade).index(finding.level))
    return "\n".join(f"{finding.level:<5}  {finding.check}: {one_line(finding.says)}" for finding in order)


def report(found: Sequence[InForce], findings: Sequence[Finding]) -> dict[str, object]:
    """Settings and findings as plain values, for JSON."""
    return {
        "settings": [structs.asdict(one) for one in found],
        "findings": [{"check": one.check, "level": one.level.value, "says": one.says} for one in findings],
        "exit_code": exit_code(findings),
    }
