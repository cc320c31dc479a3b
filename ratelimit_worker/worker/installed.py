"""What `install(app)` adds to an app: one Redis server, the services over it, and answers to its transport's questions.

All of it is decided when first needed, from the configuration at that time: an app may be configured before `install`,
after it, and again.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from celery import Celery
from kombu import pools
from kombu.connection import Connection
from kombu.utils.imports import symbol_by_name
from msgspec import Struct

from ratelimit_worker import wiring
from ratelimit_worker.config import NO_REDIS, Settings, canonical_redis_url, namespace_prefix
from ratelimit_worker.contracts.call import ResultForm
from ratelimit_worker.contracts.lane import Fields
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.ports import Tracer
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.producers import amqp_with

#: Redis URL schemes and the schemes of the transport with lanes that replace them.
TO_LANES = {
    "redis": "lanes", "rediss": "laness", "unix": "lanes+socket", "redis+socket": "lanes+socket", "sentinel": "lanes"
}  # fmt: skip
OPTION = "lanes_of"  #: transport option: the installation that a connection belongs to
ELSEWHERE = "lanes_at"  #: transport option: the address of a connection to another server than the app's broker


class Eagerly(Protocol):
    """Makes a call at once, in this process."""

    def __call__(
        self,
        plan: Plan,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        rule: Rule | None,
    ) -> Any:
        """Call `function(*args, **kwargs)`, through the lane of its plan if it has one."""


class Asked(Struct, frozen=True):
    """What an app's transport and tasks ask of it.

    Args:
        plan: (task name, args, kwargs, message properties) of a call that was published without a plan (`send_task`, a
            stock producer) → its header; None: an ordinary task. Options of `apply_async` that Celery does not know,
            such as the lane, are among the properties.
        is_call: Whether a task of that name makes calls.
        calls: Names of the tasks that make calls.
        is_broadcast: Whether an exchange of that name is a broadcast, by the app's queues.
        refuse: Ends the call of a message that no worker can take: (lanes, message, why; None: its deadline passed).
        lane_fields: Fields of a new lane, by its name.
        fingerprint: The fingerprint of a call: (task name, plan, args, kwargs as decoded from JSON).
        result_form: (task name, id) → how a script can store its result; None: its caller stores it.
        tracer: The traces of the app's calls; None: they are not traced.
        eagerly: Makes a call in process (`task_always_eager`).
    """

    plan: Callable[[str, list[Any], dict[str, Any], Mapping[str, Any]], Plan | None]
    is_call: Callable[[str], bool]
    calls: Callable[[], Iterable[str]]
    is_broadcast: Callable[[str], bool]
    refuse: Callable[[Lanes, bytes, str | None], None]
    lane_fields: Callable[[str], Fields]
    fingerprint: Callable[[str, Plan, list[Any], dict[str, Any]], str]
    result_form: Callable[[str, str], ResultForm | None]
    tracer: Callable[[], Tracer | None]
    eagerly: Eagerly


class Installation:
    """An app with lanes."""

    def __init__(self, app: Celery, settings: Settings, redis_url: str = "") -> None:
        """
        Args:
            redis_url: The server to use in any case; "": the one in the app's configuration.
        """
        self._app = weakref.ref(app)
        self.settings = settings
        self.asked: Asked | None = None
        self._given = redis_url
        self._server: RedisServer | None = None
        self._in_memory: bool | None = None
        self._own: tuple[int, Services] | None = None
        self._shared: Services | None = None
        self._lock = threading.RLock()
        self.key = f"{app.main or 'app'}-{next(_NUMBERS)}"
        _BY_KEY[self.key] = self

    @property
    def app(self) -> Celery:
        """The app."""
        found = self._app()
        assert found is not None, "an installation lives as long as its app"
        return found

    def reconfigured(self) -> None:
        """The app was configured anew: decide everything again."""
        self._server, self._own, self._shared, self._in_memory = None, None, None, None

    @property
    def url(self) -> str:
        """The Redis server's URL for redis-py; "": none is configured.

        Raises:
            ConfigurationError: The app's broker is not one Redis server, or two places name different ones.
        """
        return canonical_redis_url(self.server.url)

    @property
    def server(self) -> RedisServer:
        """The Redis server, with the app's options for connections to it.

        Raises:
            ConfigurationError: as `url`; or the address is wrong, or two places name different namespaces.
        """
        found = self._server
        if not found:
            url = self._given or self._configured() or self.settings.redis_url
            found = self._server = self._told(url)
            if found:
                found.parameters()  # raises at once if something is wrong with it
        return found

    def _told(self, url: str) -> RedisServer:
        conf = self.app.conf
        told = dict(conf.broker_transport_options or {})
        options = {name: told[name] for name in ("credential_provider", "min_other_sentinels") if told.get(name)}
        return RedisServer(
            url,
            namespace=self._namespace(told.get("global_keyprefix") or ""),
            options={**over_tls(conf.broker_use_ssl), **options},
            master=str(told.get("master_name") or ""),
            sentinel_options=dict(told.get("sentinel_kwargs") or {}),
        )

    def _namespace(self, prefix: str) -> str:
        """The prefix of all keys: kombu's `global_keyprefix`, or MAISD_NAMESPACE for processes without an app."""
        told = self.settings.namespace
        if prefix and told and namespace_prefix(prefix) != told:
            raise ConfigurationError(
                f"global_keyprefix={prefix!r} and MAISD_NAMESPACE={told!r} differ: commands would look at other keys "
                "than the app's; unset one of the two"
            )
        return prefix or told

    @property
    def in_memory(self) -> bool:
        """Whether the app's messages stay in this process (`memory://`, in tests)."""
        found = self._in_memory
        if found is None:
            url = str(self.app.conf.broker_write_url or "")  # reading it may configure the app, and then this anew
            found = self._in_memory = not self._given and url.partition("://")[0] == "memory"
        return found

    def _configured(self) -> str:
        """The broker in the app's own configuration; "": it names none."""
        conf = self.app.conf
        if self.in_memory:
            return ""
        urls = [one for one in (conf.broker_read_url, conf.broker_write_url) if one]
        if any(not isinstance(one, str) for one in urls):
            raise ConfigurationError("several brokers: lanes need one Redis or Valkey server, or sentinel://")
        for one in urls:
            lanes_url(one)
        master = str((conf.broker_transport_options or {}).get("master_name") or "")
        if len(urls) == 2 and not same_server(*urls, master=master):
            raise ConfigurationError("broker_read_url and broker_write_url differ: lanes need one Redis server")
        told = self.settings.redis_url
        if urls and told and not same_server(urls[0], told, master=master):
            raise ConfigurationError(
                f"the app {self.app.main or ''!r} has its broker at {shown(urls[0])}, MAISD_REDIS_URL names "
                f"{shown(told)}: commands would look at another server than its calls; unset one of the two"
            )
        return str(urls[0]) if urls else ""

    def services(self) -> Services:
        """The live services over this app's server; the process's own ones if that is the same server.

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
            current = wiring.use(self.settings, self.server)
        if not self.url or current.server == self.server:
            self._shared = current
            return current
        with self._lock:
            found = self._own
            if found is None or found[0] != os.getpid():
                found = self._own = (os.getpid(), Services(self.settings, self.server))
            return found[1]

    def lanes_url_of(self, url: str | None) -> str | None:
        """The URL with which a connection of the app is opened; one to another server stays as it is."""
        conf = self.app.conf
        if self.in_memory:
            return url
        if url and url not in (conf.broker_read_url, conf.broker_write_url):
            return lanes_url(url) if canonical_redis_url(url).partition("://")[0] in TO_LANES else url
        if not self.url and conf.task_always_eager:
            return "memory://"  # nothing is sent, but Celery needs a connection to encode arguments
        if not self.url:
            raise ConfigurationError(NO_REDIS)
        return lanes_url(self.url)

    def leads_elsewhere(self, url: str | None) -> bool:
        """Whether a connection's URL names another server than the app's broker."""
        conf = self.app.conf
        if not url or url in (conf.broker_read_url, conf.broker_write_url):
            return False
        # other schemes are kombu's own forms of our broker
        return canonical_redis_url(url).partition("://")[0] in TO_LANES


_BY_KEY: weakref.WeakValueDictionary[str, Installation] = weakref.WeakValueDictionary()
_ATTRIBUTE = "_ratelimit_worker"
_NUMBERS = itertools.count()  #: names installations; `id()` would be used again once one is gone
_GONE: deque[str] = deque()  #: keys of installations whose app is gone, while kombu still keeps their connections


def keep(installation: Installation) -> None:
    """Attach an installation to its app, so that both end together, and their connections with them."""
    _close_connections()
    setattr(installation.app, _ATTRIBUTE, installation)
    weakref.finalize(installation.app, _GONE.append, installation.key).atexit = False


def installation_of(app: Celery) -> Installation | None:
    """The installation of an app; None: it has no lanes."""
    found: Installation | None = getattr(app, _ATTRIBUTE, None)
    return found


def services_of(app: Celery) -> Services:
    """The live services of an app; the process's own ones if the app has no lanes."""
    found = installation_of(app)
    return found.services() if found is not None else wiring.services()


