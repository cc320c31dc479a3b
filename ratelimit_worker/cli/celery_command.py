"""`celery -A MODULE ratelimit …`: the commands of `ratelimit-worker` within Celery's command line.

Celery loads this for each of its commands, by the entry point `celery.commands`, so it only imports the table.
"""

from __future__ import annotations

import click

from ratelimit_worker.cli import Commands, begin
from ratelimit_worker.cli.named import name_app


@click.group(cls=Commands)
@click.pass_context
def ratelimit(ctx: click.Context) -> None:
    """Lanes, modes, figures and limits of ratelimit-worker."""
    name = ctx.find_root().params.get("app")
    if isinstance(name, str):
        name_app(ctx, name)
    begin()
