"""Calls whose results go where the environment says: a result backend that is not Redis."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings
from tests.fleet_app import _write


def make() -> Celery:
    """The app on the broker, and with the result backend, that the environment names."""
    made = Celery(
        "backends", broker=os.environ.get("MAISD_REDIS_URL"), backend=os.environ.get("BACKENDS_RESULTS", "rpc://")
    )
    made.conf.update(task_default_queue="backends", worker_redirect_stdouts=False, result_extended=True)
    return install(made, read_settings())


app = make()


@llm_task(app=app, shared=False, lane="backends", name="backends.ask")
def ask(what: str, s: float = 0.0) -> str:
    """The call, which shares its answer."""
    time.sleep(s)
    _write(f"runs-{what}", what)
    return what


@app.task(shared=False, name="backends.plain")
def plain(*numbers: Any) -> int:
    """An ordinary task."""
    return sum(numbers)
