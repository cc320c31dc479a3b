"""`ratelimit-worker explain`: where is this call, and what does it wait for?"""

from __future__ import annotations

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say


@click.command()
@of_app
@click.argument("call_id")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def explain(ctx: click.Context, call_id: str, form: str) -> None:
    """Print where the call CALL_ID (a Celery task id) is, what it waits for, and each attempt.

    Exit code 1: no such call is known.
    """
    import time

    import msgspec

    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import StoreUnavailable
    from ratelimit_worker.flow.lane.decide import rules_of
    from ratelimit_worker.reports.doctor import LATENCY_OVER_S, mean_latency_s
    from ratelimit_worker.reports.explain import Where, explanation_text
    from ratelimit_worker.reports.explain import explain as look
    from ratelimit_worker.reports.words import as_json

    with open_sources() as opened:
        try:
            attempts = opened.services.tracker.attempts_of(call_id)
            latency_s = mean_latency_s(opened.sources.queries.cells(time.time() - LATENCY_OVER_S, time.time(), 60.0))
        except StoreUnavailable as error:
            attempts, latency_s = [], {}
            say(f"Note: its attempts are unknown: {error}", err=True)
        found = look(opened.sources.server, attempts, call_id, latency_s=latency_s, rules=rules_of(opened.settings))
    say(as_json(msgspec.to_builtins(found)) if form == "json" else explanation_text(found))
    if found.where is Where.UNKNOWN:
        say(
            "No such call waits, runs or has a recorded attempt. It may have been answered from the cache, revoked, or "
            "be past its retention.",
            err=True,
        )
        ctx.exit(1)
