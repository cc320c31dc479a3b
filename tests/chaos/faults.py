"""What breaks, when, how it is healed, and what is promised: one entry a fault, in the words of docs/promises.md.

An entry says what a user is promised, never what the product happens to do: one that fails is a finding.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import redis

from ratelimit_worker.simulate import Scenario
from ratelimit_worker.stores.outbox import GROUP
from tests.chaos.stage import Stage, pids_of_group, small_disk
from tests.chaos.verdict import FINAL, Allowed
from tests.cluster.test_chaos import GARBAGE
from tests.conftest import wait_for

Act = Callable[[Stage], object]


def nothing(_: Stage) -> None:
    """Nothing needs to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    name: str
    promise: str
    inject: Act
    hold_s: float = 0.0  #: between inject and heal
    heal: Act = nothing
    look: Act = nothing  #: when all is drained: what the judge cannot know (`Stage.notes`)
    prepare: Act = Stage.workers
    calls: int = 150  #: of the lane that is watched, a little faster than its rate
    after: int = 25  #: good answers before it happens
    allowed: Allowed = field(default_factory=Allowed)
    paced: bool = True  #: whether the lane's rate is judged
    short: bool = False  #: a part of `make test`
    database: str = "sqlite"
    scenario: Scenario = field(default_factory=lambda: Scenario(latency="0.1"))
    env: Mapping[str, str] = field(default_factory=dict)
    surroundings: Callable[[], AbstractContextManager[Path | None]] = nullcontext  #: made before, and gone after it
    skip: str = ""  #: why it cannot be staged here
    drain_s: float = 120.0


AWAY = frozenset({"StoreUnavailable"})
LOST = frozenset({"CallLost", "StoreUnavailable"})
FORGOT = Allowed(errors=LOST, refusals=AWAY, delay_s=3.0, unrecorded=True)
REFUSES = Allowed(refusals=AWAY, delay_s=3.0)
PASSWORD = Path(f"/tmp/rlw-chaos-password-{os.getpid()}")

# ---- Workers --------------------------------------------------------------------------------------------------------


def _kill(count: int) -> Act:
    def inject(stage: Stage) -> None:
        for worker in stage.living()[:count]:
            stage.kill(worker)

    return inject


def _kill_child(stage: Stage) -> None:
    stage.excuse()
    os.kill(stage.children(stage.worker())[0], signal.SIGKILL)


def _kill_parent(stage: Stage) -> None:
    stage.excuse()
    stage.signal(stage.worker(), signal.SIGKILL)


def _kill_orphans(stage: Stage) -> None:
    stage.excuse()
    for pid in pids_of_group(stage.worker()):
        os.kill(pid, signal.SIGKILL)
    stage.workers(1, 4, "prefork")


def _stop(number: int) -> Act:
    def inject(stage: Stage) -> None:
        if number != signal.SIGTERM:
            stage.excuse()
        stage.signal(stage.worker(), number)
        stage.worker().process.wait(timeout=60)

    return inject


def _deploy(stage: Stage) -> None:
    old = stage.living()
    stage.workers()
    for worker in old:
        stage.signal(worker, signal.SIGTERM)
        worker.process.wait(timeout=60)


def _one_more(stage: Stage) -> None:
    stage.workers(1)


# ---- Redis ----------------------------------------------------------------------------------------------------------


def _stop_redis(stage: Stage) -> None:
    stage.redis.stop()


def _kill_redis(stage: Stage) -> None:
    stage.redis.kill()


def _start_redis(stage: Stage) -> None:
    stage.redis.start()


def _reset(stage: Stage) -> None:
    for _ in range(8):
        for kind in ("normal", "pubsub"):
            stage.redis.client.client_kill_filter(_type=kind, skipme=True)
        time.sleep(0.5)


def _lose(stage: Stage) -> None:
    stage.redis.stop()
    stage.redis.forget()
    stage.excuse(0.0)


def _flush(stage: Stage) -> None:
    stage.redis.client.flushall()
    stage.excuse(0.0)


def _stale(stage: Stage) -> None:
    """A replica that had not got the last second takes over."""
    disk, kept = stage.redis.folder / "appendonlydir", stage.redis.folder / "replica"
    since_s = time.time()
    shutil.copytree(disk, kept)
    time.sleep(1.0)
    stage.redis.stop()
    shutil.rmtree(disk)
    kept.rename(disk)
    stage.redis.start()
    stage.excuse(since_s - 1.0)  # the copy has what the AOF had got when it was made


