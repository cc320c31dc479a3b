"""Functions for the tests of shared in-process calls; what they say on disk counts their runs over all processes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratelimit_worker import optimize_api_call
from ratelimit_worker.errors import InvalidRequest


def said(what: object) -> list[str]:
    """A line for each run with this."""
    path = _path(what)
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def held(what: object) -> Iterator[None]:
    """Runs with this go on for as long as that lasts."""
    _hold(what).touch()
    try:
        yield
    finally:
        _hold(what).unlink()


def ask(what: Any, sleep_s: float = 0.0, **more: Any) -> list[Any]:
    """Says that it ran, and gives back which run it was."""
    number = _say(what)
    _busy(what, sleep_s)
    return [what, number]


async def ask_async(what: Any, sleep_s: float = 0.0) -> list[Any]:
    """The same as a coroutine."""
    import asyncio

    number = _say(what)
    await asyncio.sleep(sleep_s)
    while _hold(what).exists():
        await asyncio.sleep(0.02)
    return [what, number]


def once_gated(what: str) -> list[Any]:
    """Its first run waits until somebody opens the gate."""
    number = _say(what)
    while number == 1 and not (_path(what).parent / "gate").exists():
        time.sleep(0.02)
    return [what, number]


class Answer:
    """As an SDK answers: no JSON."""

    def __init__(self, number: int) -> None:
        self.number = number


def ask_sdk(what: str, sleep_s: float = 0.0) -> Answer:
    """Answers with an object."""
    number = _say(what)
    _busy(what, sleep_s)
    return Answer(number)


_company = threading.Barrier(5)


def ask_sdk_in_company(what: str) -> Answer:
    """The same; the runs after the first wait for each other, in vain where they run one after another."""
    number = _say(what)
    if number == 1:
        _busy(what, 0.0)
    else:
        _company.wait(timeout=120)
    return Answer(number)


def pair(what: str) -> tuple[str, int]:
    """Answers with a tuple, which JSON would make a list."""
    return what, _say(what)


class NotFoundError(Exception):
    """As an SDK says 404."""

    status_code = 404


def refused_by_sdk(what: str, sleep_s: float = 0.0) -> None:
    """Fails as an SDK does."""
    _say(what)
    _busy(what, sleep_s)
    raise NotFoundError(what)


def refused(what: str, sleep_s: float = 0.0) -> None:
    """Fails with an error of ours."""
    _say(what)
    _busy(what, sleep_s)
    raise InvalidRequest("HTTP 400", 400)


def made_for(factor: int) -> Callable[[int], int]:
    """A function made inside another."""

    def inner(number: int) -> int:
        return factor * number if str(number) in {"1", "2", "3", "4"} else 0

    return inner


class Client:
    """As an SDK's: it has no value of its own."""

    __slots__ = ("__weakref__", "socket")


class Pool:
    """What a client holds."""

    def __init__(self) -> None:
        self.client = Client()


class Model:
    """A model with its settings and its client."""

    def __init__(self, name: str, pool: Pool | None = None) -> None:
        self.name, self.pool = name, pool

    def invoke(self, what: str) -> list[Any]:
        """One request."""
        return [self.name, what, _say(what)]


class ChattyClient:
    """As an SDK's: it counts, and builds what it needs when it is first used."""

    def __init__(self, key: str = "k", pool: Pool | None = None) -> None:
        self.key, self.pool, self.sent = key, pool, 0

    def post(self, what: str) -> int:
        """One request."""
        self.pool = self.pool or Pool()
        self.sent += 1
        return _say(what)


class Agent:
    """As a team's: one client from the start, one that is made when it is first needed."""

    def __init__(self, temperature: float = 0.1, key: str = "k") -> None:
        self.temperature, self.client = temperature, ChattyClient(key)
        self._other: ChattyClient | None = None

    @optimize_api_call(func_name="agent", context="agents", lane="free")
    def ask(self, what: str) -> list[Any]:
        """Counts its runs."""
        self._other = self._other or ChattyClient("later")
        return [what, self.client.post(what)]

    @optimize_api_call(func_name="agent by key", lane="free", cache_key=lambda self, what: what)
    def ask_by_key(self, what: str) -> list[Any]:
        """The same, by its question alone."""
        return [what, self.client.post(what)]


@dataclass
class Settings:
    """A record with a method."""

    temperature: float

    def hot(self) -> bool:
        """A method of a record."""
        return self.temperature > 0.5


class Options:
    """A record by another name."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature


class Analyst:
    """As a team's: methods that call a model which they hold."""

    def __init__(self, model: Model, style: str = "short") -> None:
        self.model, self.style = model, style

    @optimize_api_call(func_name="analysis", context="reports", context_tags=["q3"], lane="free")
    def analyze(self, what: str) -> list[Any]:
        """Counts its runs."""
        return [self.model.name, self.style, _say(what)]

    @optimize_api_call(func_name="outer", context="reports", lane="one")
    def outer(self, what: str) -> list[Any]:
        """Makes a call inside its own."""
        return ["outer", _say(what), self.inner(what)]

    @optimize_api_call(func_name="inner", context="reports", lane="one")
    def inner(self, what: str) -> list[Any]:
        """What `outer` calls."""
        return ["inner", _say(f"{what} inside")]


@optimize_api_call(func_name="itself", lane="one")
def calls_itself(what: str) -> list[Any]:
    """Calls itself with the same arguments, once."""
    number = _say(what)
    return [number, *(calls_itself(what) if number == 1 else [])]


def _path(what: object) -> Path:
    name = "".join(letter for letter in json.dumps(what) if letter.isalnum())
    return Path(os.environ["FLEET_FOLDER"]) / f"said-{name}"


def _say(what: object) -> int:
    with _path(what).open("a") as file:
        file.write("x\n")
    return len(said(what))


def _hold(what: object) -> Path:
    return _path(f"hold {what}")


def _busy(what: object, sleep_s: float) -> None:
    time.sleep(sleep_s)
    while _hold(what).exists():
        time.sleep(0.02)
