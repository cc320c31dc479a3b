"""What does a program get to see of the figures? Those of the usual windows, as plain values."""

from __future__ import annotations

from typing import Any

from ratelimit_worker.reports.analytics import as_builtins
from ratelimit_worker.reports.stats import WINDOWS, Sources, stats
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.wiring import Services


def comprehensive_stats(live: Services, now_s: float) -> dict[str, Any]:
    """`reports.stats` of each window that figures reach back for, by its name.

    Args:
        now_s: End of the windows, seconds since the epoch.
    Raises:
        StoreUnavailable: the tracking database is away or locked.
        ConfigurationError: no Redis is named, or the database is newer than this version.
    """
    from_all, reach_s = sources(live), live.settings.figures_reach_s
    return {
        name: as_builtins(stats(from_all, window_s, now_s)) for name, window_s in WINDOWS.items() if window_s <= reach_s
    }


def sources(live: Services) -> Sources:
    """Where the figures of this deployment come from."""
    return Sources.of(Queries(engine_for(live.settings.database_url)), Live(live.redis), lambda: live.tracker)
