"""Are the promises about rates and times kept? Each scenario runs for real and prints figures of the provider's log.

    python benchmarks/promises.py [scenario …]      (all by default)

A provider without a limit of its own (the simulated one) logs arrivals; rates are counted there, over every sliding
second. *lost* = accepted ids without an answer.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from celery import chord  # noqa: E402

from ratelimit_worker.calls import LaneLimits, Mode  # noqa: E402
from ratelimit_worker.flow.call.enqueue import limit_fields  # noqa: E402
from ratelimit_worker.flow.lane import pin  # noqa: E402
from ratelimit_worker.simulate import Entry, Fault, HeaderStyle, Scenario, Simulator  # noqa: E402
from ratelimit_worker.simulate.arrivals import duplicates, most_in_window, rate  # noqa: E402
from ratelimit_worker.wiring import services  # noqa: E402
from tests.conftest import wait_for  # noqa: E402
from tests.fleet import Fleet, Worker, fleet  # noqa: E402


@contextmanager
def stage(latency: str = "0.05", scenario: Scenario | None = None, **env: str) -> Iterator[tuple[Fleet, Simulator]]:
    """A fleet whose tasks call a simulated provider: that of `scenario`, or one without a limit."""
    scenario = scenario or Scenario(latency=latency)
    with Simulator(scenario) as provider, fleet(OPENAI_BASE_URL=provider.base_url, **env) as made:
        yield made, provider


def limited(rpm: float, *timeline: Entry, headers: HeaderStyle = HeaderStyle.AUTO) -> Scenario:
    """A provider with a limit that is not configured in the lane, and faults."""
    return Scenario(rpm=rpm, latency="lognormal(0.2, 0.3)", refusal_latency="0.02", headers=headers, timeline=timeline)


def start_workers(made: Fleet, workers: int, slots: int) -> None:
    """Start workers with so many threads each, and wait until all are ready: their start takes the whole machine."""
    for n in range(workers):
        made.worker(f"w{n}", "-P", "threads", "-c", str(slots), wait=False)
    for worker in made.workers:
        worker.wait_ready(240.0)


def has_stamps(made: Fleet, count: int) -> bool:
    """Whether so many calls have run."""
    return len(made.stamps()) == count


def limit(lane: str, per_second: float | None) -> None:
    """Configure a lane; None: unlimited."""
    told = LaneLimits(unlimited=True) if per_second is None else LaneLimits(rpm=per_second * 60)
    services().lanes.set_points(lane, limit_fields(told))


def all_answered(results: list[Any], timeout_s: float = 180.0) -> int:
    """Wait for the answers; returns how many are lost."""
    left = list(results)

    def done() -> bool:
        left[:] = [result for result in left if not result.ready()]
        return not left

    wait_for(done, timeout_s, "all are answered")
    return sum(result.state != "SUCCESS" for result in results)


def say(name: str, **figures: Any) -> None:
    """Print the figures of a scenario in one line."""
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)


def rss_kb(worker: Worker) -> int:
    """Resident memory of a worker process, kB."""
    for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def counted(provider: Simulator, results: list[Any]) -> dict[str, Any]:
    """Figures of the provider's log."""
    arrivals = provider.arrivals()
    times = [arrival.t for arrival in arrivals]
    return {
        "calls": len(results),
        "requests": len(arrivals),
        "rate": f"{rate(times):.2f}/s",
        "most in 1 s": most_in_window(times),
        "sent twice": len(duplicates(arrivals)),
    }


def four_workers() -> None:
    """4 workers as separate processes at 50/s, 1,000 calls: 50 ± 1/s, at most 53 in any second."""
    with stage() as (made, provider):
        start_workers(made, 4, 8)
        tasks = made.agent()
        limit("chat", 50)
        results = [tasks.chat.delay(n) for n in range(1000)]
        lost = all_answered(results)
        say("four workers at 50/s", **counted(provider, results), lost=lost)


