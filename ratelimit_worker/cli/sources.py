"""The Redis and tracking database of a deployment, opened for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from msgspec import Struct

from ratelimit_worker.cli.named import app_name
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.contracts.budget import NOTHING_SPENT, Budget, Spent
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.reports.stats import Sources, modes_of
from ratelimit_worker.stores.last_minute import last_minute
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.reach import reach
from ratelimit_worker.wiring import Services

if TYPE_CHECKING:
    from ratelimit_worker.stores.queries import Queries


class Opened(Struct, frozen=True):
    """Settings, live services, and the sources of figures."""

    settings: Settings
    services: Services
    sources: Sources

    def reach(self) -> None:
        """Return when Redis answers.

        Raises:
            ConfigurationError: none is named.
            StoreUnavailable: it is away or frozen.
        """
        self.sources.server  # noqa: B018 - the property checks that Redis answers

    def spent_before(self, name: str, budget: Budget) -> Spent:
        """What was spent of a budget before it is set; zero, with a note, if the tracking database is away."""
        try:
            return self.services.spent_before(name, budget)
        except StoreUnavailable as error:
            say(f"Note: {name} counts from now on, for what was spent before is unknown: {error}", err=True)
            return NOTHING_SPENT


@contextmanager
def open_sources(*, named: bool = True) -> Iterator[Opened]:
    """Open Redis and database of a deployment. Each is opened when it is first needed; Redis must then answer.

    Args:
        named: Whether to look for the deployment (see docs/command-line.md); False: only use the settings.
    Raises:
        ConfigurationError: a setting is wrong, or the named app cannot be used: not found, or without lanes.
    """
    settings = read_settings()
    if not named or (settings.redis_url and app_name() is None):
        services = Services(settings)  # there is nothing to look for, and Celery need not be imported
    else:
        from ratelimit_worker.deployment import deployment_of

        found = deployment_of(app_name())
        settings, services = found.settings, found.services
    redis = services.redis if services.redis_url else None
    with ExitStack() as opened:

        @cache
        def queries() -> Queries:
            from ratelimit_worker.stores.database import engine_for
            from ratelimit_worker.stores.queries import Queries

            engine = engine_for(settings.database_url)
            opened.callback(engine.dispose)
            return Queries(engine)

        if redis is not None:
            opened.callback(redis.close)
        sources = Sources(
            open_queries=queries,
            live=None if redis is None else Live(redis),
            modes=modes_of(lambda: services.tracker),
            reach=lambda: None if redis is None else reach(redis),
            short_cut=partial(last_minute, settings.database_url),
        )
        yield Opened(settings, services, sources)
