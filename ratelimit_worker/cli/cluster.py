"""The cluster on which a command's calls run: the configured one, or its own, which ends with the command."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from celery import Celery
from msgspec import Struct, field

from ratelimit_worker import wiring
from ratelimit_worker.app import make_app
from ratelimit_worker.config import PREFIX, Settings, environment, read_settings
from ratelimit_worker.embedded import Children, EmbeddedRedis, Exited
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import reach, redis_errors

_STOP_S = 15.0  #: time for running calls when the workers are told to stop
_MOST_RESTARTS = 3  #: of all workers together


class WorkersFailed(RateLimitWorkerError):
    """The workers of a command ended by themselves. `str()` has the end of their log."""


class _Worker(Struct, frozen=True):
    argv: tuple[str, ...]
    log_path: Path


class Cluster(Struct):
    """Redis, an app that sends to it, and the workers of this command, if it has any."""

    app: Celery
    settings: Settings
    environ: dict[str, str]  #: the workers' environment: settings, addresses and keys of providers
    embedded: bool
    children: Children
    _workers: list[_Worker] = field(default_factory=list)
    _restarts: int = 0

    @property
    def services(self) -> wiring.Services:
        """The live services of this process."""
        return wiring.services()

    def start_workers(self, count: int, concurrency: int, queue: str) -> None:
        """Start `count` workers with a threads pool of `concurrency` that take calls from `queue` only."""
        for number in range(1, count + 1):
            argv = (
                *(sys.executable, "-P", "-m", "celery", "-A", "ratelimit_worker.app", "worker"),
                *("-P", "threads", "-c", str(concurrency), "-Q", queue, "-n", f"{queue}-{number}@%h", "-l", "WARNING"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            )
            self._start(_Worker(argv, self.settings.state_path / "logs" / f"{queue}-{number}.log"))

    def check_workers(self) -> list[Exited]:
        """Restart workers that have ended by themselves; returns a description of each that ended.

        Raises:
            WorkersFailed: it happened more than three times.
        """
        gone = self.children.exited()
        for exited in gone:
            self._restarts += 1
            if self._restarts > _MOST_RESTARTS:
                raise WorkersFailed(f"the workers do not stay: {exited}")
            worker = next(worker for worker in self._workers if worker.argv == exited.argv)
            self._workers.remove(worker)
            self._start(worker)
        return gone

    def stop_workers(self, grace_s: float = _STOP_S) -> None:
        """Let running calls finish, for at most `grace_s` seconds; waiting calls stay in their lanes."""
        self.children.stop(grace_s)

    def remove_logs(self) -> None:
        """Delete the workers' logs, which are not needed any more."""
        for worker in self._workers:
            worker.log_path.unlink(missing_ok=True)

    def _start(self, worker: _Worker) -> None:
        self._workers.append(worker)
        self.children.start(worker.argv, self.environ, worker.log_path)


@contextmanager
def open_cluster(
    state_dir: Path | None = None, *, alone: bool = False, extra: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """The configured cluster, or this command's own on `state_dir`; its own, and its workers, end with the block.

    Args:
        state_dir: None: MAISD_STATE_DIR.
        alone: Use its own cluster in any case.
        extra: Further variables for the workers' environment.
    Raises:
        ConfigurationError: a setting is wrong, or no server runs here.
        StoreUnavailable: the server does not answer.
    """
    environ = {**environment(), **(extra or {}), "PYTHONPATH": _python_path(environment())}
    if state_dir is not None:
        environ[f"{PREFIX}STATE_DIR"] = str(state_dir.expanduser().absolute())
    if alone:
        for name in (f"{PREFIX}REDIS_URL", "CELERY_BROKER_URL", f"{PREFIX}DATABASE_URL", "DATABASE_URL"):
            environ.pop(name, None)
    settings = read_settings(environ)
    with ExitStack() as opened:
        embedded = not settings.redis_url
        if embedded:
            if environ.get("CELERY_RESULT_BACKEND"):
                raise ConfigurationError(
                    "CELERY_RESULT_BACKEND is set, and no broker: unset it, or set MAISD_REDIS_URL"
                )
            redis = opened.enter_context(EmbeddedRedis(settings.state_path))
            environ[f"{PREFIX}REDIS_URL"] = redis.url
            settings = read_settings(environ)
            children = opened.enter_context(Children(redis.watcher))
        else:
            children = opened.enter_context(Children())
        app = make_app(settings)
        app.set_default()  # for all threads of this process
        import_module("ratelimit_worker.builtin")  # now; imported later, it would make its own app the default
        cluster = Cluster(app=app, settings=settings, environ=environ, embedded=embedded, children=children)
        opened.callback(app.close)
        reach(cluster.services.redis)
        if embedded:
            _take_back(cluster)
        yield cluster


def _take_back(cluster: Cluster) -> None:
    """Give back calls that were out when the last owner of this state folder was killed.

    Its workers have ended with it, so there is no need to wait until their leases end.
    """
    lanes = cluster.services.lanes
    with redis_errors():
        tags: Any = lanes.client.zrange(keys.LEDGER, 0, -1)
        for first in range(0, len(tags), 100):
            lanes.restore([tag.decode() for tag in tags[first : first + 100]])


def _python_path(environ: Mapping[str, str]) -> str:
    """The path by which workers find this package, also if it is a checkout that is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    given = environ.get("PYTHONPATH", "")
    if root in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return given
    return os.pathsep.join(part for part in (root, given) if part)
