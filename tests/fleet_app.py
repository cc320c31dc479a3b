"""Tasks for the fleet of the tests: an app that a team had, with `install(app)`."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from ratelimit_worker import timeout_s
from ratelimit_worker.app import install, llm_task
from ratelimit_worker.calls import Response
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import MalformedResponse, ServerError
from ratelimit_worker.providers import openai
from ratelimit_worker.providers.http import ProviderRefused
from ratelimit_worker.worker.installed import services_of


# shared=False: each reload of this module makes an app of its own, which must not get the tasks of the last one
def make() -> Celery:
    """The app on the broker that the environment names."""
    made = Celery("fleet", broker=os.environ.get("MAISD_REDIS_URL"), backend=os.environ.get("MAISD_REDIS_URL"))
    made.conf.update(task_default_queue="fleet", worker_redirect_stdouts=False)
    if prefix := os.environ.get("FLEET_PREFIX"):
        made.conf.broker_transport_options = {"global_keyprefix": prefix}
    if told := json.loads(os.environ.get("FLEET_TLS") or "null"):
        made.conf.broker_use_ssl = told
    return install(made, read_settings())


app = make()


def _write(name: str, what: str) -> None:
    with (Path(os.environ["FLEET_FOLDER"]) / name).open("a") as file:
        file.write(f"{time.time():.6f} {what}\n")


def _tried(name: str) -> int:
    """How often this was asked before; each that asks gets another number, whatever process or thread it is in."""
    with (Path(os.environ["FLEET_FOLDER"]) / name).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        file.seek(0)
        tries = len(file.readlines())
        file.write(f"{time.time():.6f} {tries}\n")
        return tries


@app.task(shared=False)
def add(x: int, y: int) -> int:
    """An ordinary task: no call."""
    return x + y


@llm_task(app=app, shared=False, cache=False, lane="free")
def echo(value: Any, sleep_s: float = 0.0) -> Any:
    """Gives back what it got."""
    if sleep_s:
        time.sleep(sleep_s)
    return value


@llm_task(app=app, shared=False, cache=False, lane="where")
def where() -> str:
    """The namespace of the deployment that runs it."""
    return services_of(app).server.namespace


@llm_task(app=app, shared=False, cache=False, lane="free")
def double(value: int, more: int = 0) -> int:
    """Twice the value."""
    return value * 2 + more


@llm_task(app=app, shared=False, cache=False, lane="free")
def total(values: list[int]) -> int:
    """The sum, as the body of a chord."""
    return sum(values)


@llm_task(app=app, shared=False, cache=False, lane="stamp")
def stamp(what: str, sleep_s: float = 0.0, name: str = "stamps") -> str:
    """Writes when it ran."""
    _write(name, what)
    if sleep_s:
        time.sleep(sleep_s)
    return what


@llm_task(app=app, shared=False, cache=False, lane="free", bind=True, max_retries=3)
def flaky(self: Any, fail_times: int) -> int:
    """Retries itself, Celery's way, until it has failed so often."""
    _write("flaky", str(self.request.retries))
    if self.request.retries < fail_times:
        raise self.retry(countdown=0.05, exc=ValueError("not yet"))
    return int(self.request.retries)


@llm_task(
    app=app,
    shared=False,
    cache=False,
    lane="free",
    autoretry_for=(KeyError,),
    retry_backoff=0.05,
    retry_jitter=False,
    max_retries=2,
)
def auto(fail_times: int) -> int:
    """Retried by Celery for KeyError."""
    tries = _tried("auto")
    if tries < fail_times:
        raise KeyError("not yet")
    return tries


@llm_task(app=app, shared=False, cache=False, lane="sick")
def sick(fail_times: int, name: str = "sick") -> int:
    """A provider that fails so often before it answers."""
    tries = _tried(name)
    if tries < fail_times:
        raise ServerError("HTTP 500", 500)
    return tries


@llm_task(app=app, shared=False, cache=False, lane="free", classify=lambda error: str(error.args[0]))
def ruled(category: str, fail_times: int) -> int:
    """Fails so often with an exception of the user's own, for which its rule has a category."""
    name = f"ruled-{category}"
    tries = _tried(name)
    if tries < fail_times:
        raise LookupError(category)
    return tries


@llm_task(app=app, shared=False, cache=False, lane="free")
def garbled() -> None:
    """A provider whose answer cannot be read, ever."""
    _write("garbled", "x")
    raise MalformedResponse("no JSON", 200)


@llm_task(app=app, shared=False, cache=False, lane="free")
def broken(secret: str) -> None:
    """Fails with an exception of the user's own."""
    raise LookupError(f"no such thing in {len(secret)} letters")


@llm_task(app=app, shared=False, cache=False, lane="free")
def leaks(prompt: str) -> None:
    """Fails with an exception of the user's own that repeats the prompt, and so does its cause."""
    try:
        raise KeyError(prompt)
    except KeyError as error:
        raise LookupError(f"cannot say {prompt}") from error


