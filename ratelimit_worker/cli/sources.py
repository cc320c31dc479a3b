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


def settings_in_force() -> Settings:
    """The settings, with the Redis of the deployment that is meant.

    Raises:
        ConfigurationError: a setting is wrong, or the app that is named is none with lanes.
    """
    settings = read_settings()
    if settings.redis_url and app_name() is None:
        return settings  # nothing is to be looked for, and Celery need not be imported
    from ratelimit_worker.deployment import settings_of

    return settings_of(app_name())


@contextmanager
def open_sources(settings: Settings | None = None) -> Iterator[Opened]:
    """Everything is connected to when it is first asked; what needs Redis asks first whether it answers.

    Args:
        settings: `settings_in_force()` when None.
    Raises:
        ConfigurationError: a setting is wrong.
        StoreUnavailable: the folder of the database cannot be made.
    """
    settings = settings or settings_in_force()
    services = Services(settings)
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
