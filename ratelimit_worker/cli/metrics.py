"""`ratelimit-worker metrics`: serves metrics for Prometheus."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError
from ratelimit_worker.number_options import Whole

HEALTH = "/healthcheck"  #: as Flower's

Application = Callable[..., Iterable[bytes]]  #: of WSGI


class NotServed(RateLimitWorkerError):
    """The address cannot be listened on."""


def with_health(metrics_of: Application) -> Application:
    """The application, with a path for health checks, which reads neither Redis nor the database."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != HEALTH:
            return metrics_of(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"OK"]

    return answer


@click.command()
@of_app
@click.option("--port", type=Whole(1, 65_535), default=9464, show_default=True)
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen here; there is no login.")
def metrics(port: int, address: str) -> None:
    """Serve metrics for Prometheus on /metrics, until Ctrl-C or SIGTERM.

    Flower has the same on its own /metrics, behind its login. /healthcheck says that this process answers, and reads
    nothing.
    """
    if find_spec("prometheus_client") is None:
        raise ConfigurationError("prometheus-client is not installed: pip install 'ratelimit-worker[metrics]'")
    from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server

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
        server.set_app(with_health(make_wsgi_app(registry)))
        try:
            say(f"Metrics: http://{address}:{port}/metrics", err=True)
            ended.wait()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)
