"""`ratelimit-worker up`: Redis, a worker and Flower for development, in one terminal."""

from __future__ import annotations

import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.number_options import Whole

if TYPE_CHECKING:
    from ratelimit_worker.cli.cluster import Cluster

_START_S, _POLL_S, _GRACE_S = 60.0, 0.2, 15.0
_LOOPBACK = "127.0.0.1"


class Page(NamedTuple):
    """Where Flower listens, and who may log in."""

    port: int
    login: str  #: name:password, or several separated by commas


class NotUp(RateLimitWorkerError):
    """The worker or Flower did not start, or has ended. `str()` has the end of its log."""


@click.command()
@click.option("-A", "--app", "app_name", metavar="MODULE", default="ratelimit_worker.app", show_default=True)
@click.option("--port", type=Whole(1, 65_535), default=5555, show_default=True, help="Of Flower.")
@click.option("--concurrency", type=Whole(min=1), default=16, show_default=True, help="Calls at once.")
@click.option(
    "--state-dir",
    metavar="D",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the data of Redis, the tracking database, and logs. Default: MAISD_STATE_DIR.",
)
def up(app_name: str, port: int, concurrency: int, state_dir: Path | None) -> None:
    """Run Redis, one worker and Flower for development, until Ctrl-C.

    They belong to this command, whatever MAISD_REDIS_URL says, and end with it. Waiting calls are there again at the
    next start. Stdout has the lines for a shell that is to use them. If the extra `flower` is not installed, only the
    others run.
    """
    from ratelimit_worker.cli.cluster import open_cluster

    with _sigterm_as_ctrl_c(), open_cluster(state_dir, alone=True) as cluster:
        try:
            page = None
            if find_spec("flower") is not None:
                login = cluster.environ.get("FLOWER_BASIC_AUTH") or f"dev:{secrets.token_urlsafe(9)}"
                page = Page(port, login)
            _start(cluster, app_name, concurrency, page)
            say(_shell_lines(cluster))
            say(_directions(cluster, page), err=True)
            while True:
                _check(cluster)
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            say("\nstopping", err=True)
            cluster.children.stop(_GRACE_S)


def _start(cluster: Cluster, app_name: str, concurrency: int, page: Page | None) -> None:
    logs = cluster.settings.state_path / "logs"
    worker = ("celery", "-A", app_name, "worker", "-P", "threads", "-c", str(concurrency))
    python = (sys.executable, "-P", "-m")
    cluster.children.start(
        [*python, *worker, "-E", "-n", "dev@%h", "-l", "INFO"], cluster.environ, logs / "up-worker.log"
    )
    if page is not None:
        flower = ("flower", "-A", app_name, "--address", _LOOPBACK, "--port", str(page.port))
        cluster.children.start(
            [*python, "ratelimit_worker", *flower],
            # Not as an argument, which all users of the machine can read.
            {**cluster.environ, "FLOWER_BASIC_AUTH": page.login},
            logs / "up-flower.log",
        )
    say(f"Starting {'Redis and a worker' if page is None else 'Redis, a worker and Flower'} …", err=True)
    deadline = time.monotonic() + _START_S
    while not (_worker_is_there(cluster) and (page is None or _answers(page.port))):
        _check(cluster)
        if time.monotonic() > deadline:
            raise NotUp(f"not up after {_START_S:.0f} s; the logs are in {logs}")
        time.sleep(_POLL_S)
    _check(cluster)  # the port may belong to another program


def _check(cluster: Cluster) -> None:
    for exited in cluster.children.exited():
        raise NotUp(str(exited))


def _worker_is_there(cluster: Cluster) -> bool:
    from ratelimit_worker.stores.live import Live

    return bool(Live(cluster.services.redis).now(only=()).workers)


def _answers(port: int) -> bool:
    import httpx2 as httpx

    try:
        with httpx.Client(trust_env=False) as client:  # the environment's proxy must not be used for loopback
            return client.get(f"http://{_LOOPBACK}:{port}/healthcheck", timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def _shell_lines(cluster: Cluster) -> str:
    """The lines for another shell that is to use this Redis and this database."""
    settings = cluster.settings
    lines: Mapping[str, str] = {
        "MAISD_REDIS_URL": settings.redis_url,
        "MAISD_DATABASE_URL": settings.database_url,
        "MAISD_STATE_DIR": settings.state_dir,
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in lines.items())


def _directions(cluster: Cluster, page: Page | None) -> str:
    if page is None:
        where = ["Flower      not installed: pip install 'ratelimit-worker[flower]'"]
    else:
        user, _, password = page.login.split(",", maxsplit=1)[0].partition(":")
        where = [
            f"Flower      http://{_LOOPBACK}:{page.port}/",
            f"Rate limit  http://{_LOOPBACK}:{page.port}/rate-limit",
            f"Login       {user}, password {password}",
        ]
    return "\n".join([*where, f"Logs        {cluster.settings.state_path / 'logs'}", "Ctrl-C ends them all."])


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, in the same order."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
