"""The fleet's app, in whose workers a step of the start fails so often, or waits until the test has done its part."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from ratelimit_worker.app import llm_task
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.flow.lane import limit, pin
from ratelimit_worker.providers import network
from ratelimit_worker.stores.tracker import Tracker
from ratelimit_worker.worker import grace, presence
from tests.fleet_app import app, echo

__all__ = ["app", "echo", "until"]


@llm_task(app=app, shared=False, cache=False, lane="free")
def until(name: str) -> str:
    """Says that it runs, and ends when it is told to."""
    folder = Path(os.environ["FLEET_FOLDER"])
    with (folder / f"{name}-runs").open("a") as file:
        file.write("x")
    while not (folder / name).exists():
        time.sleep(0.02)
    return name


#: Where a start can fail: what is called there.
STEPS: dict[str, tuple[Any, str]] = {
    "check": (presence, "_check"),
    "network": (network, "check"),
    "duties": (presence, "Tune"),
    "warm": (presence, "warm_up"),
    "database": (Tracker, "open"),
    "rules": (presence, "_tell_own_rules"),
    "pins": (pin, "at_start"),
    "limits": (limit, "at_start"),
    "beat": (presence.Presence, "beat"),
    "thread": (presence.Acknowledge, "start"),  # the last of them
}
ERRORS: dict[str, Callable[[], Exception]] = {
    "redis": lambda: RedisConnectionError("Connection reset by peer"),
    "store": lambda: StoreUnavailable("Redis took nothing in"),
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "file": lambda: FileNotFoundError(errno.ENOENT, "No such file or directory"),
    "threads": lambda: RuntimeError("can't start new thread"),
    "setting": lambda: ConfigurationError("MAISD_X=1: wrong\nMAISD_Y=2: wrong too"),
}
_met: Counter[str] = Counter()


def _fails(step: str, error: Callable[[], Exception], times: int) -> None:
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def step_of_a_start(*args: Any, **kwargs: Any) -> Any:
        _met[step] += 1
        if _met[step] <= times:
            raise error()
        return real(*args, **kwargs)

    setattr(owner, name, step_of_a_start)


def _waits(step: str) -> None:
    """Once: says that it is there, and goes on when it is told to."""
    owner, name = STEPS[step]
    real, folder = getattr(owner, name), Path(os.environ["FLEET_FOLDER"])

    def step_of_a_start(*args: Any, **kwargs: Any) -> Any:
        if not (folder / "arrived").exists():
            (folder / "arrived").touch()
            while not (folder / "go").exists():
                time.sleep(0.02)
        return real(*args, **kwargs)

    setattr(owner, name, step_of_a_start)


if os.environ.get("WEATHER_WORKER"):
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # where it hangs, for a test that fails
    app.conf.worker_soft_shutdown_timeout = float(os.environ.get("WEATHER_GRACE_S", "10"))
    grace.MORE_S = float(os.environ.get("WEATHER_MORE_S", grace.MORE_S))
    for fault in os.environ.get("WEATHER_FAILS", "").split():
        where, what, how_often = fault.split(":")
        _fails(where, ERRORS[what], int(how_often))
    if os.environ.get("WEATHER_WAITS"):
        _waits(os.environ["WEATHER_WAITS"])
    if os.environ.get("WEATHER_NO_THREADS"):
        _start = threading.Thread.start

        def start(self: threading.Thread) -> None:
            if self.name.startswith("rlw-") and self.name != "rlw-grace":
                raise RuntimeError("can't start new thread")
            _start(self)

        threading.Thread.start = start  # type: ignore[method-assign]
