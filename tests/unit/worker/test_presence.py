"""A worker says that it leaves; nothing that it decided before comes after that."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ratelimit_worker.config import read_settings
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.presence import Presence


@pytest.fixture
def presence(monkeypatch: pytest.MonkeyPatch) -> Presence:
    """Of a worker of two slots. Redis is not asked."""
    app = SimpleNamespace(tasks={})
    consumer: Any = SimpleNamespace(
        hostname="w@host", pool=SimpleNamespace(), app=app, connection=None, task_consumer=None
    )
    made = Presence(Services(read_settings(), RedisServer("redis://127.0.0.1:1/0")), consumer, 30.0)
    monkeypatch.setattr(made, "slots", lambda: 0 if made.closing else 2)
    monkeypatch.setattr(made.watch, "tell", lambda: None)
    return made


def test_the_last_beat_is_the_one_that_leaves(presence: Presence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another is on its way in the worker's thread: its slots would count for as long as that beat lives."""
    heard: list[int] = []
    on_its_way, goes_on = threading.Event(), threading.Event()

    def beat(worker: str, slots: int, *more: Any) -> int:
        if not heard and not on_its_way.is_set():
            on_its_way.set()
            assert goes_on.wait(60.0)
        heard.append(slots)
        return slots

    monkeypatch.setattr(presence.lanes, "beat", beat)
    thread = threading.Thread(target=presence.beat, daemon=True)
    thread.start()
    assert on_its_way.wait(60.0)
    leaves = threading.Thread(target=presence.leave, daemon=True)
    leaves.start()
    leaves.join(0.2)  # it waits, or this test cannot tell the one from the other
    goes_on.set()
    thread.join(60.0)
    leaves.join(60.0)
    presence.beat()
    assert heard == [2, 0]
