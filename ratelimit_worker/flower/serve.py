"""Runs Flower for an app with lanes: its own application, with the pages of this package."""

from __future__ import annotations

import logging
import secrets
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
from tornado import web
from tornado.options import Error, options

from ratelimit_worker.config import environment
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError
from ratelimit_worker.flower import alerts, pages
from ratelimit_worker.flower.board import Board
from ratelimit_worker.flower.loader import Loader
from ratelimit_worker.flower.own_options import flaw_of_environment, flaw_of_words
from ratelimit_worker.flower.roles import claimed_name, is_for_operators, may_operate
from ratelimit_worker.flower.summaries import without_answers
from ratelimit_worker.plain_text import shown
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.installed import installation_of
from ratelimit_worker.worker.task import CallTask

log = logging.getLogger(__name__)

HANDLERS = [*pages.HANDLERS, *alerts.HANDLERS]

LOOPBACK = "127.0.0.1"
OPERATOR = "ops"  #: user name of a login that is made at the start
#: Tasks that Flower keeps in memory, some 5 kB each; its own default is 100,000. It also keeps four times as many
#: events, so its memory grows until 11,000 calls: 88 MB at first, 136 MB after 15,000, 141 MB after 45,000 and 60,000.
MOST_TASKS = 8_000
_MOST_PORT = 65_535


class NotServed(RateLimitWorkerError):
    """Flower cannot listen where it was told to."""


class LanesFlower(Flower):
    """Flower's application with the pages of this package, and their `board`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        services = services_of(self.capp)
        self.board = Board(services, self.capp)
        self.operators = services.settings.operators
        prefix = self.options.url_prefix
        # In addition to Flower's own, and before its handler that answers 404 to everything else.
        self.add_handlers(r".*", [rewrite_handler(made, prefix) for made in HANDLERS] if prefix else HANDLERS)

    def find_handler(self, request: Any, **kwargs: Any) -> Any:
        """Flower's own handler; requests for operators only are refused to viewers, on all pages and APIs."""
        if self.operators and is_for_operators(request):
            name = claimed_name(request, self.settings["cookie_secret"])
            # If there are logins and the request has none, Flower asks for one; a browser waits for that.
            asked = not name and (self.options.basic_auth or self.options.auth)
            if not asked and not may_operate(name, self.operators):
                return self.get_handler_delegate(request, web.ErrorHandler, {"status_code": 403})
        return super().find_handler(request, **kwargs)

    @cached_property
    def broker_uri_with_password(self) -> str:
        """The server's ordinary Redis URL: Flower connects by itself, and does not know the URL scheme of lanes."""
        url = services_of(self.capp).redis_url
        if url.startswith("sentinel://"):  # of several sentinels Flower gets the first
            return url.partition(";")[0].partition("?")[0]
        return f"redis+socket://{url.removeprefix('unix://')}" if url.startswith("unix://") else url

    @cached_property
    def broker_uri(self) -> str:
        """The same URL without the password."""
        return str(maybe_sanitize_url(self.broker_uri_with_password))

    def stop(self) -> None:
        """End Flower, and close the page's connections."""
        super().stop()
        self.board.close()


def services_of(app: Celery) -> Services:
    """The services of an app, which differ from this process's if the app's module installs another app too."""
    installation = installation_of(app)
    assert installation is not None, "find_app gives none without lanes"
    return installation.services()


def serve(
    app: Celery,
    *,
    address: str | None,
    port: int | None,
    logins: Sequence[str],
    more: Sequence[str] = (),
    makes_login: bool = False,
) -> None:
    """Run Flower until SIGINT or SIGTERM.

    Args:
        address, port, logins: If not given (None, empty), Flower's own settings hold: its environment, then
        flowerconfig.py.
        more: Further options of Flower's, `--name=value`.
        makes_login: If no login is set, one is made and printed.
    Raises:
        ConfigurationError: no Redis is configured, or one of Flower's own settings cannot be read.
        NotServed: the address cannot be listened on.
        click.UsageError: an option that Flower does not know, or whose value it cannot read.
    """
    _read_options(address, port, logins, more)
    if makes_login and not (options.basic_auth or options.auth):
        password = secrets.token_urlsafe(12)
        options.basic_auth = [f"{OPERATOR}:{password}"]
        click.echo(f"Login: {OPERATOR}, password {password} (FLOWER_BASIC_AUTH=user:password sets your own)", err=True)
    services_of(app).redis  # noqa: B018 - fails at once if there is none, instead of on every page
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
    """Like Flower's own command, except that an unknown option is an error and the default address is loopback."""
    unknown = [word for word in more if not word.startswith("--") or not is_flower_option(word)]
    if unknown:
        raise click.UsageError(f"Flower has no option {unknown[0].partition('=')[0]!r}; write --name=value")
    if (wrong := flaw_of_words(more)) is not None:
        raise click.UsageError(wrong)
    if (wrong := flaw_of_environment(environment())) is not None:
        raise ConfigurationError(wrong)
    options.max_tasks = MOST_TASKS
    apply_env_options()
    try:
        apply_options("flower", list(more))
    except Error as error:  # a value of another type in its configuration file
        raise ConfigurationError(f"{options.conf}: {error}") from error
    except FileNotFoundError as error:
        raise ConfigurationError(f"--conf={options.conf}: there is no such file") from error
    if address is not None:
        options.address = address
    if port is not None:
        options.port = port
    if not 0 <= options.port <= _MOST_PORT:
        raise ConfigurationError(f"Flower's port {options.port}: write a whole number from 1 to {_MOST_PORT}")
    if logins:
        options.basic_auth = list(logins)
    # An empty FLOWER_BASIC_AUTH= of a compose file means no login.
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
    """Whether a task makes calls. A task that this process does not know may be one."""
    task = app.tasks.get(name)
    return task is None or isinstance(task, CallTask)
