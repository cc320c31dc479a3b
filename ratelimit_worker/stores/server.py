"""The one Redis server and the parameters of connections to it, for our clients, the broker's channels and results, so
that an address means the same to all of them.

An address has redis-py's or Celery's form: `redis://`, `rediss://`, `unix://` (`redis+socket://`), or the sentinels
that know the master, `sentinel://one:26379;sentinel://two:26379/0` with `master_name`. Options that Celery has outside
of the address (`broker_use_ssl`, transport options) are passed separately.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from msgspec import Struct, field
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from ratelimit_worker.config import NO_REDIS, canonical_redis_url
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.credentials import credentials_of
from ratelimit_worker.stores.decide import bounded
from ratelimit_worker.stores.fitness import fit
from ratelimit_worker.stores.namespace import Namespaced

SENTINEL_PORT = 26_379
SENTINEL_TIMEOUT_S = 0.5  #: time for a sentinel to connect and to answer; then the next one is asked
#: Options that an address may have, beside those that begin with `ssl_` or `sentinel_`.
_KNOWN = frozenset(
    {
        *("db", "virtual_host", "username", "password", "credential_provider", "client_name", "protocol"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval", "retry_on_timeout"),
        *("socket_read_size", "max_connections", "encoding", "encoding_errors"),
        *("master_name", "min_other_sentinels"),
    }
)
#: Celery's and kombu's options about times and pools; an address that has one itself overrides them.
TOLD = frozenset(
    {
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"),
        *("health_check_interval", "retry_on_timeout", "max_connections", "client_name", "driver_info"),
    }
)
_VERIFY = {
    "required": ssl.CERT_REQUIRED, "cert_required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL, "cert_optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE, "cert_none": ssl.CERT_NONE,
}  # fmt: skip
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path")
_NOT_ITS_OWN = ("ssl", "min_other_sentinels")  #: options that connections do not accept
_NOT_OF_SOCKETS = ("socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "host", "port")


class RedisServer(Struct, frozen=True):
    """One Redis or Valkey server, or the master that sentinels name.

    Args:
        url: Its address; "": none is configured.
        namespace: Prefix of all keys and channels.
        options: Further options of connections, by redis-py's names (`ssl_ca_certs`, `username`); `ssl`: use TLS.
        master: The master's name for the sentinels, if the address does not have it.
        sentinel_options: For connections to the sentinels themselves.
    """

    url: str = ""
    namespace: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    master: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.url)

    @property
    def by_sentinels(self) -> bool:
        """Whether it is found by sentinels."""
        return self.url.startswith("sentinel://")

    def client(self, **told: Any) -> Redis:
        """A client that retries nothing by itself.

        Args:
            told: As `parameters`.
        Raises:
            ConfigurationError: the address is empty, or wrong.
        """
        if not self.url:
            raise ConfigurationError(NO_REDIS)
        params = self.parameters(**told)
        # The caller decides whether to repeat: running a script twice is not the same as once.
        params["retry"] = Retry(NoBackoff(), 0)
        pool = self.pool(params)
        made = (
            Namespaced(connection_pool=pool, namespace=self.namespace)
            if self.namespace
            else Redis(connection_pool=pool)
        )
        made.auto_close_connection_pool = True
        return made

    def pool(self, params: Mapping[str, Any]) -> ConnectionPool:
        """Connections made with these parameters."""
        if not self.by_sentinels:
            return ConnectionPool(**params)
        options = {name: value for name, value in params.items() if name not in {"host", "port"}}
        return SentinelConnectionPool(  # type: ignore[no-untyped-call]
            self.master_name, self._sentinel(), **options
        )

    def parameters(self, **told: Any) -> dict[str, Any]:
        """The parameters of one connection for redis-py, with its class.

        Args:
            told: Time-outs and bounds, used unless the address has its own.
        Raises:
            ConfigurationError: the address is wrong; one line that says what.
        """
        query = self._query()
        first = self._addresses()[0]
        address, password = credentials_of(first)
        parts = urlsplit(address)
        plain = {name: value for name, value in query.items() if not name.startswith(("ssl_", "sentinel_"))}
        for name in ("master_name", "min_other_sentinels", "virtual_host", "credential_provider"):
            plain.pop(name, None)
        if (database := self.database) and parts.scheme != "unix":
            plain.pop("db", None)
        scheme = "redis" if parts.scheme == "sentinel" else parts.scheme
        bare = f"{scheme}://{parts.netloc}{parts.path if scheme == 'unix' else ''}?{urlencode(plain)}"
        try:
            found = parse_url(bare)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigurationError(f"Redis URL {self.shown}: {error}") from None
        secure = parts.scheme == "rediss" or bool(self.options.get("ssl"))
        more = {name: value for name, value in {**query, **self.options}.items() if name.startswith("ssl_")}
        secure = secure or bool(more)
        own = {
            name: value
            for name, value in self.options.items()
            if name not in _NOT_ITS_OWN and not name.startswith("ssl_")
        }
        params = {**{name: value for name, value in told.items() if name in TOLD}, **found, **own, "db": int(database)}
        if (provider := params.get("credential_provider") or query.get("credential_provider")) is not None:
            params["credential_provider"] = _provider(provider)
        if password is not None:
            params["credential_provider"] = password
        if params.get("credential_provider") is not None:
            params.pop("username", None)
            params.pop("password", None)
        if scheme == "unix":
            kind: type = UnixDomainSocketConnection
            params = {name: value for name, value in params.items() if name not in _NOT_OF_SOCKETS}
        elif secure:
            kind = SentinelManagedSSLConnection if self.by_sentinels else SSLConnection
            params |= _tls(more)
        else:
            kind = SentinelManagedConnection if self.by_sentinels else Connection
        return {**params, "connection_class": fit(bounded(kind))}

    @property
    def database(self) -> str:
        """The number of its database.

        Raises:
            ConfigurationError: it is not valid.
        """
        query, addresses = self._query(), self._addresses()
        paths = [] if addresses[0].startswith("unix://") else [urlsplit(one).path.strip("/") for one in addresses]
        told = query.get("db") or query.get("virtual_host") or next((path for path in paths if path), "") or "0"
        number = unquote(told).strip("/")
        if not (number.isascii() and number.isdigit()):
            raise ConfigurationError(f"Redis URL {self.shown}: {number!r} is no database number")
        return str(int(number))

    @property
    def place(self) -> tuple[str, ...]:
        """Its identity among servers, databases and namespaces, by its address."""
        addresses = self._addresses()
        if addresses[0].startswith("unix://"):
            return urlsplit(addresses[0]).path, self.database, self.namespace
        hosts = sorted(":".join(map(str, one)) for one in self._hosts())
        master = [self._query().get("master_name") or self.master] if self.by_sentinels else []
        return *hosts, *master, self.database, self.namespace

    @property
    def shown(self) -> str:
        """Where it is, for messages: without secrets."""
        canonical = canonical_redis_url(self.url)
        if canonical.startswith("unix://"):
            return urlsplit(canonical).path
        return ", ".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._hosts(checked=False)
        )

    def _addresses(self) -> list[str]:
        """The URLs: one, or one for each sentinel.

        Raises:
            ConfigurationError: there are several servers.
        """
        several = [one.strip() for one in self.url.split(";") if one.strip()]
        scheme = self.url.partition("://")[0]
        addresses = [canonical_redis_url(one if "://" in one else f"{scheme}://{one}") for one in several]
        if len(addresses) > 1 and not all(one.startswith("sentinel://") for one in addresses):
            raise ConfigurationError("several brokers: lanes need one Redis or Valkey server, or sentinel://")
        return addresses or [""]

    def _query(self) -> dict[str, str]:
        """The query options of all addresses.

        Raises:
            ConfigurationError: an option is unknown, and probably misspelt.
        """
        query: dict[str, str] = {}
        for one in self._addresses():
            query.update(parse_qsl(urlsplit(one).query))
        for name in query:
            if name not in _KNOWN and not name.startswith(("ssl_", "sentinel_")):
                raise ConfigurationError(f"Redis URL {self.shown}: unknown option {name!r} in its query")
        return query

    def _hosts(self, *, checked: bool = True) -> Iterator[tuple[str, int]]:
        for one in [part for part in self.url.split(";") if part.strip()] if not checked else self._addresses():
            parts = urlsplit(one.strip() if "://" in one else f"sentinel://{one.strip()}")
            try:
                port = parts.port or (SENTINEL_PORT if self.by_sentinels else 6379)
            except ValueError:
                if checked:
                    raise ConfigurationError("Redis URL: its port is no number from 1 to 65535") from None
                port = 0
            host = unquote(parts.hostname or "localhost").lower()
            yield "127.0.0.1" if host in {"localhost", "::1"} else host, port

    @property
    def master_name(self) -> str:
        """The master's name for the sentinels.

        Raises:
            ConfigurationError: it is not configured.
        """
        name = self._query().get("master_name") or self.master
        if not name:
            raise ConfigurationError(
                f"sentinels {self.shown}: say which master: broker_transport_options={{'master_name': …}}, or "
                "?master_name=… in the address"
            )
        return name

    def _sentinel(self) -> Sentinel:
        """The sentinels' client, with short time-outs, since `.delay()` waits for it."""
        query = self._query()
        told = {name.removeprefix("sentinel_"): value for name, value in query.items() if name.startswith("sentinel_")}
        options = {**told, **self.sentinel_options}
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
        kind: type = SSLConnection if options.pop("ssl", None) or tls else Connection
        times = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
        plain = {name: value for name, value in options.items() if not name.startswith("ssl_")}
        shared = {**times, **plain, **(_tls(tls) if kind is SSLConnection else {}), "connection_class": bounded(kind)}
        least = int(query.get("min_other_sentinels") or self.options.get("min_other_sentinels") or 0)
        made = Sentinel([], min_other_sentinels=least)  # type: ignore[no-untyped-call]
        made.sentinels = [
            Redis.from_pool(ConnectionPool(host=host, port=port, retry=Retry(NoBackoff(), 0), **shared))
            for host, port in self._hosts()
        ]
        return made


