"""Which deployment does a command look at? The first of these that there is:

1. the app that is named (`-A MODULE`), then MAISD_REDIS_URL or CELERY_BROKER_URL
2. the app of CELERY_APP
3. the embedded server of a `run`, `demo` or `up` that is running with this state folder
4. the broker of the last worker that used this state folder
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from celery import Celery
from celery.app.utils import find_app as find_celery_app
from msgspec import Struct

from ratelimit_worker.config import Settings, environment, read_settings
from ratelimit_worker.embedded import running_url
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError
from ratelimit_worker.outage import cause_of
from ratelimit_worker.private_files import make_folder, open_file
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.installed import Installation, installation_of

log = logging.getLogger(__name__)

APP = "CELERY_APP"
REDIS_URL = "MAISD_REDIS_URL"
LAST_RUN = "last-run.json"  #: in the state folder


class Deployment(Struct, frozen=True):
    """What a command works on."""

    settings: Settings  #: with the `redis_url` that was found; `sources` says where
    services: Services


def deployment_of(app_name: str | None = None) -> Deployment:
    """The deployment that a command is about; `redis_url` is empty if no Redis is found.

    Args:
        app_name: As `celery -A` takes it; None: the command was given none.
    Raises:
        ConfigurationError: a setting is wrong, or the app is not found, or has no lanes.
    """
    settings = read_settings()
    if app_name is None and settings.redis_url:
        return Deployment(settings, Services(settings))
    name, said = (app_name, f"-A {app_name}") if app_name else (environment().get(APP, ""), APP)
    if name:
        installation = installation_named(name, said)
        live = installation.services()  # with the app's own connection options
        return Deployment(_with(installation.settings, live.redis_url, said), live)
    if (url := running_url(settings.state_path)) is not None:
        settings = _with(settings, url, "runs on the state folder")
    elif (url := last_run(settings.state_path)) is not None:
        settings = _with(settings, url, "the last worker's")
    return Deployment(settings, Services(settings))


def installation_named(name: str, said: str) -> Installation:
    """The `Installation` of the app that `celery -A` finds by this name.

    Args:
        said: How the user named it, for error messages.
    Raises:
        ConfigurationError: the app does not exist, cannot be imported, has no lanes, or its broker is not one Redis.
    """
    try:
        app = find_celery_app(name)
    except RateLimitWorkerError:
        raise
    except Exception as error:  # the user's module may raise what it likes
        raise ConfigurationError(f"{_once(said, name)}: {cause_of(error)}") from error
    installation = installation_of(app) if isinstance(app, Celery) else None
    if installation is None:
        lacks = "an app without lanes; ratelimit_worker.install(app) gives it some"
        raise ConfigurationError(f"{_once(said, name)}: {lacks}")
    installation.services()  # raises at once if something is wrong with its broker
    return installation


def _once(said: str, name: str) -> str:
    return said if name in said else f"{said}={name}"


def remember(settings: Settings, redis_url: str) -> None:
    """Write a worker's broker URL, without its password, to the state folder, for commands that have no other Redis."""
    path = settings.state_path / LAST_RUN
    text = json.dumps({"redis_url": without_password(redis_url)})
    try:
        if path.is_file() and path.read_text("utf-8") == text:
            return
        make_folder(path.parent)
        with open(path, "w", encoding="utf-8", opener=open_file) as file:
            file.write(text)
    except (OSError, ValueError) as error:  # a container's file system may be read-only
        log.info("last_run.unsaid %s", cause_of(error), extra={"cause": cause_of(error)})


def last_run(state_dir: Path) -> str | None:
    """Broker URL of the last worker that used this folder; None: it is not known, or its socket is gone."""
    try:
        url = json.loads((state_dir / LAST_RUN).read_text("utf-8"))["redis_url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(url, str) or not url:
        return None
    if url.startswith("unix://") and not Path(urlsplit(url).path).exists():
        return None  # a server of `run`'s own that has ended
    return url


def without_password(url: str) -> str:
    """A Redis URL (or several of Sentinels, with `;` between) without passwords; user names stay."""
    return ";".join(map(_without_password, url.split(";")))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, separator, place = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    netloc = f"{name}@{place}" if separator and name else place
    query = "&".join(item for item in parts.query.split("&") if "password" not in item.partition("=")[0].lower())
    return f"{parts.scheme}://{netloc}{parts.path}{'?' * bool(query)}{query}"  # `urlunsplit` drops the // of unix:///


def _with(settings: Settings, url: str, said: str) -> Settings:
    return replace(settings, redis_url=url, sources={**settings.sources, REDIS_URL: said}) if url else settings
