"""What did `install(app)` make of an app? One Redis server, the services over it, and what its transport asks.

All of it is decided when it is first needed, from the configuration that is then in force: an app may be configured
before `install` or after it, and again.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from celery import Celery
from kombu.connection import Connection
from kombu.utils.imports import symbol_by_name

from ratelimit_worker import wiring
from ratelimit_worker.config import Settings, canonical_redis_url
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.stores.credentials import credentials_of
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.wiring import Services

#: Redis URL schemes and what they are called where calls wait in lanes.
TO_LANES = {"redis": "lanes", "rediss": "laness", "unix": "lanes+socket", "redis+socket": "lanes+socket"}
OPTION = "lanes_of"  #: transport option: which installation a connection belongs to


class Eagerly(Protocol):
    """Makes a call here and now, in this process."""

    def __call__(
        self,
        plan: Mapping[str, Any],
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        rule: Rule | None,
    ) -> Any:
        """Call `function(*args, **kwargs)`, through the lane of its plan where there is one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of an app by its transport and its tasks.

    Args:
        plan: (task name, args, kwargs) of a call that was published without a plan (`send_task`, a stock producer) →
            its header; None: a task that makes no calls.
        is_call: Whether a task of that name makes calls.
        calls: Names of the tasks that make calls.
        is_broadcast: Whether an exchange of that name is, by the app's queues, one that sends to everybody.
        refuse: Ends what a message has begun that no worker takes: (lanes, message, why; None: its deadline is over).
        lane_fields: Fields of a lane that is new: lane → set-points.
        eagerly: How a call is made in process (`task_always_eager`).
    """

    plan: Callable[[str, list[Any], dict[str, Any]], Mapping[str, Any] | None]
    is_call: Callable[[str], bool]
    calls: Callable[[], Iterable[str]]
    is_broadcast: Callable[[str], bool]
    refuse: Callable[[Lanes, bytes, str | None], None]
    lane_fields: Callable[[str], Mapping[str, float | str]]
    eagerly: Eagerly


class Installation:
    """An app with lanes."""

    def __init__(self, app: Celery, settings: Settings, redis_url: str = "") -> None:
        """
        Args:
            redis_url: The server to use whatever the app's configuration says; "": the configuration's.
        """
        self._app = weakref.ref(app)
        self.settings = settings
        self.asked: Asked | None = None
        self._given = redis_url
        self._url = ""
        self._own: tuple[int, Services] | None = None
        self._shared: Services | None = None
        self._lock = threading.RLock()
        self.key = f"{app.main or 'app'}-{id(self):x}"
        _BY_KEY[self.key] = self

    @property
    def app(self) -> Celery:
        """The app."""
        found = self._app()
        assert found is not None, "an installation lives as long as its app"
        return found

    def reconfigured(self) -> None:
        """The app was configured anew: what was decided before is decided again."""
        self._url, self._own, self._shared = "", None, None

    @property
    def url(self) -> str:
        """The Redis server, as redis-py takes it; "": none is configured.

        Raises:
            ConfigurationError: The app's broker is not one Redis server, or two places name different ones.
        """
        if not self._url:
            self._url = canonical_redis_url(self._given or self._configured() or self.settings.redis_url)
        return self._url

    @property
    def in_memory(self) -> bool:
        """Whether the app's messages never leave this process (`memory://`), as tests have it."""
        return not self._given and str(self.app.conf.broker_write_url or "").partition("://")[0] == "memory"

    def _configured(self) -> str:
        """The broker of the app's own configuration; "": it names none."""
        conf = self.app.conf
        if self.in_memory:
            return ""
        urls = [one for one in (conf.broker_read_url, conf.broker_write_url) if one]
        if any(not isinstance(one, str) for one in urls) or any(";" in one for one in urls):
            raise ConfigurationError("several brokers: lanes need one Redis or Valkey server")
        for one in urls:
            lanes_url(one)
        if len(urls) == 2 and not same_server(*urls):
            raise ConfigurationError("broker_read_url and broker_write_url differ: lanes need one Redis server")
        told = self.settings.redis_url
        if urls and told and not same_server(urls[0], told):
            raise ConfigurationError(
                f"the app {self.app.main or ''!r} has its broker at {shown(urls[0])}, MAISD_REDIS_URL names "
                f"{shown(told)}: commands would look at another server than its calls; unset one of the two"
            )
        return str(urls[0]) if urls else ""

    def services(self) -> Services:
        """The live objects over this app's server: the process's own where that is the same server.

        Raises:
            ConfigurationError: as `url`.
        """
        found = self._own
        if found is not None and found[0] == os.getpid():
            return found[1]
        current = wiring.services()
        if current is self._shared:
            return current
        if not current.redis_url and self.url:
            current = wiring.use(self.settings, self.url)
        if not self.url or same_server(current.redis_url, self.url):
            self._shared = current
            return current
        with self._lock:
            found = self._own
            if found is None or found[0] != os.getpid():
                found = self._own = (os.getpid(), Services(self.settings, self.url))
            return found[1]

    def lanes_url_of(self, url: str | None) -> str | None:
        """The URL with which a connection of the app is opened; one to somewhere else stays as it is."""
        conf = self.app.conf
        if self.in_memory:
            return url
        if url and url not in (conf.broker_read_url, conf.broker_write_url):
            return lanes_url(url) if canonical_redis_url(url).partition("://")[0] in TO_LANES else url
        if not self.url and conf.task_always_eager:
            return "memory://"  # nothing is sent; Celery wants to know how arguments are encoded
        if not self.url:
            raise ConfigurationError("no Redis: set MAISD_REDIS_URL or CELERY_BROKER_URL, or use `up`, `run` or `demo`")
        return lanes_url(credentials_of(self.url)[0])


