"""One order of things for every fault: load, fault, heal, drain, judge."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.chaos.faults import Fault
from tests.chaos.stage import RATE, Stage, stage
from tests.chaos.verdict import Verdict, judge
from tests.conftest import PostgresServer, binaries, postgres, wait_for

LEAD = 1.2  #: calls are made so much faster than the lane lets them go, so that some always wait
AFTER = 20  #: calls that are made when all is healed
LISTEN_S = 15.0  #: in which a caller is told that its call is lost
ROWS_S = 30.0
SLOTS_S = 30.0


def run(fault: Fault, scale: float = 1.0) -> Verdict:
    """Stage a fault, and judge.

    Args:
        scale: Of the number of calls; the short set takes fewer.
    Raises:
        OSError: this machine cannot stage it.
        AssertionError: the stage did not come to what the fault needs.
    """
    with fault.surroundings() as disk, _postgres(fault.database == "postgresql") as postgres:
        env, database = dict(fault.env), postgres.new_database() if postgres else None
        if disk is not None:
            os.environ["CHAOS_DISK"] = str(disk)
            if env.pop("CHAOS_SQLITE", ""):
                database = f"sqlite:///{disk}/state/tracking.sqlite3"
        with stage(fault.scenario, database, env) as scene:
            scene.postgres = postgres
            fault.prepare(scene)
            return _through(fault, scene, round(fault.calls * scale))


@contextmanager
def _postgres(wanted: bool) -> Iterator[PostgresServer | None]:
    if not wanted:
        yield None
        return
    found = binaries()
    if found is None:
        raise OSError("PostgreSQL is not installed")
    with postgres(found) as server:
        yield server


def _through(fault: Fault, scene: Stage, calls: int) -> Verdict:
    load = threading.Thread(target=_load, args=(scene, calls), name="load")
    load.start()
    try:
        wait_for(lambda: sum(one.good for one in scene.asked()) >= min(fault.after, calls // 2), what="calls run")
        fault.inject(scene)
        time.sleep(fault.hold_s)  # how long the world is broken is the fault's own; nothing is judged by it
        fault.heal(scene)
        scene.healed_at = time.time()
    finally:
        load.join()
    for number in range(AFTER):
        scene.send(f"after-{number}", scene.tasks.ask.delay)
    if not _within(fault.drain_s, scene.listen):
        scene.hear_the_rest(LISTEN_S)
    _within(ROWS_S, scene.recorded)
    fault.look(scene)
    scene.use_all_slots(SLOTS_S)
    return judge(scene.evidence(fault.paced), fault.allowed)


def _load(scene: Stage, calls: int) -> None:
    began_s = time.monotonic()
    for number in range(calls):
        scene.send(f"q-{number}", scene.tasks.ask.delay)
        time.sleep(max(0.0, began_s + (number + 1) / (RATE * LEAD) - time.monotonic()))


def _within(timeout_s: float, done: Callable[[], bool]) -> bool:
    until_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.2)
    return True