def asked_of_app(app: Celery) -> Asked | None:
    """The app's answers for its transport; None: it has no lanes."""
    found = installation_of(app)
    return found.asked if found is not None else None


def in_memory(app: Celery) -> bool:
    """Whether an app with lanes keeps its messages in this process."""
    found = installation_of(app)
    return found is not None and found.in_memory


def asked_of(connection: Connection) -> Asked | None:
    """The answers of the app behind a broker connection; None: it has no lanes, or is gone."""
    found = _behind(connection)
    return found.asked if found is not None else None


def server_of(connection: Connection) -> RedisServer:
    """The Redis server that a broker connection leads to, with its options."""
    if elsewhere := (connection.transport_options or {}).get(ELSEWHERE):
        return RedisServer(elsewhere)
    found = _behind(connection)
    return found.server if found is not None else wiring.services().server


def _behind(connection: Connection) -> Installation | None:
    return _BY_KEY.get((connection.transport_options or {}).get(OPTION, ""))


def connection_class(installation: Installation) -> type[Connection]:
    """The class of an app's broker connections: those to its broker get lanes, wherever the broker was configured."""
    # By a key and not the app itself: kombu keeps connections for ever, and would keep the app with them.
    key = installation.key

    class LanesConnection(Connection):
        def __init__(self, hostname: Any = None, *args: Any, **kwargs: Any) -> None:
            options = {**(kwargs.get("transport_options") or {}), OPTION: key}
            installation = _BY_KEY.get(key)
            if installation is None:
                raise ConfigurationError("the app of this connection is gone; make a connection of an app that is kept")
            if isinstance(hostname, str | None) and (hostname is None or "://" in hostname):
                if installation.leads_elsewhere(hostname):
                    options[ELSEWHERE] = hostname
                hostname = installation.lanes_url_of(hostname)
                kwargs["transport"] = None  # it follows from the URL
            kwargs["transport_options"] = options
            super().__init__(hostname, *args, **kwargs)

        def ensure(
            self, obj: Any, fun: Any, errback: Any = None, max_retries: Any = None, *args: Any, **more: Any
        ) -> Any:
            # Celery's heartbeat passes None, which means for ever: the worker's only loop would wait for Redis in it,
            # notice no broken connection, and not end when told to. An event that is not sent now is sent later.
            exchange, installation = getattr(getattr(obj, "exchange", None), "name", None), _BY_KEY.get(key)
            if max_retries is None and installation and exchange == installation.app.conf.event_exchange:
                max_retries = 1
            return super().ensure(obj, fun, errback, max_retries, *args, **more)

    return LanesConnection


