"""The Celery app; `install(app)` gives an app that you have the same; `@llm_task` makes a task that makes calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ParamSpec, TypeVar

from celery import Celery, _state, shared_task

from ratelimit_worker import wiring
from ratelimit_worker.calls import Cost
from ratelimit_worker.config import LANE_SCHEMES, Settings, canonical_redis_url, read_settings
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.providers.watch import watch_all
from ratelimit_worker.worker import control
from ratelimit_worker.worker.backend import BACKENDS
from ratelimit_worker.worker.settings import BACKEND_OPTIONS, BROKER_OPTIONS, DEFAULTS, REQUIRED
from ratelimit_worker.worker.task import CallTask, connect_transport

P = ParamSpec("P")
R = TypeVar("R")

#: Redis URL schemes and what they are called where calls wait in lanes.
_TO_LANES = {"redis": "lanes", "rediss": "laness", "unix": "lanes+socket", "redis+socket": "lanes+socket"}


def install(app: Celery, settings: Settings | None = None, *, watch: bool = False) -> Celery:
    """Give a Celery app lanes: transport, settings that the promises rest on, presence and duties of its workers.

    Tasks made with `@llm_task` (or `base=CallTask`) become calls; every other task of the app goes on as it did.

    Args:
        settings: From the environment when None.
        watch: Let lanes learn from every client that a task uses (`ratelimit_worker.watch_all`).
    Raises:
        ConfigurationError: the app's broker is not one Redis, or a setting is wrong.
    """
    settings = settings or read_settings()
    if watch:
        watch_all()
    url = _broker_of(app) or settings.redis_url
    if url:
        _connect(app, url)
        wiring.use(settings, url)
    else:  # decided when it is first needed: `up`, `run` and `demo` bring a server of their own
        wiring.use(settings)
    conf = app.conf
    conf.update(REQUIRED)
    for name, value in DEFAULTS.items():
        if name not in conf.changes and not _said(app, name):
            conf[name] = value
    if (conf.broker_transport_options or {}).get("global_keyprefix"):
        raise ConfigurationError(
            "global_keyprefix: lanes keep their own key names; use a database number of its own instead"
        )
    conf.broker_transport_options = {**BROKER_OPTIONS, **(conf.broker_transport_options or {})}
    # A setting of Celery's, but its loader has read it by now
    conf.override_backends = app.loader.override_backends = {**BACKENDS, **(conf.get("override_backends") or {})}
    conf.result_backend_transport_options = {**BACKEND_OPTIONS, **(conf.result_backend_transport_options or {})}
    connect_transport(app)
    control.register()

    from ratelimit_worker.worker.presence import LanesStep

    app.steps["consumer"].add(LanesStep)
    return app


def celery_urls(redis_url: str) -> tuple[str, str]:
    """(broker URL with lanes, result backend URL) for a Redis URL of any spelling.

    Raises:
        ConfigurationError: not a Redis URL.
    """
    canonical = canonical_redis_url(redis_url)
    scheme, separator, rest = canonical.partition("://")
    if not separator or scheme not in _TO_LANES:
        shown = redis_url.partition("://")[0]
        raise ConfigurationError(f"broker {shown!r}: lanes need one Redis or Valkey server; use redis:// or rediss://")
    backend = f"redis+socket://{rest}" if scheme == "unix" else canonical
    return f"{_TO_LANES[scheme]}://{rest}", backend


def llm_task(
    function: Callable[P, R] | None = None,
    *,
    lane: str | None = None,
    context: str = "",
    tags: Sequence[str] = (),
    provider: str | None = None,
    tenant: str = "",
    priority: str | int = "normal",
    deadline_s: float | None = None,
    cost: Callable[..., Cost | Size] | None = None,
    cache: bool = True,
    cache_ttl: float | None = None,
    stale_ttl: float = 0.0,
    shed_below: str | None = None,
    timeout_s: float | None = None,
    classify: Rule | None = None,
    app: Celery | None = None,
    **options: Any,
) -> Any:
    """Make a Celery task whose calls go through a lane.

    Without `app` it works like Celery's `shared_task`: the task is there in every app. `options` go to Celery as they
    are (name, bind, max_retries, autoretry_for, …).

    Args:
        cost: (*args, **kwargs) of a call → what it takes from the budget (`Cost`), or what its arguments say of its
            tokens (`policy.estimate.Size`), which the task's answers correct; None: the bytes of all its texts / 4.
        cache: Whether calls with the same arguments share one request and its answer.
        cache_ttl: Seconds for which an answer is kept; None: `MAISD_CACHE_TTL_SECONDS`; 0: not at all.
        stale_ttl: Seconds for which it is kept beyond that: while the lane is in EMERGENCY or HALT, a call that finds
            no fresh answer gets this one at once.
        shed_below: "high", "normal" or "low": while the lane is in EMERGENCY or HALT, calls of a class below this one
            fail at once with `LaneShedding`; None: they wait.
        timeout_s: Seconds that one attempt may take. Built-in providers obey; a client of your own is told by
            `ratelimit_worker.timeout_s()`. None: `timeout_s` of the lane, `MAISD_TIMEOUT_SECONDS`, or what is learned.
        classify: Told what the task raised: its `Category`, a whole `Failure`, or None, and our own rules hold.
    """

    def decorate(run: Callable[P, R]) -> Any:
        base: dict[str, Any] = {
            "base": CallTask,
            "lane": lane,
            "context": context,
            "tags": tuple(tags),
            "provider": provider,
            "tenant": tenant,
            "call_priority": priority,
            "deadline_s": deadline_s,
            "cost": staticmethod(cost) if cost is not None else None,
            "cache": cache,
            "cache_ttl": cache_ttl,
            "stale_ttl": stale_ttl,
            "shed_below": shed_below,
            "timeout_s": timeout_s,
            "classify": staticmethod(classify) if classify is not None else None,
        }
        make = app.task if app is not None else shared_task
        return make(**{**base, **options})(run)

    return decorate(function) if function is not None else decorate


def make_app(settings: Settings | None = None, redis_url: str | None = None, config: str | None = None) -> Celery:
    """An app with the built-in tasks.

    Args:
        redis_url: The server to use; from the settings when None.
        config: Module with the deployment's Celery settings, such as "celeryconfig".
    """
    settings = settings or read_settings()
    made = Celery("ratelimit_worker", include=["ratelimit_worker.builtin"])
    if config is not None:
        made.config_from_object(config)
    if redis_url or settings.redis_url:
        _connect(made, redis_url or settings.redis_url)
    return install(made, settings)


def ensure_app() -> None:
    """Make the product's app the default one where the process has no Celery app of its own."""
    if _state.default_app is None and _state._tls.current_app is None:
        _state.set_default_app(product_app())