def small_pool() -> None:
    """A pool that is too small (2 slots at 0.5 s), then larger workers join and it drains: the limit holds."""
    with stage(latency="0.5") as (made, provider):
        made.worker("small", "-P", "threads", "-c", "2")
        tasks = made.agent()
        limit("chat", 50)
        results = [tasks.chat.delay(n) for n in range(600)]
        wait_for(lambda: len(provider.arrivals()) >= 20, 60, "the small pool works")
        for n in range(2):
            made.worker(f"large{n}", "-P", "threads", "-c", "24", wait=False)
        lost = all_answered(results)
        say("small pool, then drained", **counted(provider, results), lost=lost)


def killed() -> None:
    """SIGKILL of a worker with 20 calls running: nothing lost, the limit holds at the provider."""
    with stage(latency="0.8") as (made, provider):
        first = made.worker("first", "-P", "threads", "-c", "32")
        made.worker("second", "-P", "threads", "-c", "32")
        tasks = made.agent()
        limit("chat", 50)
        results = [tasks.chat.delay(n) for n in range(600)]
        wait_for(lambda: len(provider.arrivals()) >= 200, 60, "it runs")
        first.kill()
        lost = all_answered(results)
        say("killed with calls running", **counted(provider, results), lost=lost)


def full_worker_killed() -> None:
    """SIGKILL of a full worker: 64 calls of 4 s, 64 idle slots beside; promised are 1.5 x visibility + 3 x call."""
    calls, call_s = 64, 4.0
    for visibility_s in (3, 12):
        for processes in (1, 4):
            with stage(MAISD_VISIBILITY_TIMEOUT_SECONDS=str(visibility_s)) as (made, _):
                start_workers(made, processes, calls // processes)
                tasks = made.agent()
                control = tasks.app.control
                control.cancel_consumer("fleet", reply=True, limit=processes, timeout=30.0)
                limit("stamp", None)
                full = made.worker("full", "-P", "threads", "-c", str(calls))
                results = [tasks.stamp.delay(str(n), call_s) for n in range(calls)]
                wait_for(partial(has_stamps, made, calls), 60, "the worker is full")
                full.kill()
                began = time.monotonic()
                control.add_consumer("fleet", reply=True, limit=processes, timeout=30.0)
                took_in = time.monotonic() - began
                lost = all_answered(results)
                say(
                    f"full worker killed, visibility {visibility_s} s, {processes} beside",
                    all_after=f"{time.monotonic() - began:.1f} s",
                    promised=f"{1.5 * visibility_s + 3 * call_s:.1f} s",
                    consume_after=f"{took_in:.1f} s",
                    runs=len(made.stamps()),
                    lost=lost,
                )


def two_queues() -> None:
    """One lane at 50/s over two queues with a worker each; a third queue without a worker delays no other call."""
    with stage() as (made, provider):
        made.worker("a", "-P", "threads", "-c", "8", "-Q", "qa")
        made.worker("b", "-P", "threads", "-c", "8", "-Q", "qb")
        tasks = made.agent()
        limit("chat", 50)
        nobody = [tasks.chat.apply_async((f"n{n}",), queue="nobody") for n in range(20)]
        results = [tasks.chat.apply_async((n,), queue="qa" if n % 2 else "qb") for n in range(500)]
        lost = all_answered(results)
        say("two queues, one lane at 50/s", **counted(provider, results), lost=lost, unserved=len(nobody))


def beside_a_blocked_lane() -> None:
    """Ordinary tasks and chord_unlock run unpaced beside a blocked lane."""
    with stage() as (made, _):
        made.worker("w")
        tasks = made.agent()
        services().lanes.set_points("chat", {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})
        blocked = [tasks.chat.delay(n) for n in range(100)]
        start = time.monotonic()
        assert [tasks.add.delay(n, 1).get(timeout=20) for n in range(50)] == list(range(1, 51))
        nested = chord([chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total_plain.s())], tasks.total_plain.s())
        nested.delay().get(timeout=20)
        say("ordinary tasks beside a blocked lane", seconds=f"{time.monotonic() - start:.2f}", blocked=len(blocked))


