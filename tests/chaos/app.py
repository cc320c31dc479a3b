"""The tasks that faults happen to: an app that a team had, with `install(app)`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import MalformedResponse
from ratelimit_worker.providers import openai

LET_GO_S = 60.0  #: a slot that is held lets go by itself then

app = install(
    Celery("chaos", broker=os.environ.get("MAISD_REDIS_URL"), backend=os.environ.get("MAISD_REDIS_URL")),
    read_settings(),
)
app.conf.task_default_queue = "chaos"


class Panic(BaseException):
    """What a Rust extension raises."""


#: What a task may raise, by name: an error that nobody catches with `except Exception` too.
KINDS: dict[str, Callable[[], BaseException]] = {
    "ValueError": ValueError,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "Panic": Panic,
}


def folder() -> Path:
    """Where tasks leave what they did."""
    return Path(os.environ["FLEET_FOLDER"])


def note(name: str, text: str) -> None:
    """One line in a file of the stage."""
    with (folder() / name).open("a") as file:
        file.write(f"{text}\n")


def provider(text: str) -> str:
    """One request to the simulated provider, which logs `text` as its `custom_id`."""
    body = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": text}]}
    answer = openai.request(openai.endpoint(os.environ), openai.CHAT_PATH, {**body, "metadata": {"custom_id": text}})
    if not answer.body.get("choices"):
        raise MalformedResponse("no choices", 200)
    return text


@llm_task(app=app, shared=False, cache=False, lane="ask")
def ask(text: str) -> str:
    """One request; gives back what was asked."""
    return provider(text)


@llm_task(app=app, shared=False, lane="ask")
def ask_shared(text: str) -> str:
    """The same, once for all who ask it."""
    return provider(text)


@llm_task(app=app, shared=False, cache=False, lane="probe")
def hold(number: int) -> int:
    """Takes a slot until all are let go."""
    note("held", str(number))
    until_s = time.monotonic() + LET_GO_S
    while not (folder() / "let-go").exists() and time.monotonic() < until_s:
        time.sleep(0.02)
    return number


@llm_task(app=app, shared=False, cache=False, lane="poison")
def fatal(text: str) -> None:
    """Kills its worker."""
    note("fatal", text)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


@llm_task(app=app, shared=False, cache=False, lane="raises")
def raises(kind: str) -> Any:
    """Raises anything."""
    raise KINDS[kind]()
