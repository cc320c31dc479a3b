"""Do many threads ask in one exchange, each with its own answer, in the order in which they asked? On a real server."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores import together as module
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.exchange import Line
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.stores.together import Dialogue, Together
from tests.conftest import wait_for
from tests.fleet import Valkey


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    """A server of its own, which a test may stop for a while."""
    valkey = Valkey(tmp_path)
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture
def client(server: Valkey) -> Iterator[redis.Redis]:
    """As the product makes it."""
    made = RedisServer(server.url).client()
    yield made
    made.close()


class Held:
    """The first exchange waits until the test lets it go; each is noted by its number of commands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()

        behind = Line.answers

        def held(line: Line, commands: Any) -> list[Any]:
            self.sizes.append(len(commands))
            if len(self.sizes) == 1:
                self.begun.set()
                self.go.wait()
            return behind(line, commands)

        monkeypatch.setattr(Line, "answers", held)


def waiting(together: Together) -> int:
    return len(together._waiting)


def test_who_comes_meanwhile_goes_with_the_next_exchange(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty threads while the first asks: one exchange for them, and each has the answer to its own question."""
    held, together = Held(monkeypatch), Together(client)
    with ThreadPoolExecutor(21) as pool:
        first = pool.submit(together.ask, ("ECHO", "first"))
        held.begun.wait()
        assert together.busy
        others = [pool.submit(together.ask, ("ECHO", n), ("ECHO", -n)) for n in range(20)]
        wait_for(lambda: waiting(together) == 20, what="all of them wait")
        held.go.set()
        assert first.result() == [b"first"]
        assert [one.result() for one in others] == [[b"%d" % n, b"%d" % -n] for n in range(20)]
    assert held.sizes == [1, 40]
    assert not together.busy


def test_more_than_go_at_once_go_one_batch_after_the_other(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order; nobody is left behind when the one that asked for all has its answer."""
    monkeypatch.setattr(module, "AT_ONCE", 3)
    held, together = Held(monkeypatch), Together(client)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(together.ask, ("INCR", "n"))]
        held.begun.wait()
        for number in range(7):
            asked.append(pool.submit(together.ask, ("INCR", "n")))
            wait_for(lambda number=number: waiting(together) == number + 1, what="it waits")  # type: ignore[misc]
        held.go.set()
        assert [one.result() for one in asked] == [[n] for n in range(1, 9)]
    assert held.sizes == [1, 3, 3, 1]


def test_what_rides_is_done_before_what_is_asked_after_it(client: redis.Redis) -> None:
    """Nobody waits for it, and who asks next finds it done."""
    together, told = Together(client), list[Exception | None]()
    together.ride([("SET", "a", "1"), ("INCR", "a")], told.append)
    assert told == []
    assert together.ask(("GET", "a")) == [b"2"]
    assert told == [None]


def test_what_rides_is_done_when_it_is_flushed(client: redis.Redis) -> None:
    """Where nobody asks."""
    together, told = Together(client), list[Exception | None]()
    together.flush()  # nothing rides
    together.ride([("SET", "a", "1")], told.append)
    together.flush()
    assert (told, client.get("a")) == ([None], b"1")


