"""Where do operators' commands look? The configured Redis and tracking database, opened for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.reports.stats import Sources
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.wiring import Services

#: Mode changes that a report holds; the newest of them.
_MOST_CHANGES = 1_000


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

    def modes(since_s: float, until_s: float) -> list[ModeChange]:
        newest = services.tracker.mode_changes(since=since_s, limit=_MOST_CHANGES)
        return [change for change in reversed(newest) if change.at < until_s]

    try:
        yield Opened(settings, services, Sources(queries=Queries(engine), live=Live(redis), modes=modes))
    finally:
        engine.dispose()
        redis.close()
