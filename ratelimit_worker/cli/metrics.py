"""`ratelimit-worker metrics`: what Prometheus scrapes, on a port of its own."""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec
from typing import Any

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError


class NotServed(RateLimitWorkerError):
    """The address cannot be listened on."""


@click.command()
@of_app
@click.option("--port", type=click.IntRange(min=1, max=65_535), default=9464, show_default=True)
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen here; there is no login.")
def metrics(port: int, address: str) -> None:
    """Serve metrics for Prometheus on /metrics, until Ctrl-C or SIGTERM.

    Flower has the same on its own /metrics, behind its login.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigurationError("prometheus-client is not installed: pip install 'ratelimit-worker[metrics]'")
    from prometheus_client import CollectorRegistry, start_http_server

    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.exporter import Exporter, asks_of

    ended = threading.Event()

    def end(_number: int, _frame: Any) -> None:
        ended.set()

    with open_sources() as opened:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Exporter(asks_of(opened.sources, opened.services.outbox, lambda: opened.services.redis)))
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server, thread = start_http_server(port, address, registry)
        except OSError as error:
            raise NotServed(f"cannot listen on {address}:{port}: {error.strerror or error}") from error
        try:
            say(f"Metrics: http://{address}:{port}/metrics", err=True)
            ended.wait()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)