def _configure(**options: str) -> Act:
    def act(stage: Stage) -> None:
        for name, value in options.items():
            stage.redis.client.config_set(name.replace("_", "-"), value)

    return act


def _read_only(stage: Stage) -> None:
    stage.redis.client.replicaof("127.0.0.1", "1")


def _writable(stage: Stage) -> None:
    stage.redis.client.replicaof("NO", "ONE")


def _met(word: str) -> Act:
    """A fault that nobody met shows nothing: the server has to have answered so."""

    def look(stage: Stage) -> None:
        said: Any = stage.redis.client.info("errorstats")
        if f"errorstat_{word}" not in said:
            stage.notes.append(f"nobody was answered {word}: nothing was shown")

    return look


def _recorder_said_so(stage: Stage) -> None:
    """The same of the database: some worker's recorder has to have waited for it."""
    if "recorder.away" not in stage.made.logs():
        stage.notes.append("no recorder waited for the database: nothing was shown")


def _small_redis(stage: Stage) -> None:
    stage.redis.stop()
    disk = Path(os.environ["CHAOS_DISK"])
    stage.redis.folder = disk
    stage.redis.start()
    stage.workers()


def _fill(stage: Stage) -> None:
    with (Path(os.environ["CHAOS_DISK"]) / "filler").open("wb", buffering=0) as file:  # no rest that `close` writes
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            return


def _empty(stage: Stage) -> None:
    (Path(os.environ["CHAOS_DISK"]) / "filler").unlink()


def _guard(stage: Stage) -> None:
    _say_password(stage, "one")
    PASSWORD.write_text("one")
    stage.workers()


def _rotate(stage: Stage) -> None:
    _say_password(stage, "two")
    for kind in ("normal", "pubsub"):
        stage.redis.client.client_kill_filter(_type=kind, skipme=True)


def _say_password(stage: Stage, password: str) -> None:
    stage.redis.client.config_set("requirepass", password)
    stage.redis.client = redis.Redis(port=stage.redis.port, password=password)
    stage.redis.client.ping()


# ---- The database ---------------------------------------------------------------------------------------------------


def _file_of(stage: Stage) -> Path:
    return Path(stage.database.removeprefix("sqlite:///"))


def _lock(stage: Stage) -> None:
    wait_for(lambda: _file_of(stage).exists(), what="the database is there")
    locked = sqlite3.connect(_file_of(stage), isolation_level=None, timeout=60)
    locked.execute("BEGIN EXCLUSIVE")
    time.sleep(8.0)
    locked.execute("ROLLBACK")
    locked.close()


def _delete(stage: Stage) -> None:
    wait_for(lambda: len(stage.rows()) > 5, what="some rows are there")
    for one in _file_of(stage).parent.glob(f"{_file_of(stage).name}*"):
        one.unlink()


def _later_ones_are_recorded(stage: Stage) -> None:
    """What was in the file is gone; what came after it is not."""
    recorded = {row.call_id for row in stage.rows() if row.outcome in FINAL}
    if gone := [what for call_id, what in stage.sent.items() if what.startswith("after") and call_id not in recorded]:
        stage.notes.append(f"{len(gone)} rows missing of calls that were made after the file was deleted")


def _kill_recorder(stage: Stage) -> None:
    """It has taken rows and not written them: the database is locked so that there is one."""
    wait_for(lambda: _file_of(stage).exists(), what="the database is there")
    locked = sqlite3.connect(_file_of(stage), isolation_level=None, timeout=60)
    locked.execute("BEGIN EXCLUSIVE")

    def taken() -> int:
        said: Any = stage.redis.client.xpending("rlw:outbox", GROUP)
        return int(said["pending"])

    wait_for(taken, what="somebody has taken rows")
    for worker in stage.living():  # one of them: all recorders have one name
        stage.kill(worker)
    locked.execute("ROLLBACK")
    locked.close()


def _kill_holder(duty: str) -> Act:
    return lambda stage: stage.kill(stage.holder(duty))


def _small_database(stage: Stage) -> None:
    stage.workers()
    wait_for(lambda: len(stage.rows()) >= 0 and _file_of(stage).exists(), what="the database is there")


# ---- The provider ---------------------------------------------------------------------------------------------------


