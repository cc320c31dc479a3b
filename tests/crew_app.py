"""An app whose release knows the tasks that CREW_KNOWS names (all, where it names none): for rolling deploys."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings
from tests.fleet_app import _write

NAMES = ("translate", "summarise")
KNOWS = [name for name in os.environ.get("CREW_KNOWS", "").split(",") if name] or NAMES


def make() -> Celery:
    """The app on the broker that the environment names."""
    made = Celery("shop", broker=os.environ.get("MAISD_REDIS_URL"), backend=os.environ.get("MAISD_REDIS_URL"))
    made.conf.update(task_default_queue="shop", worker_redirect_stdouts=False)
    return install(made, read_settings())


app = make()


def _answer(name: str, prompt: str) -> str:
    _write(name, f"{os.environ.get('CREW_WHO', '')} {prompt}")
    return f"{name} {prompt}"


def _task(name: str) -> Any:
    def run(prompt: str) -> str:
        return _answer(name, prompt)

    return llm_task(app=app, shared=False, name=f"shop.{name}", lane="shop", cache=False)(run)


translate, summarise = (_task(name) if name in KNOWS else None for name in NAMES)


@app.task(shared=False, name="shop.plain")
def plain(number: int) -> int:
    """An ordinary task: no call."""
    return number
