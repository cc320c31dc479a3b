"""Which settings are in force? Read once from the environment, checked as a whole, frozen.

Only this module sees the environment. Every bad value and every unknown `MAISD_` name is reported at once.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from ratelimit_worker.calls import LaneLimits, SentWith
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.choices import MOST_DEADLINE_S, MOST_TIMEOUT_S, MOST_TTL_S, flaw_of_name
from ratelimit_worker.policy.day import zone_of
from ratelimit_worker.policy.endpoints import ANTHROPIC, GOOGLE, OPENAI, flaw_of_path
from ratelimit_worker.policy.price import own_cards

PREFIX = "MAISD_"
#: What is said where a Redis is needed and none is named.
NO_REDIS = (
    "no Redis: set MAISD_REDIS_URL or CELERY_BROKER_URL, name your app to commands (-A MODULE), "
    "or use `up`, `run` or `demo`"
)
REDIS_PASSWORD_FILE = f"{PREFIX}REDIS_PASSWORD_FILE"

#: Names of settings that carry secrets or credentials in URLs; never printed whole.
SECRET_NAMES = frozenset({"REDIS_URL", "DATABASE_URL", "ALERT_WEBHOOK_URL", "PROVIDERS"})

T = TypeVar("T")


def _switch(text: str) -> bool:
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("use true or false")


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    fix = f"use a number {'above' if above else 'from'} {low:g}{f' to {high:g}' if high < math.inf else ''}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(fix) from error
        if not math.isfinite(value) or value < low or value > high or (above and value == low):
            raise ValueError(fix)
        return value

    return parse


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    fix = f"use a whole number from {low}{f' to {high}' if high is not None else ''}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise ValueError(fix) from error
        if value < low or (high is not None and value > high):
            raise ValueError(fix)
        return value

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        word = text.strip().lower()
        if word not in words:
            raise ValueError(f"use one of {', '.join(words)}")
        return word

    return parse


def _database(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    kind, _, driver = scheme.partition("+")
    if not separator or kind not in {"sqlite", "postgres", "postgresql"}:
        raise ValueError("use a URL that starts with sqlite:// or postgresql://")
    if driver not in {"", "psycopg", "pysqlite"}:
        raise ValueError(f"the driver {driver!r} cannot be used here: leave it out, {kind}://…")
    return text


def _redis_address(text: str) -> str:
    several = [one.strip() for one in text.split(";") if one.strip()]
    schemes = {canonical_redis_url(one).partition("://")[0] for one in several if "://" in one}
    if not schemes or not schemes <= {"redis", "rediss", "unix", "sentinel"}:
        raise ValueError("use a URL that starts with redis://, rediss://, unix:// or sentinel://")
    if len(several) > 1 and schemes != {"sentinel"}:
        raise ValueError("lanes need one Redis or Valkey server; name several only as sentinel://")
    return text


def namespace_prefix(text: str) -> str:
    """What names of keys begin with in a namespace: it and a colon, unless it ends in a mark of its own."""
    return text if not text or text[-1] in ":_-./" else f"{text}:"


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", text):
        raise ValueError("use 1 to 64 letters, digits and . _ - : /, a letter or digit first")
    return namespace_prefix(text)


def _webhook(text: str) -> str:
    try:
        parts = urlsplit(text)
        named = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:  # a port or an address that cannot be
        named = False
    if not named or any(letter.isspace() for letter in text):
        raise ValueError("use a whole URL, such as https://host/path")
    return text


def _switch_or_auto(text: str) -> bool | None:
    try:
        return None if text.strip().lower() == "auto" else _switch(text)
    except ValueError as error:
        raise ValueError("use true, false or auto") from error


def _zone(text: str) -> str:
    zone_of(text)
    return text.strip()


MOST_PARENTS = 4  #: of one lane: each is as much work for every call as the lane itself

MOST_ANSWER_MB = 500.0  #: Redis takes no value above 512 MB, and an answer has to be kept there

_LANE_FIELDS: dict[str, Callable[[str], Any]] = {
    "rpm": _number(0, above=True),
    "tpm": _number(0, above=True),
    "rpd": _number(0, above=True),
    "tpd": _number(0, above=True),
    "day_zone": _zone,
    "concurrency": _whole(1),
    "unlimited": _switch,
    "adaptive": _switch,
    "reconcile": _switch_or_auto,
    "timeout_s": _number(0, MOST_TIMEOUT_S, above=True),
}


def _tables(text: str) -> Mapping[str, Any]:
    """JSON, or a TOML file named by its path."""
    text = text.strip()
    if text.startswith("{"):
        raw: Mapping[str, Any] = json.loads(text)
        return raw
    try:
        return tomllib.loads(Path(text).expanduser().read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"use JSON or the path of a TOML file ({error.strerror or error})") from error


#: Providers whose requests are made here.
PROVIDERS = (OPENAI, ANTHROPIC, GOOGLE)

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Headers that belong to the request itself.
_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}
)
#: What a header is called that holds a secret.
_SECRET_HEADER = re.compile(r"auth|key|token|secret|password|cookie", re.I)
_REFERENCES = ("env:", "file:")


def _prices(text: str) -> Mapping[str, PriceCard]:
    """Prices of one's own, from JSON or a TOML file: dollars for a million tokens, by model."""
    return own_cards(_tables(text))