def slow_and_free() -> None:
    """A lane at 1/s with 200 waiting and an unlimited one with 200: the latter takes at most 1.5 × its time alone."""
    with stage() as (made, _):
        made.worker("w", "-P", "threads", "-c", "4")
        tasks = made.agent()
        limit("free", None)
        limit("slow", 1)

        def run() -> float:
            start = time.monotonic()
            all_answered([tasks.echo.delay(n, 0.02) for n in range(200)])
            return time.monotonic() - start

        run()
        alone = run()
        slow = [tasks.echo.apply_async((n,), lane="slow") for n in range(200)]
        beside = run()
        say(
            "free lane beside a slow one",
            alone=f"{alone:.2f} s",
            beside=f"{beside:.2f} s",
            times=f"{beside / alone:.2f}",
        )
        assert len(slow) == 200


def countdown() -> None:
    """10,000 calls with countdown=20 at a visibility timeout of 5 s: RSS unchanged, each once, paced."""
    with stage(MAISD_VISIBILITY_TIMEOUT_SECONDS="5") as (made, _):
        worker = made.worker("w", "-P", "threads", "-c", "16", "-l", "WARNING", wait=False)
        tasks = made.agent()
        limit("stamp", 300)
        all_answered([tasks.stamp.delay(f"warm {n}", name="warm") for n in range(300)])
        idle = rss_kb(worker)
        start = time.time()
        results = [tasks.stamp.apply_async((str(n),), countdown=20) for n in range(10_000)]
        sent = time.time() - start
        waiting = rss_kb(worker)
        wait_for(lambda: len(made.stamps()) >= 2_000, 120, "a fifth has run")
        during = rss_kb(worker)
        lost = all_answered(results)
        rows = made.stamps()
        runs = Counter(what for _, what in rows)
        times = [at for at, _ in rows]
        say(
            "10,000 with countdown=20",
            sent_in=f"{sent:.1f} s",
            first_after=f"{times[0] - start:.1f} s",
            rate=f"{rate(times):.0f}/s",
            most_in_1s=most_in_window(times),
            run_twice=sum(n > 1 for n in runs.values()),
            lost=lost,
            rss_idle=f"{idle} kB",
            rss_waiting=f"{waiting / idle:.3f} ×",
            rss_running=f"{during / idle:.3f} ×",
        )


def redis_restart() -> None:
    """Redis (AOF) stopped for 3 s in the middle of 500 calls: workers live on, nothing lost."""
    with stage() as (made, provider):
        worker = made.worker("w", "-P", "threads", "-c", "16")
        tasks = made.agent()
        limit("chat", 50)
        results = [tasks.chat.delay(n) for n in range(500)]
        wait_for(lambda: len(provider.arrivals()) >= 150, 60, "it runs")
        made.valkey.stop()
        time.sleep(3)
        made.valkey.start()
        lost = all_answered(results)
        alive = worker.process.poll() is None
        say("Redis stopped for 3 s", **counted(provider, results), lost=lost, worker_alive=alive)


def redis_full() -> None:
    """maxmemory reached for 10 s in the middle of 200 calls: workers live on, no slot lost, nothing lost."""
    with stage() as (made, provider):
        worker = made.worker("w", "-P", "threads", "-c", "8")
        tasks = made.agent()
        limit("chat", 20)
        results = [tasks.chat.delay(n) for n in range(200)]
        wait_for(lambda: len(provider.arrivals()) >= 40, 60, "it runs")
        made.valkey.client.config_set("maxmemory", "1mb")
        time.sleep(10)
        made.valkey.client.config_set("maxmemory", "0")
        lost = all_answered(results)
        limit("free", None)
        start = time.monotonic()
        all_answered([tasks.echo.delay(n, 1.0) for n in range(8)])
        say(
            "Redis full for 10 s",
            **counted(provider, results),
            lost=lost,
            worker_alive=worker.process.poll() is None,
            eight_calls_of_1_s=f"{time.monotonic() - start:.1f} s on 8 slots",
        )


