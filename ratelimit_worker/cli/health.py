"""`ratelimit-worker health`: does a worker of this machine send heartbeats? For checks of containers and services."""

from __future__ import annotations

import socket

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say


@click.command()
@of_app
@click.option("--worker", "name", metavar="NAME", help="Such as celery@host. Default: any worker of this machine.")
def health(name: str | None) -> None:
    """Exit with 0 if a worker of this machine beats: its loop runs, and its beats reach Redis.

    1: none does. 69: Redis can't be asked, which is not the worker's fault; it goes on by itself when Redis is back.
    A second line names the open alerts, which change no exit code.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.alerts import line
    from ratelimit_worker.stores.reach import redis_errors

    host = socket.gethostname()
    with open_sources() as opened, redis_errors():
        now = opened.sources.server.now(only=())
        beating, wrong = [worker.node for worker in now.workers], line(opened.sources.server.alerts(), now.at_s)
    found = [worker for worker in beating if worker == name or (name is None and worker.partition("@")[2] == host)]
    if not found:
        silent = f"no worker of {host} beats" if name is None else f"{name} does not beat"
        raise click.ClickException(f"{silent}; {len(beating)} others do")
    say(", ".join(found))
    if wrong:
        say(wrong)