def _providers(text: str) -> Mapping[str, SentWith]:
    """What requests to a provider carry, from JSON or a TOML file."""
    found = {}
    for name, table in _tables(text).items():
        if name not in PROVIDERS:
            raise ValueError(f"unknown provider {name!r}; known: {', '.join(PROVIDERS)}")
        if not isinstance(table, Mapping) or set(table) - {"headers", "query", "paths"}:
            raise ValueError(f"provider {name!r}: use a table with headers, query and paths")
        found[str(name)] = replace(sent_with(f"provider {name!r}", table), paths=_paths(str(name), table))
    return found


def _paths(provider: str, table: Mapping[str, Any]) -> tuple[str, ...]:
    paths = table.get("paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"provider {provider!r}: paths is a list of texts")
    for path in paths:
        if (flaw := flaw_of_path(path)) is not None:
            raise ValueError(f"provider {provider!r}: paths: {path[:60]!r}: {flaw}")
    return tuple(paths)


def sent_with(where: str, table: Mapping[str, Any]) -> SentWith:
    """Check `headers` and `query` as a person wrote them.

    Raises:
        ValueError: names the place and the fix; no value is repeated.
    """
    headers, query = table.get("headers", {}), table.get("query", {})
    for name, values in (("headers", headers), ("query", query)):
        if not isinstance(values, Mapping) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError(f"{where}: {name} is a table of texts")
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ValueError(f"{where}: {name[:60]!r} cannot be given as a header")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"{where}: header {name!r} holds what no HTTP header can carry")
        if value and _SECRET_HEADER.search(name) and not value.startswith(_REFERENCES):
            raise ValueError(f"{where}: header {name!r} looks like a secret; give it as env:NAME or file:PATH")
    for name, value in query.items():
        if value.startswith(_REFERENCES):
            raise ValueError(f"{where}: query {name!r}: logs show addresses; give a secret as a header")
    return SentWith(headers={name.lower(): value for name, value in headers.items()}, query=dict(query))


def _seconds_by_name(text: str) -> Mapping[str, float]:
    """Times to live by context, from JSON or a TOML file."""
    found = {}
    for name, seconds in _tables(text).items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_TTL_S:
            raise ValueError(f"{name!r}: use a number of seconds from 0 to {MOST_TTL_S:,}")
        found[str(name)] = float(seconds)
    return found


def _lanes(text: str) -> Mapping[str, LaneLimits]:
    """Lane limits from JSON, or from a TOML file named by its path."""
    raw = _tables(text)
    lanes = {str(name): lane_limits(str(name), values) for name, values in raw.items()}
    learning = {str(name) for name, values in raw.items() if values.get("adaptive") is True}
    return _with_parents(lanes, learning)


def _with_parents(lanes: Mapping[str, LaneLimits], learning: Collection[str]) -> Mapping[str, LaneLimits]:
    """The lanes, with those marked that are budgets of others.

    Args:
        learning: Lanes said to be adaptive: one of these that is a parent has calls of its own to learn from.
    Raises:
        ValueError: a parent that cannot be; names the lane, the parent and the fix.
    """
    for lane, limits in lanes.items():
        for parent in limits.parents:
            if parent not in lanes:
                raise ValueError(f"lane {lane!r}: unknown parent {parent!r}; give it a table of its own")
            if lanes[parent].parents:
                raise ValueError(
                    f"lane {lane!r}: parent {parent!r} has parents itself; name them all at {lane!r} instead"
                )
            if parent not in learning and not bounds_others(lanes[parent]):
                raise ValueError(
                    f"lane {lane!r}: parent {parent!r} has no limit; tell it rpm, tpm, rpd, tpd or concurrency"
                )
    parents = {parent for limits in lanes.values() for parent in limits.parents} - set(learning)
    return {
        lane: replace(limits, shared=True, adaptive=False) if lane in parents else limits
        for lane, limits in lanes.items()
    }