def _provider(**entry: Any) -> Act:
    return lambda stage: stage.provider.control(**entry)


def _poison(stage: Stage) -> None:
    stage.provider.control(fault="500", match="poison-call")
    stage.send("poison-call", stage.tasks.ask.delay)


# ---- Calls and messages ---------------------------------------------------------------------------------------------


def _fatal(stage: Stage) -> None:
    stage.send("fatal", stage.tasks.fatal.delay)


def _supervise(stage: Stage) -> None:
    """Start workers that died anew until the call that kills them is given up."""
    until_s, since_s = time.monotonic() + 90, time.time() - 5
    while time.monotonic() < until_s:
        stage.listen()
        if any(heard.text == "fatal" for heard in stage.heard.values()):
            break
        for worker in stage.living():
            if worker.process.poll() is not None:
                stage.ended.add(worker.name)
        dead = [one for one in stage.made.workers if one.process.poll() is not None and one.name not in stage.ended]
        stage.ended |= {one.name for one in dead}
        stage.workers(len(dead), 4)
        time.sleep(0.2)
    stage.excuse(since_s)


def _killed_thrice(stage: Stage) -> None:
    killed = len((stage.made.folder / "fatal").read_text().splitlines())
    if killed > 3:
        stage.notes.append(f"the call killed {killed} workers")


def _raise_all(stage: Stage) -> None:
    for kind in stage.tasks.KINDS:
        stage.send(f"raises {kind}", lambda text: stage.tasks.raises.delay(text.removeprefix("raises ")))


def _each_has_its_error(stage: Stage) -> None:
    """Which error it is belongs to the docs; that there is one, here."""
    for call_id, heard in [*stage.heard.items()]:
        if heard.text.startswith("raises ") and not heard.answered:
            stage.heard[call_id] = heard._replace(end="answered")


def _garbage(stage: Stage) -> None:
    for item in GARBAGE:
        stage.redis.client.lpush("chaos", item)


def _garbage_is_counted(stage: Stage) -> None:
    counted = stage.redis.client.llen("rlw:malformed")
    if counted != len(GARBAGE):
        stage.notes.append(f"{counted} of {len(GARBAGE)} messages are set aside")


def _unknown(stage: Stage) -> None:
    stage.send("unknown", lambda text: stage.tasks.app.send_task("tests.chaos.app.unknown", (text,)))


def _unknown_was_refused(stage: Stage) -> None:
    for call_id, heard in [*stage.heard.items()]:
        if heard.text == "unknown" and heard.end in {"MessageRefused", "NotRegistered"}:
            del stage.heard[call_id], stage.sent[call_id]  # it was no call: it has no row


def _share(stage: Stage) -> None:
    for _ in range(30):
        stage.send("same", stage.tasks.ask_shared.delay)
    wait_for(lambda: any(one.text == "same" for one in stage.asked()), what="the leader asks")
    stage.kill(stage.worker())


def _asked_twice_at_most(stage: Stage) -> None:
    asked = sum(one.text == "same" for one in stage.asked())
    if not 1 <= asked <= 2:
        stage.notes.append(f"the provider was asked {asked} times for one answer")
    recorded = {row.call_id for row in stage.rows() if row.outcome in FINAL}
    same = {call_id for call_id, heard in stage.heard.items() if heard.text == "same"}
    if same & recorded:  # whose answer the others got: they made no attempt, so they have no row
        for call_id in same - recorded:
            del stage.heard[call_id], stage.sent[call_id]


def _flood(stage: Stage) -> None:
    for number in range(2_000):
        stage.tasks.ask.apply_async((f"flood-{number}",), lane="flood")


def _flood_waits(stage: Stage) -> None:
    """The others are done, and the flood is not: nobody waited for it."""
    if not stage.tasks.app.control.purge():
        stage.notes.append("the flood was sent before the others were done")


KILLED = "no call lost; at most what was at the provider is asked again; the rate is kept"
RESTARTS = "no call lost, no running call run twice, workers go on by themselves, the rate is kept"
REFUSAL = "`.delay()` refuses within 2 s with one clear error; workers live on; no slot is lost"
FORGOTTEN = "each caller has its answer, or `CallLost` within 15 s of its return"
LATER = "calls go on; every outcome's row arrives within 30 s afterwards, once"