def _close_connections() -> None:
    """Remove connections of apps that are gone from kombu's pools; unlike stock ones, no other app uses them.

    This is done when the next app gets its lanes, and not in the finalizer, which may run in the middle of kombu's own
    loops over its pools.
    """
    gone = set[str]()
    while _GONE:
        gone.add(_GONE.popleft())
    if not gone:
        return
    for group in (pools.producers, pools.connections):
        for name, pool in tuple(group.items()):
            connection = getattr(pool, "connections", pool).connection
            if (connection.transport_options or {}).get(OPTION) in gone:
                group.pop(name, None)
                pool.force_close_all()


def give_lanes(app: Celery, installation: Installation) -> None:
    """Make every broker connection that an app opens from now on one with lanes."""
    made = connection_class(installation)
    if "amqp" in vars(app):
        app.amqp.__class__ = amqp_with(type(app.amqp), made)
    else:
        app.amqp_cls = amqp_with(symbol_by_name(app.amqp_cls), made)


def lanes_url(url: str) -> str:
    """The URL of the transport with lanes, for a Redis address in any form; credentials are looked up separately.

    Raises:
        ConfigurationError: not a Redis URL.
    """
    first = url.partition(";")[0]
    scheme, separator, _ = canonical_redis_url(first).partition("://")
    if not separator or scheme not in TO_LANES:
        told = first.partition("://")[0] if separator else "without a scheme"
        raise ConfigurationError(
            f"broker {told!r}: lanes need one Redis or Valkey server; use redis://, rediss:// or sentinel://"
        )
    server = RedisServer(url)
    if scheme == "unix":
        return f"{TO_LANES[scheme]}://{server.shown}"
    return f"{TO_LANES[scheme]}://{server.shown.partition(',')[0]}/{server.database}"


def same_server(one: str, other: str, *, master: str = "") -> bool:
    """Whether two URLs name the same database of the same server, by their text.

    Args:
        master: Name of the master for sentinels, if a URL does not have it.
    """
    return RedisServer(one, master=master).place == RedisServer(other, master=master).place


def shown(url: str) -> str:
    """Where a URL leads, without its secrets."""
    server = RedisServer(url)
    return (
        f"{server.shown} ({server.database})"
        if url.startswith(("unix", "redis+s"))
        else f"{server.shown}/{server.database}"
    )


def over_tls(told: Any) -> dict[str, Any]:
    """Celery's `broker_use_ssl`, or `redis_backend_use_ssl`, as options of a server."""
    if not told:
        return {}
    return {"ssl": True, **(told if isinstance(told, Mapping) else {})}