def _tls(told: Mapping[str, Any]) -> dict[str, Any]:
    """TLS options in redis-py's form, from Celery's or redis-py's own.

    Raises:
        ConfigurationError: an option is invalid.
    """
    found = {name: value for name, value in told.items() if value is not None}
    verify = found.get("ssl_cert_reqs")
    if isinstance(verify, str):
        if verify.lower() not in _VERIFY:
            raise ConfigurationError(f"ssl_cert_reqs={verify!r}: use required, optional or none")
        found["ssl_cert_reqs"] = _VERIFY[verify.lower()]
    hostname = found.get("ssl_check_hostname")
    if isinstance(hostname, str):
        found["ssl_check_hostname"] = hostname.lower() not in {"false", "0", "no", "off", "n", "f"}
    version = found.get("ssl_min_version")
    if isinstance(version, str):
        try:
            found["ssl_min_version"] = (
                ssl.TLSVersion[version] if not version.isdigit() else ssl.TLSVersion(int(version))
            )
        except (KeyError, ValueError):
            raise ConfigurationError(f"ssl_min_version={version!r}: use TLSv1_2 or TLSv1_3") from None
    for name in _FILES:
        if found.get(name) and not Path(found[name]).exists():
            raise ConfigurationError(f"{name}={found[name]}: there is no such file")
    return found


def _provider(told: Any) -> Any:
    """A credential provider, given as an object or, as in Celery, by its dotted path."""
    if not isinstance(told, str):
        return told
    try:
        return resolve_name(told)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"credential_provider={told!r} cannot be imported ({error})") from None
