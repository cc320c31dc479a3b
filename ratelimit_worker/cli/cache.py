"""`ratelimit-worker cache`: how many answers are kept, and deleting them."""

from __future__ import annotations

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import asks, say
from ratelimit_worker.plural import many


@click.group()
def cache() -> None:
    """Kept answers, which calls that are the same get without a request."""


@cache.command()
@of_app
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def stats(form: str) -> None:
    """Print how many answers are kept, their size, and how often they were used."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.words import as_json
    from ratelimit_worker.stores import answers
    from ratelimit_worker.stores.reach import redis_errors

    with open_sources() as opened, redis_errors():
        opened.reach()
        settings, counters = opened.settings, opened.services.lanes.counters()
        size = answers.size(opened.services.redis)
    figures = {
        "entries": size.entries,
        "most_entries": settings.max_cache_entries,
        "bytes": size.bytes,
        "most_bytes": int(settings.cache_size_mb * 1024 * 1024),
        "hits": counters.get("cache_hits", 0),
        "joined": counters.get("joined", 0),
        "stale": counters.get("cache_stale", 0),
        "evicted": counters.get("cache_evicted", 0),
        "evicted_bytes": counters.get("cache_evicted_bytes", 0),
    }
    if form == "json":
        say(as_json(figures))
        return
    say(f"answers kept   {size.entries:,} of at most {settings.max_cache_entries:,}")
    say(f"size           {size.bytes / 1024 / 1024:,.1f} MB of at most {settings.cache_size_mb:,.1f} MB")
    say(
        f"calls answered {figures['hits']:,} from the cache, {figures['joined']:,} by one that was on its way, "
        f"{figures['stale']:,} past its time (since Redis counts; `stats` has windows)"
    )
    say(f"evicted        {figures['evicted']:,}, {figures['evicted_bytes'] / 1024 / 1024:,.1f} MB")


@cache.command()
@of_app
@click.option("--context", help="Only answers of this context.")
@click.option("--tag", help="Only answers with this tag.")
@click.option("--func", help="Only answers of this task, by its name or the last part of it.")
@asks("Delete these answers? Calls that need them again will be paid for again.")
def clear(context: str | None, tag: str | None, func: str | None) -> None:
    """Delete kept answers; without an option, all of them."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.stores import answers
    from ratelimit_worker.stores.reach import redis_errors

    with open_sources() as opened, redis_errors():
        opened.reach()
        gone = answers.forget(opened.services.redis, context, tag, func)
    say(f"{many(gone, 'answer')} forgotten")