@cache
def product_app() -> Celery:
    """The product's own app, one a process; `celery -A ratelimit_worker.app` finds it as `app`."""
    return make_app()


def __getattr__(name: str) -> Any:
    if name == "app":
        return product_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _connect(app: Celery, url: str) -> None:
    broker, backend = celery_urls(url)
    # Celery takes CELERY_BROKER_URL from the environment before its own configuration, but not for these two.
    # `broker_url` keeps the stock spelling, which is what Flower's broker page understands.
    app.conf.broker_read_url = app.conf.broker_write_url = broker
    if not app.conf.result_backend:
        app.conf.result_backend = backend
    if backend.startswith("redis+socket://"):
        app.conf.redis_socket_keepalive = False  # redis-py refuses it for unix sockets, and Celery passes it on


def _broker_of(app: Celery) -> str:
    url = app.conf.broker_url
    if isinstance(url, (list, tuple)):
        raise ConfigurationError("several brokers: lanes need one Redis or Valkey server")
    if not url:
        return ""
    scheme = str(url).partition("://")[0]
    if scheme in _TO_LANES or scheme in LANE_SCHEMES:
        return str(url)
    raise ConfigurationError(f"broker {scheme!r}: lanes need one Redis or Valkey server; use redis:// or rediss://")


def _said(app: Celery, name: str) -> bool:
    """Whether the app's own configuration names a setting."""
    return any(name in source for source in app.conf.maps[:-1]) if hasattr(app.conf, "maps") else False
