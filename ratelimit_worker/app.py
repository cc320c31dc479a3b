"""The product's Celery app; `install(app)` gives lanes to an app of yours; `@llm_task` makes tasks that use lanes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ParamSpec, TypeVar

from celery import Celery, _state, signals
from celery.local import Proxy

from ratelimit_worker import wiring
from ratelimit_worker.calls import Cost
from ratelimit_worker.config import Settings, environment, read_settings
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.deployment import APP, REDIS_URL, deployment_of, installation_named, remember
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.policy import choices
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.policy.rules import Rule
from ratelimit_worker.worker import control, log_lines, own_options
from ratelimit_worker.worker.backend import BACKENDS, backend_url
from ratelimit_worker.worker.first_look import one_line_to_celery
from ratelimit_worker.worker.installed import (
    Eagerly,
    Installation,
    give_lanes,
    installation_of,
    keep,
)
from ratelimit_worker.worker.mapped import spread
from ratelimit_worker.worker.result import give_results
from ratelimit_worker.worker.settings import BACKEND_OPTIONS, BROKER_OPTIONS, DEFAULTS, OWN_APP, REQUIRED
from ratelimit_worker.worker.task import answers_of, base_for, sends

log = logging.getLogger(__name__)

#: Given by name, as Celery allows: a worker imports it and its duties at its start; processes that only send never do.
LANES_STEP = "ratelimit_worker.worker.presence:LanesStep"

P = ParamSpec("P")
R = TypeVar("R")


def install(app: Celery, settings: Settings | None = None, *, watch: bool = False) -> Celery:
    """Give a Celery app lanes: the transport, the settings that lanes need, presence and duties of its workers.

    Tasks made with `@llm_task` (or `base=CallTask`) become calls; every other task of the app works as before.

    Args:
        settings: From the environment when None.
        watch: Let lanes learn from every client that a task uses (`ratelimit_worker.watch_all`).
    Raises:
        ConfigurationError: the app's broker is not one Redis, or a setting is wrong.
    """
    if watch:
        from ratelimit_worker.providers.watch import watch_all

        watch_all()
    with one_line_to_celery():
        return _install(app, settings or read_settings())


def _install(app: Celery, settings: Settings, redis_url: str = "") -> Celery:
    before = installation_of(app)
    if before is not None:  # called again, perhaps with other settings
        before.settings = settings
        before.reconfigured()
        wiring.use(settings, redis_url or None)
        _put_in_force(before)
        return app
    installation = Installation(app, settings, redis_url)
    installation.asked = answers_of(app, _eagerly(installation))
    keep(installation)
    give_lanes(app, installation)
    give_results(app)
    control.give_control(app)
    app.send_task = sends(app)
    wiring.use(settings, redis_url or None)

    def configured(**kwargs: Any) -> None:
        installation.reconfigured()
        _put_in_force(installation)

    if app.finalized:
        spread(app)
    else:
        app.on_after_finalize.connect(lambda **_: spread(installation.app), weak=False)
    # Celery configures an app when a setting is first read, and again when it is told to.
    app.on_after_configure.connect(configured, weak=False)
    if app.configured or app._config_source is None:  # otherwise its configuration is not read yet
        _put_in_force(installation)
    control.register()
    log_lines.register()

    app.steps["consumer"].add(LANES_STEP)
    return app


def _put_in_force(installation: Installation) -> None:
    """Adapt an app's present configuration to lanes.

    Raises:
        ConfigurationError: as `install`.
    """
    conf = installation.app.conf
    for name, value in REQUIRED.items():
        if conf[name] != value and conf.value_set_for(name):
            log.warning("setting.overruled %s=%r, lanes need %r", name, conf[name], value)
        conf[name] = value
    for name, value in DEFAULTS.items():
        if not conf.value_set_for(name):
            conf[name] = value
    accepted = list(conf.accept_content or ())
    if {"auth", "application/data"}.intersection(accepted):
        raise ConfigurationError(
            "accept_content names signed messages (auth), and calls are sent as plain JSON: a worker that takes both "
            "would not need a signature; give calls an app of their own"
        )
    if not {"json", "application/json"}.intersection(accepted):
        conf.accept_content = [*accepted, "json"]
    conf.broker_transport_options = {**BROKER_OPTIONS, **(conf.broker_transport_options or {})}
    # Celery's own setting, but its loader has already read it
    loader = installation.app.loader
    conf.override_backends = loader.override_backends = {**BACKENDS, **(conf.get("override_backends") or {})}
    conf.result_backend_transport_options = {**BACKEND_OPTIONS, **(conf.result_backend_transport_options or {})}
    server = installation.server
    if not server:  # it is chosen at the first use: `up`, `run` and `demo` start a server of their own
        return
    if server.namespace:
        conf.broker_transport_options["global_keyprefix"] = server.namespace
        conf.result_backend_transport_options.setdefault("global_keyprefix", server.namespace)
    if server.by_sentinels:  # other programs that look at the broker (Flower) read it there
        conf.broker_transport_options["master_name"] = server.master_name
    if not conf.result_backend:
        conf.result_backend = backend_url(server)
    if wiring.services().server != server:
        wiring.use(installation.settings, server)


def _eagerly(installation: Installation) -> Eagerly:
    def make(
        plan: Plan,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        rule: Rule | None,
    ) -> Any:
        live = installation.services()
        from ratelimit_worker.inprocess.limiter import AdvancedRateLimiter

        limiter: AdvancedRateLimiter = live.once("eager", lambda: AdvancedRateLimiter(live))
        if not live.redis_url or not limiter.is_enabled():
            return function(*args, **kwargs)
        return limiter.make_rate_limited_call(
            function,
            name,
            args,
            kwargs,
            plan.context,
            context_tags=plan.tags,
            cache_enabled=False,  # a test wants its own function run
            lane=plan.lane,
            tenant=plan.tenant,
            priority=plan.priority,
            deadline_s=max(0.001, plan.deadline_s - time.time()),
            cost=plan.cost,
            timeout_s=plan.timeout_s,
            classify=rule,
        )

    return make


@signals.celeryd_init.connect(weak=False)
def _worker_starts(instance: Any = None, **kwargs: Any) -> None:
    """Correct settings that were changed after `install`, before the worker reads them."""
    installation = installation_of(instance.app)
    if installation is not None:
        installation.reconfigured()
        _put_in_force(installation)
        if installation.url:
            remember(installation.settings, installation.url)


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
    cache_incomplete: bool = False,
    stale_ttl: float = 0.0,
    stale_while_revalidate: float = 0.0,
    shed_below: str | None = None,
    over_budget: str = "wait",
    timeout_s: float | None = None,
    classify: Rule | None = None,
    version: str | int = "",
    ignore: Sequence[str] = (),
    namespace: str | None = None,
    share_across_tenants: bool = False,
    on_leader_failure: str = "share",
    app: Celery | None = None,
    **options: Any,
) -> Any:
    """Make a Celery task whose calls go through a lane.

    Without `app` it works like Celery's `shared_task`: every app has the task. `options` are passed to Celery unchanged
    (name, bind, max_retries, autoretry_for, …).

    Args:
        cost: Function of a call's (*args, **kwargs). It returns what the call takes from the budget (`Cost`), or an
            estimate of its tokens (`policy.estimate.Size`), which is corrected by what answers to this task have used.
            None: the estimate is the bytes of all texts in the arguments / 4.
        cache: Whether calls with the same arguments share one request and its answer.
        cache_ttl: Seconds for which an answer is kept; None: `MAISD_CACHE_TTL_SECONDS`; 0: it is not kept.
        cache_incomplete: Whether an answer that was truncated (`length`, `max_tokens`), refused or filtered is kept.
            Its caller gets it in any case, and so do calls that wait for the same answer.
        stale_ttl: Seconds for which an answer is kept beyond `cache_ttl`: while the lane is in EMERGENCY or HALT, a
            call that finds no fresh answer gets this one at once.
        stale_while_revalidate: Seconds beyond `cache_ttl` in which, in any mode, a call gets the answer that is past
            its time at once, while one request renews it.
        shed_below: "high", "normal" or "low": while the lane is in EMERGENCY or HALT, calls of a class below this one
            fail at once with `LaneShedding`; None: they wait.
        over_budget: What a call does while a budget of money is spent: "wait", or "fail" with `BudgetSpent`.
        timeout_s: Seconds that one attempt may take. Built-in tasks obey it; give your own client
            `ratelimit_worker.timeout_s()`. None: `timeout_s` of the lane, `MAISD_TIMEOUT_SECONDS`, or a learned value.
        classify: Gets the exception that the task raised, and returns its `Category`, a whole `Failure`, or None: the
            usual rules decide.
        version: Version of the function or its prompt: kept answers of other versions are not used.
        ignore: Names of arguments that do not change the answer (`trace_id`): calls that differ only in these are the
            same.
        namespace: Only calls with the same namespace share answers; None: only calls of the same tenant.
        share_across_tenants: Whether calls of all tenants share answers, if there is no `namespace`.
        on_leader_failure: What happens to calls that wait for the answer of a call that fails: "share": they get its
            error; "retry": the first of them is sent, and the others wait for that one.
    Raises:
        BadInput: a name, class or number is invalid.
        ConfigurationError: `rate_limit` is among the options: calls are paced by their lane.
    """
    said: dict[str, Any] = {
        "lane": lane,
        "context": context,
        "tenant": tenant,
        "deadline_s": deadline_s,
        "stale_ttl": stale_ttl,
        "stale_while_revalidate": stale_while_revalidate,
        "shed_below": shed_below,
        "over_budget": over_budget,
        "timeout_s": timeout_s,
    }
    enqueue.check(enqueue.Said(tags=tags, priority=priority, namespace=namespace, **said), cache_ttl)
    shares = _shares(version, namespace, ignore, share_across_tenants, on_leader_failure)
    shares |= {"cache_ttl": cache_ttl, "cache_incomplete": cache_incomplete}

    def decorate(run: Callable[P, R]) -> Any:
        own: dict[str, Any] = {
            "base": None,
            "tags": tuple(tags),
            "provider": provider,
            "call_priority": priority,
            "cost": staticmethod(cost) if cost is not None else None,
            "cache": cache,
            **shares,
            "classify": staticmethod(classify) if classify is not None else None,
        }
        own_options.check_ignored(run, ignore)
        mine = said | own | options
        _check_paced_by_lane(mine.get("rate_limit"))
        return app.task(**{**mine, "base": base_for(app, mine["base"])})(run) if app is not None else _shared(run, mine)

    return decorate(function) if function is not None else decorate


def _shares(
    version: str | int, namespace: str | None, ignore: Sequence[str], across_tenants: bool, on_failure: str
) -> dict[str, Any]:
    """The task options that say which calls share answers."""
    return {
        "cache_version": str(version),
        "cache_namespace": namespace,
        "cache_ignores": tuple(choices.names("ignore", ignore)),
        "share_across_tenants": across_tenants,
        "on_leader_failure": enqueue.leader_failure(on_failure),
    }


def _check_paced_by_lane(rate_limit: Any) -> None:
    if rate_limit:
        raise ConfigurationError(f"rate_limit={rate_limit!r}: a call is paced by its lane; give the lane an `rpm`")


def _shared(run: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Like Celery's `shared_task`, but with the task class that each app has for its calls.

    `shared_task` itself takes one class for all apps.
    """
    if type(run) is Proxy:
        raise TypeError("@llm_task was applied more than once to the same function")

    def bind(app: Celery) -> Any:
        return app._task_from_fun(run, **{**options, "base": base_for(app, options["base"])})

    _state.connect_on_app_finalize(bind)
    for app in _state._get_active_apps():
        if app.finalized:
            with app._finalize_mutex:
                bind(app)

    def of_current_app() -> Any:
        app = _state.get_current_app()
        return app.tasks[options.get("name") or app.gen_task_name(run.__name__, run.__module__)]

    return Proxy(of_current_app)


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
    made.add_defaults(OWN_APP)
    return _install(made, settings, redis_url or settings.redis_url)


def ensure_app() -> None:
    """Make our app the default one, if the process has no Celery app of its own."""
    if _state.default_app is None and _state._tls.current_app is None:
        _state.set_default_app(product_app())


@cache
def product_app() -> Celery:
    """Our own app, one for each process; `celery -A ratelimit_worker.app` finds it as `app`."""
    with one_line_to_celery():
        return make_app()


def find_app(name: str | None) -> Celery:
    """The deployment's app, found like `celery -A` does; None: the one that CELERY_APP names, else ours.

    Raises:
        ConfigurationError: there is none of that name, it has no lanes, or a setting is wrong.
    """
    named, said = (name, f"-A {name}") if name else (environment().get(APP, ""), APP)
    if named:
        return installation_named(named, said).app
    settings = deployment_of().settings
    return product_app() if settings.sources.get(REDIS_URL) in ("environment", "default") else make_app(settings)


def __getattr__(name: str) -> Any:
    if name == "app":
        return product_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
