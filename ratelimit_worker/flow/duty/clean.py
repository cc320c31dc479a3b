"""Old records are deleted: every MAISD_CLEANUP_INTERVAL_HOURS one worker deletes what is past its retention.

The lease is the schedule: the worker that gets it cleans, and then holds it for the interval. If it dies meanwhile, or
the database is away, its lease is a short one, and the next worker tries again after that.
"""

from __future__ import annotations

import logging
from typing import Protocol

from ratelimit_worker.config import Settings

log = logging.getLogger(__name__)

NAME = "clean"
LEASE_S = 600.0  #: for one clean-up, seconds; if it takes longer another may begin, which does no harm
LOOK_EVERY_S = 60.0  #: how often a worker asks for the lease
HOUR_S, DAY_S = 3_600.0, 86_400.0


class Lease(Protocol):
    """A lease that at most one worker holds."""

    def take(self, name: str, owner: str, for_s: float) -> bool:
        """Take the lease for some seconds → False: it is held already."""
        ...

    def keep(self, name: str, owner: str, for_s: float) -> None:
        """Hold the lease for some seconds from now, whoever held it."""
        ...


class History(Protocol):
    """The part of the tracking database that is needed here."""

    def purge(self, older_than_s: float, now_s: float | None = None) -> int:
        """Delete rows that finished more than `older_than_s` before `now_s` → how many."""
        ...


def clean_once(lease: Lease, history: History, settings: Settings, owner: str, now_s: float) -> int | None:
    """Delete what is older than MAISD_RETENTION_DAYS, unless that was done in this interval → rows; None: it was.

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