@llm_task(app=app, shared=False, cache=False, lane="hush")
def hush(prompt: str, fail_times: int = 0, name: str = "hush") -> str:
    """Takes a prompt and says nothing of it; may fail first."""
    tries = _tried(name)
    if tries < fail_times:
        raise ServerError("HTTP 500", 500)
    return "hushed"


@llm_task(app=app, shared=False, cache=False, lane="hush")
def refused(prompt: str, key: str) -> None:
    """A provider that repeats prompt and key in its refusal."""
    body = {"error": {"message": f"cannot say {prompt} with {key}", "type": "invalid_request_error", "code": key}}
    raise ProviderRefused(Response(status=400, headers={"x-request-id": "r"}, body=body))


@llm_task(app=app, shared=False, cache=False, lane="chat")
def chat(what: Any) -> Any:
    """One request to the provider that OPENAI_BASE_URL names."""
    body = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": f"question {what}"}]}
    return openai.request(openai.endpoint(os.environ), openai.CHAT_PATH, body).body["id"]


@llm_task(app=app, shared=False, cache=False, lane="free")
def asked() -> int:
    """Seconds that its attempt may take, as its own client would ask."""
    return round(timeout_s())


@llm_task(app=app, shared=False, lane="free")
def shared(what: Any, fail: str = "", name: str = "shared") -> Any:
    """A call that shares its answer; writes that it ran."""
    _write(name, repr(what))
    if fail == "user":
        raise LookupError("no such thing")
    if fail:
        raise ProviderRefused(Response(status=400, headers={}, body={"error": {"message": fail}}))
    return [what, len(_read(name))]


@llm_task(app=app, shared=False, lane="free")
def shared_twice(what: str) -> int:
    """Shares its answer; its first run, which writes the process, has none before there is a second."""
    _write("twice", str(os.getpid()))
    while len(_read("twice")) == 1:
        time.sleep(0.02)
    return len(_read("twice"))


@llm_task(app=app, shared=False, lane="free")
def finished(reason: str) -> dict[str, Any]:
    """An answer that ended for this reason."""
    _write("finished", repr(reason))
    return {"choices": [{"finish_reason": reason, "message": {"content": "hal"}}]}


@llm_task(app=app, shared=False, lane="free", bind=True, max_retries=3)
def shared_flaky(self: Any, fail_times: int) -> int:
    """Shares its answer, and retries itself Celery's way first."""
    _write("shared_flaky", str(self.request.retries))
    if self.request.retries < fail_times:
        raise self.retry(countdown=0.05, exc=ValueError("not yet"))
    return int(self.request.retries)


@app.task(shared=False)
def total_plain(values: list[int]) -> int:
    """The sum, as an ordinary task."""
    return sum(values)


@llm_task(app=app, shared=False, cache=False, lane="poison")
def suicide(what: str = "x", after_s: float = 0.0) -> None:
    """Kills its worker."""
    _write("suicide", what)
    time.sleep(after_s)
    os.kill(os.getpid(), 9)


@llm_task(app=app, shared=False, lane="poison")
def shared_suicide() -> None:
    """Kills its worker; those that are the same follow it."""
    _write("suicide", "shared")
    time.sleep(0.2)
    os.kill(os.getpid(), 9)


@llm_task(app=app, shared=False, cache=False, lane="free")
def meet(others: int, name: str) -> None:
    """Ends when so many run at once."""
    _write(name, "x")
    until = time.monotonic() + 60
    while len(_read(name)) < others:
        if time.monotonic() > until:
            raise LookupError(f"{len(_read(name))} of {others} came")
        time.sleep(0.02)


@app.task(shared=False)
def note(*args: Any) -> None:
    """An ordinary callback or errback."""
    _write("notes", repr(len(args)))


def _read(name: str) -> list[str]:
    path = Path(os.environ["FLEET_FOLDER"]) / name
    return path.read_text().splitlines() if path.exists() else []


if _DIES := os.environ.get("RLW_TEST_DIE_AFTER_SETTLE"):
    # The one fault that cannot be timed from outside: the worker dies when the answer is safe, before the ack. The call
    # is "settled" by then, or "freed" too.
    from ratelimit_worker.contracts.lesson import Settlement, Stored
    from ratelimit_worker.stores.lanes import Lanes

    _settle, _finish = Lanes.settle, Lanes.finish

    def _settle_and_die(self: Lanes, *args: Any, **kwargs: Any) -> bool:
        _settle(self, *args, **kwargs)
        os.kill(os.getpid(), 9)
        return True

    def _finish_and_die(self: Lanes, settlement: Settlement, result: Stored, frees: bool) -> bool:
        _finish(self, settlement, result, frees and _DIES == "freed")
        os.kill(os.getpid(), 9)
        return True

    Lanes.settle, Lanes.finish = _settle_and_die, _finish_and_die  # type: ignore[method-assign]


@app.task(shared=False, bind=True, acks_late=True)
def rejects(self: Any, value: int) -> None:
    """An ordinary task that no worker shall have again."""
    raise Reject(str(value), requeue=False)


@app.task(shared=False, bind=True)
def replaces(self: Any, value: int) -> Any:
    """An ordinary task that puts another in its place, with what was to come after it."""
    return self.replace(add.s(value, 1))