def flip() -> None:
    """16 workers at 50/s, then 5/s, then EMERGENCY: when does the last call at the old rate come?"""
    with stage() as (made, provider):
        start_workers(made, 16, 2)
        tasks = made.agent()
        limit("chat", 50)
        results = [tasks.chat.delay(n) for n in range(900)]
        wait_for(lambda: len(provider.arrivals()) >= 300, 60, "it runs")
        changed_at = time.time()
        limit("chat", 5)
        time.sleep(5)
        later = [arrival.unix - changed_at for arrival in provider.arrivals() if arrival.unix > changed_at]
        # A call is of the old rate if it comes sooner after the one before than 5/s allow (with a depth of 1.1).
        old = [at for before, at in pairwise([0.0, *later]) if at - before < 0.1]
        say("50/s to 5/s over 16 workers", last_at_old_rate=f"{max(old, default=0.0):.3f} s", in_5_s=len(later))
        limit("chat", 50)
        wait_for(lambda: len(provider.arrivals()) >= 500, 60, "it runs")
        pinned_at = time.time()
        pin.pin(services().control, Mode.EMERGENCY, lane="chat", who="benchmark")
        time.sleep(8)
        later = [arrival.unix - pinned_at for arrival in provider.arrivals() if arrival.unix > pinned_at]
        before_probe = [at for at in later if at < 5.5]
        say("EMERGENCY over 16 workers", last_before=f"{max(before_probe, default=0.0):.3f} s", in_8_s=len(later))
        pin.auto(services().control, lane="chat", who="benchmark")
        say("and after it", lost=all_answered(results))


