"""`ratelimit-worker cleanup`: delete old rows of the tracking database."""

from __future__ import annotations

import click

from ratelimit_worker.cli.duration import DURATION
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import asks, say
from ratelimit_worker.plural import many


@click.command()
@of_app
@click.option("--older-than", type=DURATION, metavar="TIME", help="Such as 12h, 7d. Default: MAISD_RETENTION_DAYS.")
@asks("Delete these rows for good?")
def cleanup(older_than: float | None) -> None:
    """Delete recorded attempts and mode changes that are older than --older-than.

    Workers do the same by themselves every MAISD_CLEANUP_INTERVAL_HOURS. Waiting and running calls are not affected.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.words import seconds

    with open_sources() as opened:
        older_than_s = opened.settings.retention_days * 86_400.0 if older_than is None else older_than
        deleted = opened.services.tracker.purge(older_than_s)
    say(f"{many(deleted, 'row')} older than {seconds(older_than_s)} deleted")
