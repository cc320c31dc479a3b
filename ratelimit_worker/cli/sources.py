"""Where do operators' commands look? The configured Redis and tracking database, opened for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.reports.stats import Sources
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.wiring import Services


@dataclass(frozen=True, slots=True)
class Opened:
    """What is configured, live objects of it, and where figures come from."""

    settings: Settings
    services: Services
    sources: Sources


@contextmanager
def open_sources() -> Iterator[Opened]:
    """Everything is connected to when it is first asked.

    Raises:
        ConfigurationError: a setting is wrong, or no Redis is configured.
        StoreUnavailable: the folder of the database cannot be made.
    """
    settings = read_settings()
    services = Services(settings)
    redis, engine = services.redis, engine_for(settings.database_url)
    sources = Sources.of(Queries(engine), Live(redis), lambda: services.tracker)
    try:
        yield Opened(settings, services, sources)
    finally:
        engine.dispose()
        redis.close()
