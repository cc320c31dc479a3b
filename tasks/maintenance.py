"""Maintenance tasks, for Celery beat or a person. They are ordinary Celery tasks, without a provider or a lane."""

from __future__ import annotations

from celery import shared_task

from ratelimit_worker.wiring import services

DAY_S = 86_400.0


@shared_task(name="tasks.maintenance.cleanup")
def cleanup(older_than_days: float | None = None) -> int:
    """Delete outcomes older than `older_than_days` (default: MAISD_RETENTION_DAYS); returns the number of rows."""
    live = services()
    days = live.settings.retention_days if older_than_days is None else older_than_days
    return live.tracker.purge(days * DAY_S)
