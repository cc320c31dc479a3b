"""Modes on a real worker and a real provider: by hand from the command line, and by the law."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.simulate import HeaderStyle, Scenario, Simulator
from ratelimit_worker.stores.tracker import Tracker, engine_for
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.worker


@pytest.fixture
def provider() -> Iterator[Simulator]:
    """A provider without a limit; a worker of eight slots gets sixteen answers a second from it."""
    with Simulator(Scenario(latency="0.5", refusal_latency="0.02")) as made:
        yield made


@pytest.fixture
def made(provider: Simulator, database_url: str) -> Iterator[Fleet]:
    """A fleet that records into an empty database."""
    with fleet(OPENAI_BASE_URL=provider.base_url, MAISD_DATABASE_URL=database_url) as made:
        made.worker("first")
        yield made


def command(*words: str) -> str:
    """`ratelimit-worker WORDS` → what it wrote to stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *words], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mode(lane: str) -> Mode:
    return services().lanes.state(lane).mode


def history(url: str, lane: str, count: int) -> list[ModeChange]:
    """So many mode changes of a lane, oldest first, as soon as they are recorded."""
    tracker = Tracker(engine_for(url))
    wait_for(lambda: len(tracker.mode_changes(lane=lane)) >= count, 120.0, "the changes are recorded")
    return tracker.mode_changes(lane=lane)[::-1]


