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
from ratelimit_worker.contracts.budget import Budget
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.budget import flaw_of_budget
from ratelimit_worker.policy.choices import MOST_DEADLINE_S, MOST_TIMEOUT_S, MOST_TTL_S, flaw_of_name
from ratelimit_worker.policy.day import zone_of
from ratelimit_worker.policy.endpoints import ANTHROPIC, GOOGLE, OPENAI, flaw_of_path
from ratelimit_worker.policy.price import own_cards

PREFIX = "MAISD_"
#: Error message where a Redis is needed and none is configured.
NO_REDIS = (
    "no Redis: set MAISD_REDIS_URL or CELERY_BROKER_URL, name your app to commands (-A MODULE), "
    "or use `up`, `run` or `demo`"
)
REDIS_PASSWORD_FILE = f"{PREFIX}REDIS_PASSWORD_FILE"

#: Names of settings that carry secrets or credentials in URLs; never printed whole.
SECRET_NAMES = frozenset({"REDIS_URL", "DATABASE_URL", "ALERT_WEBHOOK_URL", "ALERT_WEBHOOK_SECRET", "PROVIDERS"})

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


def _names(text: str) -> str:
    if not any(name.strip() for name in text.split(",")):
        raise ValueError("use names with commas between")
    return text


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
    """The prefix of all key names in a namespace: its name and a colon, unless it ends in one of `:_-./` itself."""
    return text if not text or text[-1] in ":_-./" else f"{text}:"


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", text):
        raise ValueError("use 1 to 64 letters, digits and . _ - : /, a letter or digit first")
    return namespace_prefix(text)


def _webhook(text: str) -> str:
    try:
        parts = urlsplit(text)
        named = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:  # an invalid port or address
        named = False
    if not named or any(letter.isspace() for letter in text):
        raise ValueError("use a whole URL, such as https://host/path")
    return text


LEAST_SECRET = 16  #: fewest characters of a signing secret


def _signing(text: str) -> str:
    kind, _, of = text.partition(":")
    if kind in {"env", "file"} and of:
        return text
    if not text.isascii() or len(text) < LEAST_SECRET:
        raise ValueError(f"use {LEAST_SECRET} letters and digits or more, whsec_ and base64, env:NAME or file:PATH")
    return text


def _switch_or_auto(text: str) -> bool | None:
    try:
        return None if text.strip().lower() == "auto" else _switch(text)
    except ValueError as error:
        raise ValueError("use true, false or auto") from error


def _zone(text: str) -> str:
    zone_of(text)
    return text.strip()


MOST_PARENTS = 4  #: most parents of one lane: each costs every call as much work as the lane itself

MOST_ANSWER_MB = 500.0  #: Redis takes no value above 512 MB, and an answer has to be kept there

_LANE_FIELDS: dict[str, Callable[[str], Any]] = {
    "rpm": _number(0, above=True),
    "tpm": _number(0, above=True),
    "rpd": _number(0, above=True),
    "tpd": _number(0, above=True),
    "usd_per_day": _number(0, above=True),
    "usd_per_month": _number(0, above=True),
    "day_zone": _zone,
    "concurrency": _whole(1),
    "unlimited": _switch,
    "adaptive": _switch,
    "reconcile": _switch_or_auto,
    "timeout_s": _number(0, MOST_TIMEOUT_S, above=True),
}


def _tables(text: str) -> Mapping[str, Any]:
    """The tables in a setting's value, which is JSON or the path of a TOML file."""
    text = text.strip()
    if text.startswith("{"):
        raw: Mapping[str, Any] = json.loads(text)
        return raw
    try:
        return tomllib.loads(Path(text).expanduser().read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"use JSON or the path of a TOML file ({error.strerror or error})") from error


#: Providers to which the built-in tasks send requests.
PROVIDERS = (OPENAI, ANTHROPIC, GOOGLE)

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Headers that the HTTP client sets itself, so nobody can configure them.
_OWN_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}
)
#: Found in the name of a header that probably holds a secret.
_SECRET_HEADER = re.compile(r"auth|key|token|secret|password|cookie", re.I)
_REFERENCES = ("env:", "file:")


def _prices(text: str) -> Mapping[str, PriceCard]:
    """The user's own prices by model, in dollars for a million tokens, from JSON or a TOML file."""
    return own_cards(_tables(text))


_BUDGET_FIELDS: Mapping[str, Callable[[str], Any]] = {
    "usd_per_day": _number(0, above=True),
    "usd_per_month": _number(0, above=True),
    "zone": _zone,
}


def _budgets(text: str) -> Mapping[str, Budget]:
    """Budgets of money by name, from JSON or a TOML file."""
    found = {}
    for name, table in _tables(text).items():
        if (flaw := flaw_of_budget(str(name))) is not None:
            raise ValueError(f"budget {str(name)[:60]!a}: {flaw}")
        if not isinstance(table, Mapping) or not table or set(table) - set(_BUDGET_FIELDS):
            raise ValueError(f"budget {name!r}: use a table with usd_per_day, usd_per_month and zone")
        try:
            found[str(name)] = Budget(**{field: _BUDGET_FIELDS[field](str(value)) for field, value in table.items()})
        except ValueError as error:
            raise ValueError(f"budget {name!r}: {error}") from error
        if not found[str(name)].bounds:
            raise ValueError(f"budget {name!r}: name usd_per_day or usd_per_month")
    return found


