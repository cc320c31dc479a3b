"""One app that this version and an earlier one can both load, as worker and as producer: it imports nothing of `tests`.

    python -m tests.two_versions_app PART…    # what each part gives, as a list of JSON

A part is what calls are sent (`running`, `waiting`, `stream`), or the words of a command of `ratelimit-worker`.
`SHOP_WHO` names the version in what its tasks write.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery, chain

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.cli import main
from ratelimit_worker.errors import ServerError

url = os.environ["MAISD_REDIS_URL"]
app = Celery("shop", broker=url, backend=url)
app.conf.update(task_default_queue="shop", worker_redirect_stdouts=False)
install(app)
FOLDER = Path(os.environ["FLEET_FOLDER"])


def _ran(name: str, prompt: str) -> int:
    """Write that a task ran → how often it has run with this prompt."""
    with (FOLDER / "runs").open("a") as file:
        file.write(f"{time.time():.6f} {os.environ['SHOP_WHO']} {name} {prompt}\n")
    return (FOLDER / "runs").read_text().count(f" {name} {prompt}\n")


@llm_task(app=app, shared=False, name="shop.answer", lane="shop", cache=False)
def answer(prompt: str) -> str:
    """The usual call."""
    _ran("answer", prompt)
    time.sleep(0.05)
    return f"answer to {prompt}"


@llm_task(app=app, shared=False, name="shop.same", lane="held")
def same(prompt: str) -> str:
    """A call that shares its answer, held until the file `open` is there."""
    _ran("same", prompt)
    _until_open()
    return f"answer to {prompt}"


@llm_task(app=app, shared=False, name="shop.flaky", lane="weather", cache=False)
def flaky(prompt: str) -> str:
    """The provider fails once."""
    if _ran("flaky", prompt) == 1:
        raise ServerError("HTTP 500", 500)
    return f"answer to {prompt}"


@llm_task(app=app, shared=False, name="shop.held", lane="held", cache=False)
def held(prompt: str) -> str:
    """Runs until the file `open` is there."""
    _ran("held", prompt)
    _until_open()
    return f"answer to {prompt}"


def _until_open() -> None:
    while not (FOLDER / "open").exists():
        time.sleep(0.02)


def running() -> dict[str, str]:
    """Calls that are under way when the worker dies: two that run, two followers of another, one that has failed."""
    made: list[tuple[Any, str]] = [(held.delay(f"h{number}"), f"h{number}") for number in range(2)]
    made += [(same.delay("s"), "s") for _ in range(3)]
    made.append((flaky.delay("f"), "f"))
    return {result.id: f"answer to {prompt}" for result, prompt in made}


def waiting() -> dict[str, str]:
    """Calls that nobody takes while their lane is halted: of classes and tenants, due later, a chain, by name."""
    made = {}
    for number in range(12):
        options: dict[str, Any] = {"tenant": f"t{number % 3}", "priority": ("high", "normal", "low")[number % 3]}
        made[answer.apply_async((f"w{number}",), **options).id] = f"w{number}"
    made[answer.apply_async(("later",), countdown=1.0, deadline_s=600.0).id] = "later"
    made[chain(answer.si("first"), answer.si("second")).delay().id] = "second"
    made[app.send_task("shop.answer", ("by name",), lane="shop").id] = "by name"
    return {call_id: f"answer to {prompt}" for call_id, prompt in made.items()}


def stream() -> dict[str, str]:
    """40 calls, for a deploy under load."""
    prompts = [f"{os.environ['SHOP_WHO']}{number}" for number in range(40)]
    return {answer.delay(prompt).id: f"answer to {prompt}" for prompt in prompts}


def command(words: str) -> str:
    """What the command prints."""
    said = io.StringIO()
    sys.argv = ["ratelimit-worker", *words.split()]
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    return said.getvalue()


if __name__ == "__main__":
    sends = {"running": running, "waiting": waiting, "stream": stream}
    print(json.dumps([sends[part]() if part in sends else command(part) for part in sys.argv[1:]]))
