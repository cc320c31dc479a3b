"""How does Flower run on an app with lanes? Its own application, with one page more and the broker's stock address."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from celery import Celery
from flower.app import Flower, rewrite_handler
from flower.command import (
    apply_env_options,
    apply_options,
    extract_settings,
    is_flower_option,
    setup_logging,
    sigterm_handler,
)
from flower.urls import settings
from kombu.utils.url import maybe_sanitize_url
from tornado.options import options

from ratelimit_worker.app import make_app, product_app
from ratelimit_worker.config import environment
from ratelimit_worker.deployment import APP, REDIS_URL, deployment_of, installation_named
from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.flower.board import Board
from ratelimit_worker.flower.loader import Loader
from ratelimit_worker.flower.pages import HANDLERS
from ratelimit_worker.flower.summaries import without_answers
from ratelimit_worker.plain_text import shown
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.installed import installation_of
from ratelimit_worker.worker.task import CallTask

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
MOST_TASKS = 8_000  #: that Flower keeps in memory, at some 5 kB each; its own default is 100,000


class NotServed(RateLimitWorkerError):
    """Flower cannot listen where it was told to."""


class LanesFlower(Flower):
    """Flower, the page, and its `board`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.board = Board(services_of(self.capp))
        prefix = self.options.url_prefix
        # Beside Flower's own, and before the handler that answers 404 to everything else.
        self.add_handlers(r".*", [rewrite_handler(made, prefix) for made in HANDLERS] if prefix else list(HANDLERS))

    @cached_property
    def broker_uri_with_password(self) -> str:
        """The server as stock Celery would name it: Flower does not know our scheme, and asks Redis by itself."""
        url = services_of(self.capp).redis_url
        if url.startswith("sentinel://"):  # it asks one of them
            return url.partition(";")[0].partition("?")[0]
        return f"redis+socket://{url.removeprefix('unix://')}" if url.startswith("unix://") else url

    @cached_property
    def broker_uri(self) -> str:
        """The same, fit to be shown."""
        return str(maybe_sanitize_url(self.broker_uri_with_password))

    def stop(self) -> None:
        """End it, and what the page holds open."""
        super().stop()
        self.board.close()


def services_of(app: Celery) -> Services:
    """The live objects of an app, which need not be those of its process: its module may have installed others."""
    installation = installation_of(app)
    assert installation is not None, "find_app gives none without lanes"
    return installation.services()


def find_app(name: str | None) -> Celery:
    """The deployment's app, as `celery -A` finds it; None: that of CELERY_APP, else ours.

    Raises:
        ConfigurationError: there is none of that name, it has no lanes, or a setting is wrong.
    """
    named, said = (name, f"-A {name}") if name else (environment().get(APP, ""), APP)
    if named:
        return installation_named(named, said).app
    settings = deployment_of().settings
    return product_app() if settings.sources.get(REDIS_URL) in ("environment", "default") else make_app(settings)


def serve(
    app: Celery, *, address: str | None, port: int | None, logins: Sequence[str], more: Sequence[str] = ()
) -> None:
    """Run Flower until SIGINT or SIGTERM.

    Args:
        address, port, logins: What was not said (None, empty) is Flower's: its environment, then flowerconfig.py.
        more: Further options of Flower's, `--name=value`.
    Raises:
        ConfigurationError: no Redis is configured.
        NotServed: the address cannot be listened on.
        click.UsageError: an option that Flower does not know.
    """
    _read_options(address, port, logins, more)
    services_of(app).redis  # noqa: B018 - says at once that there is none, instead of on every page
    app.set_default()  # Flower asks the current app for results and time zone
    options.format_task = without_answers(lambda name: _makes_calls(app, name), options.format_task)
    settings["template_loader"] = Loader(Path(settings["template_path"]))
    application = LanesFlower(capp=app, options=options, **settings)
    signal.signal(signal.SIGTERM, sigterm_handler)
    try:
        _listen(application)
        application.start()
    except (KeyboardInterrupt, SystemExit):
        log.info("Flower was told to stop")
    finally:
        application.stop()


def _read_options(address: str | None, port: int | None, logins: Sequence[str], more: Sequence[str]) -> None:
    """As Flower's own command does, but that an unknown option is an error and an unset address is loopback."""
    unknown = [word for word in more if not word.startswith("--") or not is_flower_option(word)]
    if unknown:
        raise click.UsageError(f"Flower has no option {unknown[0].partition('=')[0]!r}; write --name=value")
    options.max_tasks = MOST_TASKS
    apply_env_options()
    apply_options("flower", list(more))
    if address is not None:
        options.address = address
    if port is not None:
        options.port = port
    if logins:
        options.basic_auth = list(logins)
    # FLOWER_BASIC_AUTH= of a compose file is no login at all, not one that nobody can give.
    options.basic_auth = [login for login in options.basic_auth or () if login]
    options.address = options.address or LOOPBACK
    extract_settings()
    setup_logging()


def _listen(application: LanesFlower) -> None:
    try:
        application.start_http_server()
    except OSError as error:
        where = options.unix_socket or f"{options.address}:{options.port}"
        raise NotServed(f"Flower cannot listen on {where}: {error.strerror or error}") from error
    if not options.unix_socket:
        scheme = "https" if "ssl_options" in settings else "http"
        page = application.reverse_url("rate-limit")
        click.echo(shown(f"Flower: {scheme}://{options.address}:{options.port}{page}"), err=True)
    if not (options.basic_auth or options.auth):
        click.echo("Note: no login is set, so the mode buttons are off; set FLOWER_BASIC_AUTH=user:password", err=True)


def _makes_calls(app: Celery, name: str | None) -> bool:
    """Whether a task's answers are a provider's. A task that this process does not know may be one that does."""
    task = app.tasks.get(name)
    return task is None or isinstance(task, CallTask)