def _providers(text: str) -> Mapping[str, SentWith]:
    """Headers, query and additional paths of requests by provider, from JSON or a TOML file."""
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

    Args:
        where: The setting's place, with which error messages begin.
    Raises:
        ValueError: the message names the place and the fix, and repeats no value.
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
    """The lanes; parents are marked as shared, and do not adapt unless `learning` names them.

    Args:
        learning: Lanes with an explicit `adaptive`: a parent among them has calls of its own to learn from.
    Raises:
        ValueError: a parent is unknown, has no limit, or has parents; the message names the lane, it and the fix.
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
                    f"lane {lane!r}: parent {parent!r} has no limit; tell it a rate, a quota, dollars or concurrency"
                )
    parents = {parent for limits in lanes.values() for parent in limits.parents} - set(learning)
    return {
        lane: replace(limits, shared=True, adaptive=False) if lane in parents else limits
        for lane, limits in lanes.items()
    }


def bounds_others(limits: LaneLimits) -> bool:
    """Whether a parent without calls of its own limits its lanes at all (an `unlimited` one does by its mode alone)."""
    told = (limits.rpm, limits.tpm, limits.rpd, limits.tpd, limits.concurrency)
    dollars = (limits.usd_per_day, limits.usd_per_month)
    return limits.unlimited or any(limit is not None for limit in told + dollars)


def parents_of(lane: str, names: Any) -> tuple[str, ...]:
    """Check the names of a lane's parents.

    Raises:
        ValueError: the message names the lane, the value and the fix.
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
        ValueError: the message names the lane, the value and the fix.
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

    failed_calls_hours: float = _setting(24.0, _number(0, 24 * 30))
    max_failed_calls: int = _setting(1_000, _whole(0))
    failed_calls_mb: float = _setting(100.0, _number(0))

    flower_operators: str = _setting("", _names)

    redis_url: str = _setting("", _redis_address)
    namespace: str = _setting("", _namespace)
    redis_password_file: str = _setting("", str)
    database_url: str = _setting("", _database)
    lanes: Mapping[str, LaneLimits] = _setting({}, _lanes)
    providers: Mapping[str, SentWith] = _setting({}, _providers)
    prices: Mapping[str, PriceCard] = _setting({}, _prices)
    budgets: Mapping[str, Budget] = _setting({}, _budgets)
    alert_webhook_url: str = _setting("", _webhook)
    alert_webhook_secret: str = _setting("", _signing)
    alert_webhook_form: str = _setting("auto", _one_of("auto", "json", "slack"))
    capture_content: bool = _setting(False, _switch)
    log_calls: bool = _setting(False, _switch)
    otel: str = _setting("auto", _one_of("auto", "on", "off"))
    state_dir: str = _setting("", str)

    #: RATE_LIMIT_DELAY (without the prefix): seconds between two calls while advanced rate limiting is off.
    rate_limit_delay: float = 1.0
    #: By environment name, where each setting was found: "environment", "default", …
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def deadline_s(self) -> float:
        """Default deadline of a call, seconds from acceptance."""
        return self.deadline_hours * 3600.0

    @property
    def operators(self) -> frozenset[str]:
        """Who may press buttons in Flower; empty: everybody who is logged in."""
        return frozenset(name.strip() for name in self.flower_operators.split(",") if name.strip())

    @property
    def figures_reach_s(self) -> float:
        """Default window of a report, seconds."""
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
    """The live environment (not a copy), for providers' keys and addresses: a rotated key takes effect at once."""
    return os.environ


def told_paths(environ: Mapping[str, str], provider: str) -> tuple[str, ...]:
    """Paths of a provider that MAISD_PROVIDERS allows in addition to the known endpoints.

    Raises:
        ConfigurationError: MAISD_PROVIDERS is wrong.
    """
    try:
        told: SentWith = _read_once(_providers, environ.get(f"{PREFIX}PROVIDERS", "")).get(provider, SentWith())
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return told.paths


def told_to_send(environ: Mapping[str, str], provider: str, lane: str) -> SentWith:
    """Headers and query of a lane's requests to a provider. What MAISD_LANES sets replaces what MAISD_PROVIDERS sets.

    Raises:
        ConfigurationError: one of these settings is wrong, or a secret to which it refers cannot be read.
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


def signing_secret(environ: Mapping[str, str], text: str) -> str:
    """The secret of MAISD_ALERT_WEBHOOK_SECRET: its text itself, or the content of the variable or file that it names.

    Raises:
        ConfigurationError: the variable or file cannot be read, is too short, or is not ASCII.
    """
    kind, _, of = text.partition(":")
    if kind not in {"env", "file"}:
        return text
    name = f"{PREFIX}ALERT_WEBHOOK_SECRET"
    try:
        found = environ.get(of, "") if kind == "env" else Path(of).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{name}: {text} cannot be read ({type(error).__name__})") from None
    secret = found.strip()
    if not secret.isascii() or len(secret) < LEAST_SECRET:
        raise ConfigurationError(f"{name}: {text} holds less than {LEAST_SECRET} letters and digits")
    return secret


@lru_cache(maxsize=16)
def _read_once(parse: Callable[[str], Mapping[str, T]], text: str) -> Mapping[str, T]:
    """Parse a text once: the TOML file that it may name is not read again, but the secrets referred to there are."""
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