def bounds_others(limits: LaneLimits) -> bool:
    """Whether a budget that has no calls of its own bounds those of its lanes (`unlimited`: by its mode alone)."""
    told = (limits.rpm, limits.tpm, limits.rpd, limits.tpd, limits.concurrency)
    return limits.unlimited or any(limit is not None for limit in told)


def parents_of(lane: str, names: Any) -> tuple[str, ...]:
    """Check the names of a lane's parents.

    Raises:
        ValueError: names the lane, the value and the fix.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"lane {lane!r}: parents={names!r}: use a list of lanes")
    if lane in names:
        raise ValueError(f"lane {lane!r}: parents={list(names)!r}: a lane is no parent of itself")
    if len(set(names)) < len(names) or len(names) > MOST_PARENTS:
        raise ValueError(f"lane {lane!r}: parents={list(names)!r}: use at most {MOST_PARENTS}, each once")
    return tuple(names)


def lane_limits(lane: str, values: Any) -> LaneLimits:
    """Check one lane's limits as a person wrote them.

    Raises:
        ValueError: names the lane, the value and the fix.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"lane {lane!r}: use a table of limits, not {values!r}")  # noqa: TRY004 - a setting's value
    if (flaw := flaw_of_name(lane)) is not None:
        raise ValueError(f"lane {lane[:60]!a}: {flaw}")
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name == "tenants":
            if not isinstance(value, Mapping):
                raise ValueError(f"lane {lane!r}: tenants is a table of weights")
            for tenant in value:
                if (flaw := flaw_of_name(str(tenant), empty=True)) is not None:
                    raise ValueError(f"lane {lane!r}: tenant {str(tenant)[:60]!a}: {flaw}")
            parsed["tenants"] = {str(tenant): _number(0, above=True)(str(weight)) for tenant, weight in value.items()}
        elif name == "parents":
            parsed["parents"] = parents_of(lane, value)
        elif name in ("headers", "query"):
            parsed["sent_with"] = sent_with(f"lane {lane!r}", values)
        elif name in _LANE_FIELDS:
            try:
                parsed[name] = _LANE_FIELDS[name](str(value))
            except ValueError as error:
                raise ValueError(f"lane {lane!r}: {name}={value!r}: {error}") from error
        else:
            raise ValueError(
                f"lane {lane!r}: unknown limit {name!r}; known: "
                f"{', '.join([*_LANE_FIELDS, 'parents', 'tenants', 'headers', 'query'])}"
            )
    return LaneLimits(**parsed)