def one_budget() -> None:
    """1, 4 and 16 workers on one budget of 600/min that is not configured: the share of 429s."""
    for headers in (HeaderStyle.AUTO, HeaderStyle.NONE):
        for workers in (1, 4, 16):
            with stage(scenario=limited(600, headers=headers)) as (made, provider):
                start_workers(made, workers, 64 // workers)
                tasks = made.agent()
                results = [tasks.chat.delay(n) for n in range(500)]
                lost = all_answered(results)
                arrivals = provider.arrivals()
                refused = sum(arrival.status == 429 for arrival in arrivals)
                say(
                    f"{workers} workers, {'headers' if headers is HeaderStyle.AUTO else 'no headers'}",
                    rate=f"{rate([arrival.t for arrival in arrivals if arrival.good]) * 60:.0f}/min",
                    refused=f"{refused} of {len(arrivals)} = {refused / len(arrivals):.2%}",
                    lost=lost,
                )


def tuner_killed() -> None:
    """An outage of 20 s, without and with a kill -9 of the tuner's worker in its middle: requests into it, recovery."""
    for kill in (False, True):
        outage = Entry(at_s=5, for_s=20, fault=Fault.OUTAGE)
        with stage(scenario=limited(600, outage)) as (made, provider):
            start_workers(made, 2, 16)
            tasks = made.agent()
            results = [tasks.chat.delay(n) for n in range(250)]
            wait_for(lambda: bool(provider.arrivals()), 30, "it runs")
            began = time.monotonic()
            time.sleep(15)
            if kill:
                holder = str(services().lanes.client.get("rlw:duty:tune").decode())  # type: ignore[union-attr]
                next(worker for worker in made.workers if f"/{worker.process.pid}-" in holder).kill()
            time.sleep(max(0.0, began + 25 - time.monotonic()))
            lost = all_answered(results)
            arrivals = provider.arrivals()
            first = min(arrival.t for arrival in arrivals)
            back = [arrival.t - first - 25 for arrival in arrivals if arrival.good and arrival.t - first >= 25]
            say(
                "outage, tuner killed" if kill else "outage",
                into_it=sum(arrival.fault is not None for arrival in arrivals),
                first_answer_after=f"{min(back):.2f} s",
                answers_in_the_next_5_s=sum(at < 5 for at in back),
                lost=lost,
            )


def outages() -> None:
    """An outage of 30 s after 30 good calls, with one waiting call and a thousand: requests into it, and recovery."""
    for calls in (1, 1000):
        with stage(scenario=limited(1200)) as (made, provider):
            start_workers(made, 2, 16)
            tasks = made.agent()
            assert all_answered([tasks.chat.delay(n) for n in range(30)]) == 0
            began = time.time()
            provider.control(fault="outage", for_s=30.0)
            results = [tasks.chat.delay(n) for n in range(calls)]
            lost = all_answered(results)
            arrivals = provider.arrivals()
            back = [arrival.unix - began - 30 for arrival in arrivals if arrival.good and arrival.unix > began + 29]
            say(
                f"outage of 30 s, {calls} waiting",
                into_it=sum(arrival.fault is not None for arrival in arrivals),
                first_answer_after=f"{min(back):.2f} s",
                lost=lost,
            )


def requests_needed(name: str, *timeline: Entry) -> None:
    """2,000 calls on 64 slots to a provider with faults: how many requests do they take, and does any fail?"""
    calls = 2000
    with stage(scenario=limited(1200, *timeline)) as (made, provider):
        start_workers(made, 2, 32)
        tasks = made.agent()
        results = [tasks.chat.delay(n) for n in range(calls)]
        lost = all_answered(results, 400.0)
        requests = len(provider.arrivals())
        say(name, calls=calls, requests=requests, a_call=f"{requests / calls:.3f}", lost=lost)


def retries() -> None:
    """5 % and 30 % of the answers are 500s; a provider that is away for a minute; one that flaps for a minute."""
    requests_needed("5 % are 500s", Entry(fault=Fault.SERVER_ERROR, share=0.05))
    requests_needed("30 % are 500s", Entry(fault=Fault.SERVER_ERROR, share=0.3))
    requests_needed("away for a minute", Entry(at_s=5, for_s=60, fault=Fault.OUTAGE))
    storm()


def storm() -> None:
    """Up for a second, down for a second, for a minute."""
    flaps = [Entry(at_s=1 + 2 * n, for_s=1, fault=Fault.SERVER_ERROR) for n in range(30)]
    requests_needed("a provider that flaps", *flaps)


def many_lanes() -> None:
    """1,000 lanes of which 20 are busy: CPU of the worker with the tuner, compared with 20 lanes alone."""
    for idle in (0, 980):
        with stage() as (made, _):
            worker = made.worker("w", "-P", "threads", "-c", "16")
            tasks = made.agent()
            for n in range(idle):
                services().lanes.set_points(f"idle{n}", {"schema": 1, **limit_fields(LaneLimits(rpm=60))})
                tasks.echo.apply_async((n,), lane=f"idle{n}").forget()
            time.sleep(12)
            used = cpu_s(worker.process.pid)
            results = [tasks.echo.apply_async((n,), lane=f"busy{n % 20}") for n in range(400)]
            lost = all_answered(results)
            time.sleep(3)
            say(f"20 busy lanes beside {idle}", cpu=f"{cpu_s(worker.process.pid) - used:.2f} s", lost=lost)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SCENARIOS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        four_workers, small_pool, killed, full_worker_killed, two_queues, beside_a_blocked_lane,
        slow_and_free, countdown, redis_restart,
        redis_full, flip, one_budget, tuner_killed, outages, retries, many_lanes,
    )
}  # fmt: skip


if __name__ == "__main__":
    for wanted in sys.argv[1:] or SCENARIOS:
        SCENARIOS[wanted]()