def test_a_refusal_is_its_own_askers(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one exchange one command is refused: the others have their answers; who rides hears of his own."""
    held, together, told = Held(monkeypatch), Together(client), list[Exception | None]()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together.ask, ("PING",))
        held.begun.wait()
        wrong = pool.submit(together.ask, ("SET", "b", "1"), ("INCR", "b", "2"))
        right = pool.submit(together.ask, ("ECHO", "right"))
        wait_for(lambda: waiting(together) == 2, what="both wait")
        together.ride([("INCR", "a", "b", "c")], told.append)
        held.go.set()
        assert first.result() == [b"PONG"]
        assert right.result() == [b"right"]
        with pytest.raises(ResponseError):
            wrong.result()
    together.flush()
    assert isinstance(told[0], ResponseError)


def test_a_broken_connection_is_everybodys_who_asked_with_it(client: redis.Redis, server: Valkey) -> None:
    """They hear of it, and who asks afterwards has an answer."""
    together, told = Together(client), list[Exception | None]()
    together.ask(("PING",))
    server.stop()
    together.ride([("SET", "a", "1")], told.append)
    with pytest.raises((redis.RedisError, OSError)):
        together.ask(("PING",))
    assert isinstance(told[0], redis.RedisError | OSError)
    server.start()
    wait_for(lambda: can_be_asked(together), what="the server is back")


def can_be_asked(together: Together) -> bool:
    """Whether it has an answer."""
    try:
        return bool(together.ask(("PING",)))
    except (redis.RedisError, OSError):
        return False


def test_who_has_no_time_left_leaves_and_is_not_asked_for(client: redis.Redis, server: Valkey) -> None:
    """Behind one that waits for a frozen server: it decides in its own time, and what it asked is never sent."""
    together = Together(client)
    together.ask(("SET", "a", "1"))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(together.ask, ("GET", "a"))
            wait_for(lambda: together._led and not waiting(together), what="the first is on its way")
            with deciding(0.05), pytest.raises(StoreUnavailable):
                together.ask(("INCR", "a"))
            assert waiting(together) == 0
            os.kill(server.pid, signal.SIGCONT)
            assert first.result() == [b"1"]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert together.ask(("GET", "a")) == [b"1"]
    assert not together._led


def test_dialogues_share_their_exchanges(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes on with its own replies; one that is refused, or fails by itself, ends alone."""
    sizes: list[int] = []

    behind = Line.answers

    def counted(line: Line, commands: Any) -> list[Any]:
        sizes.append(len(commands))
        return behind(line, commands)

    monkeypatch.setattr(Line, "answers", counted)

    def twice(word: str) -> Dialogue[bytes]:
        first, again = yield [("ECHO", word), ("ECHO", word * 2)]
        (last,) = yield [("ECHO", first + again)]
        return bytes(last)

    def once() -> Dialogue[bytes]:
        return bytes((yield [("ECHO", "once")])[0])

    def refused(minds: bool) -> Dialogue[str]:
        try:
            yield [("SET", "b", "1"), ("INCR", "b", "2")]
        except ResponseError:
            if minds:
                raise
        return "goes on"

    def wrong() -> Dialogue[None]:
        raise ValueError("wrong")
        yield []

    told: list[Dialogue[Any]] = [twice("a"), once(), refused(True), refused(False), wrong(), twice("b")]
    came = Together(client).talk(told)
    assert [one.value for one in came] == [b"aaa", b"once", None, "goes on", None, b"bbb"]
    assert [type(one.error) for one in came if one.error is not None] == [ResponseError, ValueError]
    assert sizes == [2 + 1 + 2 + 2 + 2, 2]
    assert Together(client).talk([]) == []


def test_a_broken_connection_ends_all_dialogues_and_what_rides_is_told(client: redis.Redis, server: Valkey) -> None:
    """Each hears of it at its place, and may deal with it."""
    together = Together(client)
    together.ask(("PING",))

    def asks(minds: bool) -> Dialogue[str]:
        try:
            yield [("PING",)]
        except (redis.RedisError, OSError):
            if minds:
                raise
            return "away"
        return "there"

    assert [one.value for one in together.talk([asks(True), asks(False)])] == ["there", "there"]
    server.stop()
    first, second = together.talk([asks(True), asks(False)])
    assert isinstance(first.error, redis.RedisError | OSError)
    assert second.get() == "away"
    with pytest.raises((redis.RedisError, OSError)):
        first.get()


def test_many_threads_for_long_each_hear_their_own(client: redis.Redis) -> None:
    """16 threads, 200 questions each, with what rides among them: every answer is its asker's, and nothing is lost."""
    together, ridden = Together(client), list[Exception | None]()

    def ask(thread: int) -> bool:
        for number in range(200):
            together.ride([("INCR", "ridden")], ridden.append)
            if together.ask(("ECHO", f"{thread}/{number}")) != [f"{thread}/{number}".encode()]:
                return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(16)))
    together.flush()
    assert client.get("ridden") == b"3200"
    assert ridden == [None] * 3200
    assert not together._led
    assert waiting(together) == 0