def _setting(default: T, parse: Callable[[str], Any]) -> T:
    """A field of Settings; typed as its value, as dataclasses.field is."""
    made: Any = (
        field(default_factory=dict, metadata={"parse": parse})
        if isinstance(default, dict)
        else field(default=default, metadata={"parse": parse})
    )
    return cast(T, made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; the environment name of a field is `MAISD_` and its name in capitals."""

    enable_advanced_rate_limiting: bool = _setting(True, _switch)
    enable_intelligent_caching: bool = _setting(True, _switch)
    enable_request_deduplication: bool = _setting(True, _switch)
    enable_smart_retries: bool = _setting(True, _switch)
    enable_auto_escalation: bool = _setting(True, _switch)

    cache_size_mb: float = _setting(100.0, _number(0))
    max_cache_entries: int = _setting(1000, _whole(0))
    cache_ttl_seconds: float = _setting(3600.0, _number(0, MOST_TTL_S))
    cache_ttl_by_context: Mapping[str, float] = _setting({}, _seconds_by_name)
    dedup_window_seconds: float = _setting(1.0, _number(0, MOST_TTL_S))

    emergency_error_rate_threshold: float = _setting(30.0, _number(0, 100))
    emergency_error_count_threshold: int = _setting(10, _whole(1))
    reduced_error_rate_threshold: float = _setting(15.0, _number(0, 100))
    reduced_error_count_threshold: int = _setting(5, _whole(1))
    escalation_policy: str = _setting("evidence", _one_of("evidence", "literal"))
    emergency_mode: bool = _setting(False, _switch)

    calls_per_minute: float = _setting(60.0, _number(0, above=True))
    reduced_calls_per_minute: float = _setting(30.0, _number(0, above=True))
    emergency_calls_per_minute: float = _setting(10.0, _number(0, above=True))
    base_delay: float = _setting(1.0, _number(0, 86_400, above=True))
    max_delay: float = _setting(60.0, _number(0, 86_400, above=True))

    deadline_hours: float = _setting(24.0, _number(0, MOST_DEADLINE_S / 3600, above=True))
    timeout_seconds: float | None = _setting(None, _number(0, MOST_TIMEOUT_S, above=True))
    max_waiting: int = _setting(1_000_000, _whole(0))
    max_lanes: int = _setting(10_000, _whole(0))
    visibility_timeout_seconds: float = _setting(30.0, _number(1, 86_400))
    stats_retention_hours: float = _setting(24.0, _number(0, MOST_DEADLINE_S / 3600, above=True))
    cleanup_interval_hours: float = _setting(6.0, _number(0, MOST_DEADLINE_S / 3600, above=True))
    retention_days: float = _setting(7.0, _number(0, MOST_DEADLINE_S / 86_400, above=True))
    max_payload_mb: float = _setting(16.0, _number(0, MOST_ANSWER_MB, above=True))
    max_answer_mb: float = _setting(64.0, _number(0, MOST_ANSWER_MB, above=True))

    redis_url: str = _setting("", _redis_address)
    namespace: str = _setting("", _namespace)
    redis_password_file: str = _setting("", str)
    database_url: str = _setting("", _database)
    lanes: Mapping[str, LaneLimits] = _setting({}, _lanes)
    providers: Mapping[str, SentWith] = _setting({}, _providers)
    prices: Mapping[str, PriceCard] = _setting({}, _prices)
    alert_webhook_url: str = _setting("", _webhook)
    capture_content: bool = _setting(False, _switch)
    log_calls: bool = _setting(False, _switch)
    state_dir: str = _setting("", str)

    rate_limit_delay: float = 1.0  #: RATE_LIMIT_DELAY, without the prefix: seconds before a call in basic mode
    sources: Mapping[str, str] = field(default_factory=dict)  #: where each was found: "environment", "default", …

    @property
    def deadline_s(self) -> float:
        """Default deadline of a call, seconds from acceptance."""
        return self.deadline_hours * 3600.0

    @property
    def figures_reach_s(self) -> float:
        """The window of a report for which nobody names one, seconds."""
        return self.stats_retention_hours * 3600.0

    @property
    def state_path(self) -> Path:
        """Where embedded servers and SQLite keep their state."""
        return Path(self.state_dir)


def setting_names() -> dict[str, Callable[[str], Any]]:
    """Environment names (with prefix) and their parsers."""
    return {PREFIX + f.name.upper(): f.metadata["parse"] for f in fields(Settings) if "parse" in f.metadata}


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check all settings.

    Args:
        environ: The environment; the process's own when None.
    Raises:
        ConfigurationError: one line for each bad or unknown name, all at once.
    """
    env = os.environ if environ is None else environ
    known = setting_names()
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, parse in known.items():
        key = name.removeprefix(PREFIX).lower()
        text = env.get(name)
        if text is None or text == "":
            sources[name] = "default"
            continue
        sources[name] = "environment"
        try:
            values[key] = parse(text)
        except (ValueError, TypeError) as error:
            secret = name.removeprefix(PREFIX) in SECRET_NAMES or "headers" in text
            shown = "…" if secret else text[:80]
            problems.append(f"{name}={shown!r}: {error}")
    for name in sorted(env):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"{name}: unknown setting{f'; did you mean {near[0]}?' if near else ''}")
    values["rate_limit_delay"] = _delay(env, problems)
    values["redis_url"] = _redis_url(env, values.get("redis_url", ""), problems)
    if values.get("redis_password_file") and _has_password(values["redis_url"]):
        problems.append(
            f"{REDIS_PASSWORD_FILE}: the Redis URL has a password too; leave it out there (redis://user@host)"
        )
    if not values.get("database_url") and env.get("DATABASE_URL"):
        try:
            values["database_url"] = known[PREFIX + "DATABASE_URL"](env["DATABASE_URL"])
        except ValueError as error:
            problems.append(f"DATABASE_URL: {error}; or set MAISD_DATABASE_URL, which comes before it")
    values["state_dir"] = values.get("state_dir") or str(default_state_dir(env))
    if not values.get("database_url"):
        values["database_url"] = f"sqlite:///{Path(values['state_dir']) / 'tracking.sqlite3'}"
    _check_order(values, problems)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Settings(**values, sources=sources)


def environment() -> Mapping[str, str]:
    """The environment as it is, for providers' keys and addresses: read anew, so that a rotated key is taken up."""
    return os.environ


