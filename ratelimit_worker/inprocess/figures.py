"""Figures of the usual windows as plain values, for programs."""

from __future__ import annotations

from typing import Any

from ratelimit_worker.reports.analytics import as_builtins
from ratelimit_worker.reports.stats import WINDOWS, Sources, stats
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.reach import reach_once
from ratelimit_worker.wiring import Services


def comprehensive_stats(live: Services, now_s: float) -> dict[str, Any]:
    """`reports.stats` of each of the usual windows, by its name.

    If no Redis is configured, or it is away, `missing` says what is unknown.

    Args:
        now_s: End of the windows, seconds since the epoch.
    Raises:
        StoreUnavailable: the tracking database is away or locked.
        ConfigurationError: the database is newer than this version.
    """
    from_all = sources(live)
    return {name: as_builtins(stats(from_all, window_s, now_s)) for name, window_s in WINDOWS.items()}


def sources(live: Services) -> Sources:
    """The sources of this deployment's figures."""
    from_database = Queries(engine_for(live.settings.database_url))
    if not live.redis_url:
        return Sources.of(from_database, None, lambda: live.tracker)
    redis = live.redis
    return Sources.of(from_database, Live(redis), lambda: live.tracker, reach_once(redis))