_BY_KEY: weakref.WeakValueDictionary[str, Installation] = weakref.WeakValueDictionary()
_ATTRIBUTE = "_ratelimit_worker"


def keep(installation: Installation) -> None:
    """Remember what was made of an app: on the app, so that both end together, and their connections with them."""
    setattr(installation.app, _ATTRIBUTE, installation)


def installation_of(app: Celery) -> Installation | None:
    """What `install` made of an app; None: it has no lanes."""
    found: Installation | None = getattr(app, _ATTRIBUTE, None)
    return found


def services_of(app: Celery) -> Services:
    """The live objects of an app; of an app without lanes: the process's."""
    found = installation_of(app)
    return found.services() if found is not None else wiring.services()


def asked_of_app(app: Celery) -> Asked | None:
    """What an app answers; None: it has no lanes."""
    found = installation_of(app)
    return found.asked if found is not None else None


def in_memory(app: Celery) -> bool:
    """Whether an app with lanes keeps its messages in this process."""
    found = installation_of(app)
    return found is not None and found.in_memory


def asked_of(connection: Connection) -> Asked | None:
    """What the app behind a broker connection answers; None: it has no lanes, or is gone."""
    found = _behind(connection)
    return found.asked if found is not None else None


def server_of(connection: Connection) -> str:
    """The Redis server that a broker connection leads to, as it was told: with whoever's password."""
    found = _behind(connection)
    return found.url if found is not None else wiring.services().redis_url


def _behind(connection: Connection) -> Installation | None:
    return _BY_KEY.get((connection.transport_options or {}).get(OPTION, ""))


def connection_class(installation: Installation) -> type[Connection]:
    """The class of an app's broker connections: those to its broker have lanes, whenever and wherever it was named."""

    class LanesConnection(Connection):
        def __init__(self, hostname: Any = None, *args: Any, **kwargs: Any) -> None:
            if isinstance(hostname, str | None) and (hostname is None or "://" in hostname):
                hostname = installation.lanes_url_of(hostname)
                kwargs["transport"] = None  # the URL says it
            options = kwargs.get("transport_options") or {}
            kwargs["transport_options"] = {**options, OPTION: installation.key}
            super().__init__(hostname, *args, **kwargs)

    return LanesConnection


def give_lanes(app: Celery, installation: Installation) -> None:
    """Let every broker connection that an app opens from now on be one with lanes."""
    made = connection_class(installation)
    if "amqp" in vars(app):
        app.amqp.Connection = made
    else:
        app.amqp_cls = type("AMQP", (symbol_by_name(app.amqp_cls),), {"Connection": made})


def lanes_url(url: str) -> str:
    """A Redis URL of any spelling, with lanes.

    Raises:
        ConfigurationError: not a Redis URL.
    """
    scheme, separator, rest = canonical_redis_url(url).partition("://")
    if not separator or scheme not in TO_LANES:
        told = url.partition("://")[0] if "://" in url else url[:40]
        raise ConfigurationError(f"broker {told!r}: lanes need one Redis or Valkey server; use redis:// or rediss://")
    return f"{TO_LANES[scheme]}://{rest}"


def backend_url(url: str) -> str:
    """The result backend on a Redis server, as Celery spells it."""
    canonical = canonical_redis_url(url)
    scheme, _, rest = canonical.partition("://")
    return f"redis+socket://{rest}" if scheme == "unix" else canonical


def same_server(one: str, other: str) -> bool:
    """Whether two URLs name the same database of the same server, as far as their text says."""
    return _place(one) == _place(other)


def shown(url: str) -> str:
    """Where a URL leads, without its secrets."""
    host, port, database = _place(url)
    return f"{host}:{port}/{database}" if port else f"{host} ({database})"


def _place(url: str) -> tuple[str, int, str]:
    canonical = canonical_redis_url(url)
    parts = urlsplit(canonical)
    query = dict(item.partition("=")[::2] for item in parts.query.split("&") if item)
    if parts.scheme == "unix":
        return parts.path, 0, query.get("virtual_host", query.get("db", "0")).strip("/") or "0"
    host = (parts.hostname or "localhost").lower()
    database = query.get("db") or parts.path.strip("/") or "0"
    return "127.0.0.1" if host in {"localhost", "::1"} else host, parts.port or 6379, database
