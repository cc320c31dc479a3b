"""An app of ordinary tasks alone, as plain Celery has it; with `install(app)` where ORDINARY_LANES is set."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, group
from celery.exceptions import Reject, SoftTimeLimitExceeded
from kombu import Exchange, Queue

from ratelimit_worker.app import install
from ratelimit_worker.config import read_settings

TOPICS = Exchange("topics", type="topic")
KEPT_S = 600  #: results


class Failed(Exception):
    """What a task of the team raises."""


def _note(name: str, what: Any) -> None:
    with (Path(os.environ["FLEET_FOLDER"]) / name).open("a") as file:
        file.write(f"{time.time():.6f} {what}\n")


def _held(name: str) -> None:
    """Until the test lets it go on."""
    folder = Path(os.environ["FLEET_FOLDER"])
    _note(f"{name}-begun", os.getpid())
    until = time.monotonic() + 120
    while not (folder / f"{name}-go").exists():
        assert time.monotonic() < until, "nobody lets it go on"
        time.sleep(0.02)


def make(url: str, *, lanes: bool) -> Celery:
    """The app on a broker."""
    app = Celery("ordinary", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_default_queue="ordinary",
        task_queues=[Queue("ordinary"), Queue("side", TOPICS, routing_key="a.#")],
        task_routes={"ordinary.where": {"queue": "side", "routing_key": "a.b"}},
        task_annotations={"ordinary.limited": {"rate_limit": "1/m"}},
        accept_content=["json", "pickle"],
        result_accept_content=["json", "pickle"],
        result_expires=KEPT_S,
        task_send_sent_event=True,
        task_track_started=True,
        worker_redirect_stdouts=False,
    )
    if lanes:
        install(app, read_settings())

    @app.task(shared=False, name="ordinary.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    @app.task(shared=False, name="ordinary.total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(shared=False, name="ordinary.fail")
    def fail(*args: Any) -> None:
        raise Failed("no")

    @app.task(shared=False, name="ordinary.note")
    def note(name: str, *args: Any) -> None:
        _note(name, len(args))

    @app.task(shared=False, name="ordinary.early")
    def early(name: str) -> None:
        _held(name)

    @app.task(shared=False, name="ordinary.late", acks_late=True)
    def late(name: str) -> None:
        _held(name)

    @app.task(shared=False, name="ordinary.requeued", acks_late=True, bind=True)
    def requeued(self: Any, name: str) -> bool:
        redelivered = bool(self.request.delivery_info.get("redelivered"))
        _note(name, redelivered)
        if not redelivered:
            raise Reject("not now", requeue=True)
        return redelivered

    def _dies(self: Any, name: str) -> str:
        redelivered = self.request.delivery_info.get("redelivered")
        _note(name, bool(redelivered))
        if not redelivered:
            os.kill(os.getpid(), signal.SIGKILL)
        return "lived"

    app.task(shared=False, name="ordinary.dies", bind=True)(_dies)
    app.task(shared=False, name="ordinary.dies_late", bind=True, acks_late=True, reject_on_worker_lost=True)(_dies)

    @app.task(shared=False, name="ordinary.pickled", serializer="pickle")
    def pickled(things: set[int]) -> list[Any]:
        return [type(things).__name__, sorted(things)]

    @app.task(shared=False, name="ordinary.limited")
    def limited(name: str) -> None:
        _note(name, "ran")

    @app.task(shared=False, name="ordinary.where", bind=True)
    def where(self: Any) -> list[Any]:
        info = self.request.delivery_info
        return [info["exchange"], info["routing_key"], info["priority"], bool(info["redelivered"])]

    @app.task(shared=False, name="ordinary.becomes", bind=True)
    def becomes(self: Any, x: int) -> None:
        raise self.replace(group(add.s(x, n) for n in range(3)))

    @app.task(shared=False, name="ordinary.asked", bind=True)
    def asked(self: Any, x: int) -> list[Any]:
        return [x, self.request.root_id == self.request.id, bool(self.request.parent_id), self.request.headers]

    @app.task(shared=False, name="ordinary.retries", bind=True, max_retries=2)
    def retries(self: Any, name: str, how: str) -> int:
        _note(name, self.request.retries)
        if how == "never":
            raise self.retry(countdown=0.05)
        if how == "exc":
            raise self.retry(countdown=0.05, exc=Failed("no"))
        if self.request.retries < 2:
            raise self.retry(countdown=0.05)
        return int(self.request.retries)

    @app.task(
        shared=False, name="ordinary.auto", autoretry_for=(Failed,), max_retries=1, default_retry_delay=0.05, bind=True
    )
    def auto(self: Any, name: str) -> None:
        _note(name, self.request.retries)
        raise Failed("no")

    @app.task(shared=False, name="ordinary.soft", soft_time_limit=1)
    def soft() -> str:
        try:
            time.sleep(60)
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return "too long"

    @app.task(shared=False, name="ordinary.hard", time_limit=1)
    def hard() -> None:
        time.sleep(60)

    return app


if os.environ.get("ORDINARY_URL"):
    app = make(os.environ["ORDINARY_URL"], lanes=bool(os.environ.get("ORDINARY_LANES")))