@pytest.mark.parametrize("limits", [LaneLimits(rpm=1200), LaneLimits(unlimited=True)], ids=["paced", "unlimited"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_emergency_by_hand(made: Fleet, provider: Simulator, database_url: str, limits: LaneLimits) -> None:
    """With 100 calls waiting one starts each six seconds; after `auto` all are answered; the history says who."""
    tasks = made.agent()
    services().lanes.set_points("chat", limit_fields(limits))
    assert command("halt", "--lane", "chat") == "chat: NORMAL -> HALT\n"
    results: list[Any] = [tasks.chat.delay(number) for number in range(100)]
    said = command("emergency", "--for", "15m", "--reason", "the bill")
    assert said == "all lanes: 1 changed (1 HALT -> EMERGENCY)\n"
    wait_for(lambda: len(provider.arrivals()) >= 2, 120.0, "the first two after the pin")
    first, second = (arrival.t for arrival in provider.arrivals()[:2])
    assert second - first > 5.0
    assert mode("chat") is Mode.EMERGENCY
    assert command("resume", "--verbose") == "chat: EMERGENCY -> NORMAL\n"
    wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
    assert [result.state for result in results] == ["SUCCESS"] * 100
    told = history(database_url, "chat", 3)
    assert [change.to_mode for change in told] == [Mode.HALT, Mode.EMERGENCY, Mode.NORMAL]
    assert (told[1].reason, told[1].cause) == ("the bill", "all lanes were pinned")
    assert {change.who for change in told} == {getpass.getuser()}
    assert told[1].until == pytest.approx(told[1].at + 900, abs=1.0)
    rows = json.loads(command("mode", "history", "--lane", "chat", "--format", "json", "--limit", "2"))
    assert [row["to_mode"] for row in rows] == ["NORMAL", "EMERGENCY"]
    assert "the bill" in command("mode", "history")


def test_the_law_on_a_sick_provider(made: Fleet, provider: Simulator, database_url: str) -> None:
    """Five times 500 in an idle lane: REDUCED; ten in all: EMERGENCY; it answers again: NORMAL; each with its cause."""
    tasks = made.agent()
    provider.control(fault="500")
    results: list[Any] = [tasks.chat.delay(number) for number in range(20)]
    wait_for(lambda: mode("chat") is Mode.EMERGENCY, 120.0, "EMERGENCY")
    sick = len(provider.arrivals())
    assert sick < 25, "few requests into the outage"
    provider.control(clear=True)
    wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
    assert [result.state for result in results] == ["SUCCESS"] * 20
    wait_for(lambda: mode("chat") is Mode.NORMAL, 30.0, "NORMAL")
    told = history(database_url, "chat", 4)
    assert [(change.from_mode.value, change.to_mode.value) for change in told] == [
        ("NORMAL", "REDUCED"),
        ("REDUCED", "EMERGENCY"),
        ("EMERGENCY", "REDUCED"),
        ("REDUCED", "NORMAL"),
    ]
    assert told[0].cause == "5 sick answers in a row"
    assert told[1].cause.endswith("sick answers in a row")  # ten, and one more for each older call still out
    assert told[0].numbers["sick"] == 5
    assert {change.who for change in told} == {"law"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_quota_that_is_used_up(made: Fleet, provider: Simulator, database_url: str) -> None:
    """`insufficient_quota` on all calls: HALT after the first answer; they wait, and go on after `auto`."""
    tasks = made.agent()
    provider.control(fault="quota")
    results: list[Any] = [tasks.chat.delay(number) for number in range(40)]
    wait_for(lambda: mode("chat") is Mode.HALT, 120.0, "HALT")
    wait_for(lambda: services().lanes.client.zcard("rlw:out:chat") == 0, 120.0, "nothing is out")
    sent = provider.arrivals()
    assert len(sent) <= 12, "no slot was used twice, and a few probes went"
    assert not any(result.ready() for result in results)
    provider.control(clear=True)
    command("auto", "--lane", "chat", "--reason", "paid")
    wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
    assert [result.state for result in results] == ["SUCCESS"] * 40
    told = history(database_url, "chat", 2)
    assert [(change.from_mode.value, change.to_mode.value) for change in told] == [
        ("NORMAL", "HALT"),
        ("HALT", "NORMAL"),
    ]
    assert (told[0].who, told[0].cause) == ("law", "the provider says that the quota is used up")
    assert told[1].who in {getpass.getuser(), "law"}, "a probe of the law's may have been answered before the command"


def test_an_outage_outlives_its_tuner(made: Fleet, provider: Simulator, database_url: str) -> None:
    """The tuner's holder is killed in an outage: the other worker takes the duty over, mode and recovery go on."""
    made.worker("second")
    tasks = made.agent()
    provider.control(fault="500")
    results: list[Any] = [tasks.chat.delay(number) for number in range(40)]
    wait_for(lambda: mode("chat") is Mode.EMERGENCY, 120.0, "EMERGENCY")
    client: Any = services().lanes.client
    holder = (client.get("rlw:duty:tune") or b"").decode()
    victim = next(worker for worker in made.workers if f"/{worker.process.pid}-" in holder)
    victim.kill()
    wait_for(lambda: (client.get("rlw:duty:tune") or holder.encode()).decode() != holder, 120.0, "another tunes")
    assert mode("chat") is Mode.EMERGENCY
    provider.control(clear=True)
    wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
    assert [result.state for result in results] == ["SUCCESS"] * 40
    wait_for(lambda: mode("chat") is Mode.NORMAL, 30.0, "NORMAL")
    assert [change.to_mode.value for change in history(database_url, "chat", 4)] == [
        "REDUCED",
        "EMERGENCY",
        "REDUCED",
        "NORMAL",
    ]


def test_what_was_learned_outlives_the_workers() -> None:
    """Told nothing by a provider of 20/s, the lane finds its rate; the next worker begins with it, not with 4/s."""
    scenario = Scenario(rpm=1200, latency="0.05", headers=HeaderStyle.NONE)
    with Simulator(scenario) as provider, fleet(OPENAI_BASE_URL=provider.base_url) as made:
        first = made.worker("first")
        tasks = made.agent()
        results: list[Any] = [tasks.chat.delay(number) for number in range(150)]
        wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
        learned = float(services().lanes.fields("chat")["p1"])
        assert learned > 8.0
        first.kill()
        made.worker("second")
        results = [tasks.chat.delay(number) for number in range(200, 240)]
        wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
        assert float(services().lanes.fields("chat")["p1"]) > 0.5 * learned
        arrivals = provider.arrivals()
        later = sorted(arrival.t for arrival in arrivals if arrival.t > arrivals[0].t)[-40:]
        assert sum(at < later[0] + 1.0 for at in later) >= 7  # 4/s would be four, and three more after 0.7 s


def test_emergency_by_setting(provider: Simulator, database_url: str) -> None:
    """MAISD_EMERGENCY_MODE pins all lanes before the first call of a worker goes out."""
    with fleet(OPENAI_BASE_URL=provider.base_url, MAISD_DATABASE_URL=database_url, MAISD_EMERGENCY_MODE="true") as made:
        tasks = made.agent()
        services().lanes.set_points("chat", limit_fields(LaneLimits(unlimited=True)))
        results: list[Any] = [tasks.chat.delay(number) for number in range(10)]
        made.worker("first")
        wait_for(lambda: len(provider.arrivals()) >= 1, 120.0, "the first call")
        assert len(provider.arrivals()) == 1
        command("auto")
        wait_for(lambda: all(result.ready() for result in results), 120.0, "all are answered")
        assert history(database_url, "chat", 2)[0].who == "MAISD_EMERGENCY_MODE"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("emergency", "--for", "soon"), 2, "write 90s, 15m, 2h or 1d"),
        (("halt", "--for", "0s"), 2, "write 90s, 15m, 2h or 1d"),
        (("auto",), 69, "Error: Redis: "),
    ],
)
def test_what_a_command_says_when_it_cannot(words: tuple[str, ...], code: int, says: str) -> None:
    """Usage is 2, an absent Redis 69, each in one sentence."""
    environ = {**os.environ, "MAISD_REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *words], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