FAULTS: tuple[Fault, ...] = (
    Fault(name="worker-killed", promise=KILLED, inject=_kill(1), heal=_one_more, short=True),
    Fault(name="all-workers-killed", promise=KILLED, inject=_kill(2), heal=Stage.workers),
    Fault(
        name="prefork-child-killed",
        promise=KILLED,
        prepare=partial(Stage.workers, count=2, slots=4, pool="prefork"),
        inject=_kill_child,
    ),
    Fault(
        name="prefork-parent-killed",
        promise=KILLED,
        prepare=partial(Stage.workers, count=2, slots=4, pool="prefork"),
        inject=_kill_parent,
        hold_s=3.0,
        heal=_kill_orphans,
    ),
    Fault(
        name="worker-stopped-warm",
        promise="a worker that is asked to stop finishes what it has begun; nothing is asked twice",
        inject=_stop(signal.SIGTERM),
        heal=_one_more,
    ),
    Fault(name="worker-stopped-cold", promise=KILLED, inject=_stop(signal.SIGQUIT), heal=_one_more),
    Fault(name="rolling-deploy", promise="no call lost, nothing asked twice, the rate is kept", inject=_deploy),
    Fault(
        name="redis-restarts",
        promise=RESTARTS,
        inject=_stop_redis,
        hold_s=2.0,
        heal=_start_redis,
        allowed=REFUSES,
    ),
    Fault(name="redis-killed", promise=RESTARTS, inject=_kill_redis, hold_s=2.0, heal=_start_redis, allowed=REFUSES),
    Fault(
        name="redis-frozen",
        promise=f"{RESTARTS}; `.delay()` decides within 2 s",
        inject=lambda stage: stage.redis.signal(signal.SIGSTOP),
        hold_s=10.0,
        heal=lambda stage: stage.redis.signal(signal.SIGCONT),
        allowed=REFUSES,
    ),
    Fault(name="connections-reset", promise=RESTARTS, inject=_reset, allowed=REFUSES),
    Fault(
        name="redis-lost",
        promise=FORGOTTEN,
        inject=_lose,
        hold_s=1.0,
        heal=_start_redis,
        allowed=FORGOT,
        drain_s=45,
    ),
    Fault(name="redis-flushed", promise=FORGOTTEN, inject=_flush, allowed=FORGOT, drain_s=45),
    Fault(name="stale-replica", promise=FORGOTTEN, inject=_stale, allowed=FORGOT, drain_s=45),
    Fault(
        name="redis-full",
        promise=REFUSAL,
        inject=_configure(maxmemory="1mb"),
        hold_s=4.0,
        heal=_configure(maxmemory="0"),
        look=_met("OOM"),
        allowed=REFUSES,
        short=True,
    ),
    Fault(
        name="redis-read-only",
        promise=REFUSAL,
        inject=_read_only,
        hold_s=5.0,
        heal=_writable,
        look=_met("READONLY"),
        allowed=REFUSES,
    ),
    Fault(
        name="redis-disk-full",
        promise=REFUSAL,
        prepare=_small_redis,
        inject=_fill,
        hold_s=6.0,
        heal=_empty,
        look=_met("MISCONF"),
        allowed=REFUSES,
        surroundings=partial(small_disk, 24),
    ),
    Fault(
        name="password-rotated",
        promise="running calls keep their answers; processes go on when the password's file is changed",
        env={"MAISD_REDIS_PASSWORD_FILE": str(PASSWORD)},
        prepare=_guard,
        inject=_rotate,
        hold_s=4.0,
        heal=lambda stage: PASSWORD.write_text("two"),
        allowed=REFUSES,
    ),
    Fault(
        name="database-away",
        promise=LATER,
        database="postgresql",
        inject=lambda stage: stage.postgres.stop() if stage.postgres else None,
        hold_s=8.0,
        heal=lambda stage: stage.postgres.start() if stage.postgres else None,
        look=_recorder_said_so,
    ),
    Fault(name="database-locked", promise=LATER, inject=_lock, look=_recorder_said_so),
    Fault(
        name="database-disk-full",
        promise=LATER,
        prepare=_small_database,
        inject=_fill,
        hold_s=6.0,
        heal=_empty,
        look=_recorder_said_so,
        surroundings=partial(small_disk, 2),
        env={"CHAOS_SQLITE": "on the disk"},
    ),
    Fault(
        name="database-deleted",
        promise="a SQLite file that was deleted is made anew; what comes after it is there",
        inject=_delete,
        look=_later_ones_are_recorded,
        allowed=Allowed(unrecorded=True),
    ),
    Fault(name="recorder-killed", promise=LATER, inject=_kill_recorder, heal=Stage.workers),
    Fault(name="tuner-killed", promise=KILLED, inject=_kill_holder("tune"), heal=_one_more),
    Fault(
        name="provider-away",
        promise="calls wait, none fails for it; recovery within 5 % of the outage + 2 s",
        inject=_provider(fault="outage", for_s=30.0),
        hold_s=30.0,
        allowed=Allowed(recover_s=3.5),
        calls=100,
    ),
    Fault(
        name="provider-refuses-connections",
        promise="calls wait, none fails for it",
        inject=_provider(fault="outage", how="refused", for_s=10.0),
        hold_s=10.0,
        calls=100,
    ),
    Fault(
        name="provider-hangs",
        promise="no longer than the time-out of a call; it is tried again",
        inject=_provider(fault="hang", share=0.1, for_s=6.0),
        hold_s=6.0,
        env={"MAISD_TIMEOUT_SECONDS": "2"},
        calls=100,
    ),
    Fault(
        name="provider-drips",
        promise="no longer than the time-out of a call, however it comes",
        inject=_provider(fault="drip", share=0.1, for_s=6.0),
        hold_s=6.0,
        env={"MAISD_TIMEOUT_SECONDS": "2"},
        calls=100,
    ),
    Fault(
        name="provider-answers-garbage",
        promise="tried again up to three times, and then `MalformedResponse`",
        inject=_provider(fault="malformed", share=0.1, for_s=6.0),
        hold_s=6.0,
        allowed=Allowed(errors=frozenset({"MalformedResponse"})),
    ),
    Fault(
        name="provider-hangs-up",
        promise="tried again up to six times",
        inject=_provider(fault="reset", share=0.2, for_s=6.0),
        hold_s=6.0,
    ),
    Fault(
        name="429-storm",
        promise="no call fails for it; 80 % of the pace within 10 s of the first good answer",
        inject=_provider(fault="429", retry_after_s=1.0, for_s=8.0),
        hold_s=8.0,
        allowed=Allowed(recover_s=30.0),
    ),
    Fault(
        name="one-poison-call",
        promise="the others of its lane go on; it is given up after its category's tries",
        inject=_poison,
        allowed=Allowed(errors=frozenset({"ServerError"})),
        drain_s=200.0,
    ),
    Fault(
        name="a-call-kills-its-child",
        promise="given up after 3 deliveries with a clear error; the rest go on",
        prepare=partial(Stage.workers, count=2, slots=4, pool="prefork"),
        inject=_fatal,
        look=_killed_thrice,
        allowed=Allowed(errors=frozenset({"WorkerLostRepeatedly"})),
    ),
    Fault(
        name="a-call-kills-its-worker",
        promise="given up after 3 deliveries with a clear error; the rest go on",
        prepare=partial(Stage.workers, count=2, slots=4),
        inject=_fatal,
        heal=_supervise,
        look=_killed_thrice,
        allowed=Allowed(errors=frozenset({"WorkerLostRepeatedly"})),
        paced=False,
    ),
    Fault(
        name="any-exception",
        promise="its slot is free, its caller has an error, its row is written",
        inject=_raise_all,
        look=_each_has_its_error,
    ),
    Fault(
        name="garbage-messages",
        promise="set aside with a counter; workers go on",
        inject=_garbage,
        look=_garbage_is_counted,
        short=True,
    ),
    Fault(
        name="unknown-task",
        promise="its caller has an error at once; workers go on",
        inject=_unknown,
        look=_unknown_was_refused,
    ),
    Fault(
        name="leader-dies",
        promise="followers get the answer of a new leader; at most 2 provider calls",
        scenario=Scenario(latency="1.0"),
        prepare=partial(Stage.workers, count=1),
        calls=20,
        after=5,
        inject=_share,
        heal=_one_more,
        look=_asked_twice_at_most,
    ),
    Fault(
        name="lane-flooded",
        promise="a lane that is full holds up no other",
        inject=_flood,
        look=_flood_waits,
        paced=False,
    ),
    Fault(
        name="clock-jumps",
        promise="waits and leases are told by Redis' clock; nothing is lost",
        inject=nothing,
        skip="needs a server with a clock of its own (libfaketime), which is no part of this project",
    ),
)  # fmt: skip
