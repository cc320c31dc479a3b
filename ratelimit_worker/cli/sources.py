"""Where do operators' commands look? The Redis and tracking database of a deployment, opened for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ratelimit_worker.cli.named import app_name
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.reports.stats import Sources
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.reach import reach
from ratelimit_worker.wiring import Services


@dataclass(frozen=True, slots=True)
class Opened:
    """What is configured, live objects of it, and where figures come from."""

    settings: Settings
    services: Services
    sources: Sources

    def reach(self) -> None:
        """Return when Redis answers.

        Raises:
            ConfigurationError: none is named.
            StoreUnavailable: it is away or frozen.
        """
        self.sources.server  # noqa: B018 - looks


@contextmanager
def open_sources(*, named: bool = True) -> Iterator[Opened]:
    """Everything is connected to when it is first asked; what needs Redis asks first whether it answers.

    Args:
        named: Whether the deployment that is meant is looked for; False: what the settings say, and no more.
    Raises:
        ConfigurationError: a setting is wrong, or the app that is named is none with lanes.
        StoreUnavailable: the folder of the database cannot be made.
    """
    settings = read_settings()
    if not named or (settings.redis_url and app_name() is None):
        services = Services(settings)  # nothing is to be looked for, and Celery need not be imported
    else:
        from ratelimit_worker.deployment import deployment_of

        found = deployment_of(app_name())
        settings, services = found.settings, found.services
    redis = services.redis if services.redis_url else None
    engine = engine_for(settings.database_url)
    sources = Sources.of(
        Queries(engine),
        None if redis is None else Live(redis),
        lambda: services.tracker,
        lambda: None if redis is None else reach(redis),
    )
    try:
        yield Opened(settings, services, sources)
    finally:
        engine.dispose()
        if redis is not None:
            redis.close()
