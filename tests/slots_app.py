"""Tasks that end otherwise than tasks should: with what is meant for their process, thread or greenlet, or never."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.exceptions import WorkerShutdown, WorkerTerminate
from gevent import GreenletExit, Timeout

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings


class PanicException(BaseException):
    """What a library in Rust raises for a panic."""


#: Twelve, none of which Celery can bring to a caller.
RAISED: dict[str, Callable[[], BaseException]] = {
    "MemoryError": MemoryError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "GreenletExit": GreenletExit,
    "Timeout": lambda: Timeout(1.0),
    "PanicException": lambda: PanicException("index out of bounds"),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
    "WorkerShutdown": lambda: WorkerShutdown(0),
    "WorkerTerminate": lambda: WorkerTerminate(1),
    "WorkerLostError": lambda: WorkerLostError("gone"),
}

# shared=False: each reload of this module makes an app of its own, which must not get the tasks of the last one
app = install(
    Celery("slots", broker=os.environ.get("MAISD_REDIS_URL"), backend=os.environ.get("MAISD_REDIS_URL")),
    read_settings(),
)
app.conf.update(task_default_queue="slots", worker_redirect_stdouts=False)


def _write(name: str, what: str) -> None:
    with (Path(os.environ["FLEET_FOLDER"]) / name).open("a") as file:
        file.write(f"{time.time():.6f} {what}\n")


def _there(name: str) -> int:
    path = Path(os.environ["FLEET_FOLDER"]) / name
    return len(path.read_text().splitlines()) if path.exists() else 0


@llm_task(app=app, shared=False, cache=False, lane="odd")
def odd(kind: str) -> None:
    """Raises what no task should."""
    _write("ran", kind)
    raise RAISED[kind]()


@llm_task(app=app, shared=False, lane="odd")
def shared_odd(kind: str) -> Any:
    """The same, once; whoever asks the same is answered."""
    _write("shared", kind)
    time.sleep(0.3)
    if _there("shared") == 1:
        raise RAISED[kind]()
    return "answered"


@app.task(shared=False)
def plain_odd(kind: str) -> None:
    """An ordinary task that does so."""
    raise RAISED[kind]()


@llm_task(app=app, shared=False, cache=False, lane="hooked")
def hooked(kind: str) -> str:
    """A good answer; what its `after_return` raises comes after it."""
    return kind


def _after_return(status: str, retval: Any, task_id: str, args: list[Any], kwargs: Any, einfo: Any) -> None:
    raise RAISED[args[0]]()


hooked.after_return = _after_return


@llm_task(app=app, shared=False, cache=False, lane="meet")
def meet(name: str, how_many: int, most_s: float = 60.0) -> int:
    """Waits until so many run at once → how many it saw."""
    _write(name, "here")
    end = time.monotonic() + most_s
    while _there(name) < how_many and time.monotonic() < end:
        time.sleep(0.02)
    return _there(name)


@llm_task(app=app, shared=False, cache=False, lane="good")
def good(what: int, sleep_s: float = 0.0) -> int:
    """A provider that answers."""
    time.sleep(sleep_s)
    _write("good", str(what))
    return what


@llm_task(app=app, shared=False, cache=False, lane="hung")
def hang(what: int, until: str = "never", most_s: float = 3600.0) -> int:
    """A provider that accepts and does not answer until a file is there."""
    _write("hung", str(what))
    end = time.monotonic() + most_s
    while not (Path(os.environ["FLEET_FOLDER"]) / until).exists() and time.monotonic() < end:
        time.sleep(0.02)
    return what
