"""`celery -A MODULE ratelimit …`: the commands of `ratelimit-worker` where Celery's users look for them.

Celery loads it at each of its commands, by the entry point `celery.commands`: it imports no more than the table.
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
