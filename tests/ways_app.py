"""Calls and ordinary tasks for every way that Celery has to send, call or consume them.

The first argument of each is the name of the file in which it notes the id of the call that it runs for: a run whose
id has no attempt on record went past its lane.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, Task, chain, group, signals
from celery.contrib.abortable import AbortableTask
from celery.worker.request import Request
from kombu import Queue
from kombu.common import Broadcast

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings
from tests.fleet_app import _read, _write

QUEUE = "ways"


def make() -> Celery:
    """The app on the broker that the environment names."""
    url = os.environ.get("MAISD_REDIS_URL")
    made = Celery("ways", broker=url, backend=url)
    made.conf.update(
        task_default_queue=QUEUE,
        worker_redirect_stdouts=False,
        task_queues=[Queue(QUEUE), Queue("side", routing_key="side"), Broadcast("everybody")],
        task_routes={"ways.routed": {"queue": "side"}},
        beat_schedule_filename=str(Path(os.environ.get("FLEET_FOLDER", "")) / "schedule"),
    )
    if os.environ.get("WAYS_BEAT"):
        entry = {"task": "ways.ask", "schedule": 0.2, "args": ("beat", 1)}
        made.conf.beat_schedule = {"often": entry}
    return install(made, read_settings())


app = make()
CALL: dict[str, Any] = {"app": app, "shared": False, "cache": False, "lane": "ways", "bind": True}


def _ran(task: Any, name: str, what: Any) -> None:
    _write(f"runs-{name}", f"{task.request.id} {what}")


@llm_task(**CALL, name="ways.ask")
def ask(self: Any, name: str, n: int = 0, *more: Any) -> int:
    """The call."""
    _ran(self, name, n)
    return n


@llm_task(**CALL, name="ways.fails")
def fails(self: Any, name: str) -> None:
    """A call that fails, for its errback."""
    _ran(self, name, "fails")
    raise LookupError("no such thing")


@llm_task(**CALL, name="ways.passes")
def passes(self: Any, n: int, name: str) -> int:
    """A call in the middle of a chain: what came before is its first argument."""
    _ran(self, name, n)
    return n


@llm_task(**CALL, name="ways.after")
def after(self: Any, numbers: Any, name: str) -> int:
    """A call as the body of a chord."""
    _ran(self, name, numbers)
    return sum(numbers)


@llm_task(**CALL, name="ways.routed")
def routed(self: Any, name: str) -> str:
    """A call that a route sends elsewhere; says where it was read."""
    _ran(self, name, "routed")
    return str(self.request.delivery_info["routing_key"])


@llm_task(**CALL, name="ways.becomes")
def becomes(self: Any, name: str, what: str) -> None:
    """A call in whose place others come."""
    _ran(self, name, "becomes")
    these: dict[str, Any] = {
        "call": lambda: ask.s(name, 1),
        "group": lambda: group(ask.s(name, n) for n in range(3)),
        "chain": lambda: chain(ask.s(name, 2), passes.s(name)),
    }
    raise self.replace(these[what]())


@llm_task(**CALL, name="ways.grows")
def grows(self: Any, name: str, n: int) -> int:
    """A member of a chord that adds another to it."""
    _ran(self, name, n)
    self.add_to_chord(ask.s(name, 10 * n))
    return n


@llm_task(**CALL, name="ways.told")
def told(self: Any, name: str) -> dict[str, Any]:
    """What a call's request says of how it was sent."""
    _ran(self, name, "told")
    self.update_state(state="PROGRESS", meta={"done": 1})
    request = self.request
    names = ("shadow", "reply_to", "correlation_id", "root_id", "parent_id", "group", "timelimit", "stamped_headers")
    return {name: getattr(request, name, None) for name in names} | {"mine": (request.headers or {}).get("mine")}


@llm_task(**CALL, name="ways.again", max_retries=2)
def again(self: Any, name: str) -> int:
    """A call that sends itself again."""
    _ran(self, name, self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=0.05)
    return int(self.request.retries)


@llm_task(**CALL, name="ways.abortable", base=AbortableTask)
def abortable(self: Any, name: str) -> bool:
    """A call of Celery's class of tasks that can be told to stop."""
    _ran(self, name, "abortable")
    return bool(self.is_aborted())


class OwnRequest(Request):
    """What a worker makes of a message, as a team has it: notes that it was taken."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Celery's hook, in the worker's main process."""
        _write("accepted", f"OwnRequest {self.id}")
        super().on_accepted(pid, time_accepted)


class Requested(Task):
    """A class with requests of its own."""

    Request = OwnRequest


@llm_task(**CALL, name="ways.requested", base=Requested)
def requested(self: Any, name: str) -> str:
    """Says what kind of request the worker has made of it."""
    _ran(self, name, "requested")
    taken = {task_id: kind for _, kind, task_id in (line.split(" ") for line in _read("accepted"))}
    return str(taken[self.request.id])


class Tenanted(Task):
    """A team's class that puts something into each call; it takes by place what most such classes do."""

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Celery's, with a tenant."""
        return super().apply_async(args, {**(kwargs or {}), "tenant": "acme"}, **options)


@llm_task(**CALL, name="ways.tenanted", base=Tenanted)
def tenanted(self: Any, name: str, tenant: str = "") -> str:
    """Says for whom it runs."""
    _ran(self, name, tenant)
    return tenant


@llm_task(**CALL, name="ways.lane_of")
def lane_of(self: Any, name: str) -> list[str]:
    """Lane and class that it was sent with."""
    plan = self.request.get("rlw")
    _ran(self, name, plan["lane"])
    return [plan["lane"], plan["class"]]


@llm_task(**CALL, name="ways.awaited")
async def awaited(self: Any, name: str) -> None:
    """What a worker of Celery's cannot run."""
    _ran(self, name, "awaited")


@llm_task(**CALL, name="ways.heard")
def heard(self: Any, name: str, *, prompt: str = "") -> None:
    """A call of which handlers of signals note what they are told."""
    _ran(self, name, prompt)


@signals.task_prerun.connect(sender=heard, weak=False)
@signals.task_postrun.connect(sender=heard, weak=False)
def _hears(args: Any = None, kwargs: Any = None, **_: Any) -> None:
    _write("heard", repr((list(args), dict(kwargs))))


def recovers(sent: Any) -> str:
    """The name of the error with which a call ends."""
    return type(sent.get(timeout=120, propagate=False)).__name__


@app.task(shared=False, name="ways.plain")
def plain(n: int = 0) -> int:
    """An ordinary task."""
    return n


@app.task(shared=False, name="ways.sums")
def sums(numbers: list[int]) -> int:
    """An ordinary body of a chord."""
    return sum(numbers)


@app.task(shared=False, name="ways.sends", bind=True)
def sends(self: Task, name: str) -> list[str]:
    """An ordinary task that sends calls from within a worker."""
    return [ask.delay(name, n).id for n in range(2)]


@app.task(shared=False, name="ways.note")
def note(*args: Any) -> None:
    """An ordinary callback or errback."""
    _write("notes", repr(len(args)))
