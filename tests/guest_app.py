"""An app that a team has: its own classes, pickle, compression, early acks; lanes come before its configuration."""

from __future__ import annotations

import contextvars
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task

from ratelimit_worker import CallTask
from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Configuration:
    """Read after `install`, as a package that sets up an app late would have it."""

    broker_url = os.environ.get("GUEST_BROKER", "redis://127.0.0.1:1/0")
    result_backend = os.environ.get("GUEST_BROKER", "redis://127.0.0.1:1/0")
    task_default_queue = "guest"
    task_serializer = result_serializer = "pickle"
    accept_content = ("pickle",)
    task_compression = "gzip"
    task_acks_late = False
    worker_prefetch_multiplier = 4
    task_default_rate_limit = "1000/s"
    control_exchange = "guests"


class InTenant(Task):
    """The app's own class: whatever runs, runs for a tenant; it sees the arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = TENANT.set(str(args[0] if args else "")[:5])
        try:
            return self.run(*args, **kwargs)
        finally:
            TENANT.reset(token)


class Audited(CallTask):
    """A class of calls that notes what is about to run."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Celery's handler."""
        _note("before", repr(list(args)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _note("call", repr(list(args)))
        return super().__call__(*args, **kwargs)


def _note(name: str, what: str) -> None:
    with (Path(os.environ["FLEET_FOLDER"]) / name).open("a") as file:
        file.write(what + "\n")


app = Celery("guest", task_cls=InTenant)
install(app, read_settings())
app.config_from_object(Configuration)


@llm_task(app=app, shared=False, lane="guest", cache=False)
def ask(prompt: str) -> list[str]:
    """A call in the app's own class."""
    return [prompt, TENANT.get()]


@llm_task(app=app, shared=False, lane="guest", cache=False, base=Audited)
def audited(prompt: str) -> str:
    """A call of a class of its own."""
    return prompt


@llm_task(shared=True, name="guest.shared", lane="guest", cache=False)
def shared(prompt: str) -> list[str]:
    """A call that every app has."""
    return [prompt, TENANT.get()]


@app.task(shared=False)
def plain(things: set[int], until: Path | None = None) -> list[Any]:
    """An ordinary task, whose arguments are no JSON. It runs until that file is there."""
    _note("plain", str(len(things)))
    while until is not None and not until.exists():
        time.sleep(0.05)
    return [things, TENANT.get()]