def told_paths(environ: Mapping[str, str], provider: str) -> tuple[str, ...]:
    """Paths of a provider that may be asked for beside the known endpoints, as MAISD_PROVIDERS says it.

    Raises:
        ConfigurationError: It is wrong.
    """
    try:
        told: SentWith = _read_once(_providers, environ.get(f"{PREFIX}PROVIDERS", "")).get(provider, SentWith())
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return told.paths


def told_to_send(environ: Mapping[str, str], provider: str, lane: str) -> SentWith:
    """What requests of a lane to a provider carry, as MAISD_PROVIDERS and MAISD_LANES say it; the lane's word wins.

    Raises:
        ConfigurationError: One of them is wrong, or a secret that it names is not there.
    """
    try:
        of_provider = _read_once(_providers, environ.get(f"{PREFIX}PROVIDERS", "")).get(provider, SentWith())
        of_lane = _read_once(_lanes, environ.get(f"{PREFIX}LANES", "")).get(lane, LaneLimits()).sent_with
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    headers = {**of_provider.headers, **of_lane.headers}
    return SentWith(
        headers={name: _resolved(environ, name, value) for name, value in headers.items()},
        query={**of_provider.query, **of_lane.query},
    )


@lru_cache(maxsize=16)
def _read_once(parse: Callable[[str], Mapping[str, T]], text: str) -> Mapping[str, T]:
    """As all settings a process keeps what it read first; only what they refer to is read anew."""
    return parse(text) if text else {}


def _resolved(environ: Mapping[str, str], name: str, value: str) -> str:
    kind, separator, of = value.partition(":")
    if not separator or f"{kind}:" not in _REFERENCES:
        return value
    try:
        found = environ.get(of, "") if kind == "env" else Path(of).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"header {name!r}: {value} cannot be read ({type(error).__name__})") from None
    secret = found.strip()
    if not secret:
        raise ConfigurationError(f"header {name!r}: {value} is empty or not there")
    if not secret.isascii() or not secret.isprintable():
        raise ConfigurationError(f"header {name!r}: {value} holds characters that no HTTP header can carry")
    return secret


def _delay(env: Mapping[str, str], problems: list[str]) -> float:
    text = env.get("RATE_LIMIT_DELAY", "")
    if not text:
        return 1.0
    try:
        return _number(0, 86_400)(text)
    except ValueError as error:
        problems.append(f"RATE_LIMIT_DELAY={text[:80]!r}: {error}")
        return 1.0


def _redis_url(env: Mapping[str, str], own: str, problems: list[str]) -> str:
    """The one Redis server: broker, lanes and store are one unit, so two different addresses are a mistake."""
    broker = env.get("CELERY_BROKER_URL", "")
    if broker and not own:
        try:
            _redis_address(broker)
        except ValueError as error:
            problems.append(f"CELERY_BROKER_URL={broker.partition('://')[0][:40]!r}: {error}")
            return ""
    if broker and own and canonical_redis_url(broker) != canonical_redis_url(own):
        problems.append(
            "MAISD_REDIS_URL and CELERY_BROKER_URL name two servers; lanes live in the broker: set one, or both alike"
        )
    return own or (canonical_redis_url(broker) if broker else "")


def _has_password(url: str) -> bool:
    user, separator, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    return bool(separator and user.partition(":")[2])


#: URL schemes of the lanes transport and what they stand for.
LANE_SCHEMES = {"lanes": "redis", "laness": "rediss", "lanes+socket": "unix", "redis+socket": "unix"}


def canonical_redis_url(url: str) -> str:
    """The URL as redis-py takes it: `lanes://` → `redis://`, `redis+socket://` → `unix://`."""
    scheme, separator, rest = url.partition("://")
    return LANE_SCHEMES.get(scheme, scheme) + separator + rest


def default_state_dir(env: Mapping[str, str]) -> Path:
    """Where state is kept by default: `$XDG_STATE_HOME/ratelimit-worker`."""
    base = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME") or "~").expanduser() / ".local" / "state")
    return Path(base) / "ratelimit-worker"


def _check_order(values: Mapping[str, Any], problems: list[str]) -> None:
    for low, high in (
        ("reduced_error_rate_threshold", "emergency_error_rate_threshold"),
        ("reduced_error_count_threshold", "emergency_error_count_threshold"),
        ("base_delay", "max_delay"),
    ):
        defaults = {f.name: f.default for f in fields(Settings)}
        a, b = values.get(low, defaults[low]), values.get(high, defaults[high])
        if a > b:
            problems.append(f"{PREFIX}{low.upper()}={a:g} is above {PREFIX}{high.upper()}={b:g}; it must not be")
