"""When does what was recorded go? Every MAISD_CLEANUP_INTERVAL_HOURS one worker deletes what is past its retention.

The lease is the schedule: whoever gets it cleans, and then holds it for the interval. A worker that dies at it, or
finds the database away, leaves a short lease behind, and the next one tries again.
"""

from __future__ import annotations

import logging
from typing import Protocol

from ratelimit_worker.config import Settings

log = logging.getLogger(__name__)

NAME = "clean"
LEASE_S = 600.0  #: for one clean-up; where it takes longer another may begin, which deletes the same rows or none
LOOK_EVERY_S = 60.0  #: a worker need not ask for the lease more often
HOUR_S, DAY_S = 3_600.0, 86_400.0


class Lease(Protocol):
    """One of all workers holds it."""

    def take(self, name: str, owner: str, for_s: float) -> bool:
        """Hold it, unless somebody does."""
        ...

    def keep(self, name: str, owner: str, for_s: float) -> None:
        """Hold it on."""
        ...


class History(Protocol):
    """The tracking database, as the clean-up sees it."""

    def purge(self, older_than_s: float, now_s: float | None = None) -> int:
        """Delete rows that finished so long before `now_s` → how many."""
        ...


def clean_once(lease: Lease, history: History, settings: Settings, owner: str, now_s: float) -> int | None:
    """Delete what is older than MAISD_RETENTION_DAYS, if nobody has within the interval → rows; None: not our turn.

    Args:
        now_s: Seconds since the epoch.
    Raises:
        StoreUnavailable: Redis or the database is away; it is tried again when the lease has ended.
    """
    if not lease.take(NAME, owner, LEASE_S):
        return None
    deleted = history.purge(settings.retention_days * DAY_S, now_s)
    lease.keep(NAME, owner, settings.cleanup_interval_hours * HOUR_S)
    log.info("history.cleaned", extra={"deleted": deleted, "older_than_days": settings.retention_days})
    return deleted
