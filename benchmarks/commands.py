"""Which Redis commands does a call cost, script by script? The details of the number in `overhead`.

    python -m benchmarks.commands [--calls 300]

One call after the other goes through the scripts that a worker runs, on a real server: in an empty lane (`passing`),
and in a lane in which more calls wait than there are slots (`waiting`: 8 slots as in a threads pool, 2 as in a prefork
pool). These are counts, so they are the same on a busy machine, except for one read of the pump's plan a call, which is
skipped if the last one was less than 4 ms ago. Periodic commands of duties are not included. `--previous ROOT` counts a
checkout of another version instead of this one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, sys.argv[sys.argv.index("--previous") + 1] if "--previous" in sys.argv else str(ROOT))

from ratelimit_worker.contracts.lesson import Lesson, Settlement, Stored  # noqa: E402
from ratelimit_worker.stores.lanes import Crew, Lanes  # noqa: E402
from tests.builders import entry  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

GOAL = 30  #: commands of a whole call, in `overhead`
BOUND = 1_000_000  #: the default of MAISD_MAX_WAITING
CREW = Crew.of({"noop"})
MESSAGE = json.dumps(
    {
        "properties": {"delivery_tag": "@", "delivery_info": {"exchange": "", "redelivered": False}},
        "headers": {"task": "noop"},
        "body": "x",
    }
).encode()


class Profile:
    """Commands by script, of calls that go through one lane."""

    def __init__(self, valkey: Valkey, slots: int) -> None:
        self.client, self.slots = valkey.client, slots
        self.client.flushall()
        self.lanes = Lanes(self.client)
        self.lanes.run.load()
        self.lanes.beat("worker", slots, 6_000.0, ["q"], 30.0, [], CREW)
        self.by: dict[str, Counter[str]] = {}

    def counted(self, script: str, act: Callable[[], Any]) -> Any:
        """Do it, and count its commands for this script."""
        before = self._told()
        done = act()
        found = self.by.setdefault(script, Counter())
        found.update(self._told())
        found.subtract(before)
        return done

    def _told(self) -> Counter[str]:
        told: Any = self.client.info("commandstats")
        return Counter({name[8:]: one["calls"] for name, one in told.items() if name != "cmdstat_info"})

    def send(self) -> None:
        """Make a call."""
        one = entry(
            str(uuid4()), "gpt", "q", message=MESSAGE, max_waiting=BOUND, lane_fields=lambda: {"unlimited": "1"}
        )
        self.counted("enqueue", lambda: self.lanes.enqueue(one))

    def begin(self) -> str:
        """Read a message as a worker, and begin its call; returns its tag."""
        found: Any = self.counted("brpop", lambda: self.client.brpop([f"rlw:ready:{CREW.name}:q"], timeout=5))
        if found is None:
            raise SystemExit("nothing was released")
        tag: str = json.loads(found[1])["properties"]["delivery_tag"]
        begun = self.counted("begin", lambda: self.lanes.begin(tag, 30.0, False, "worker/1"))
        if begun.state != "go":
            raise SystemExit(f"a call did not begin: {begun.state}")
        return tag

    def finish(self, tag: str) -> None:
        """Settle the call with an answer."""
        told = Settlement(
            tag=tag, lane="gpt", answer=b'{"value": 1}', lesson=Lesson(verdict="plain"), outbox=b"x" * 300
        )
        self.counted("finish", lambda: self.lanes.finish(told, Stored(f"result-{tag}", b"1", 60), True))


def passing(profile: Profile, calls: int) -> None:
    """Each call finds the lane empty."""
    for _ in range(calls):
        profile.send()
        profile.finish(profile.begin())


def waiting(profile: Profile, calls: int) -> None:
    """All slots are taken, and more calls wait than are released."""
    for _ in range(calls + 2 * profile.slots):
        profile.send()
    running = [profile.begin() for _ in range(profile.slots)]
    profile.by.clear()
    for _ in range(calls):
        profile.finish(running.pop(0))
        running.append(profile.begin())
    for _ in range(calls):
        profile.send()


def main() -> int:
    """Count, and print one line a script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--previous", type=Path)
    calls = parser.parse_args().calls
    folder = Path(tempfile.mkdtemp(prefix="rlw-bench-"))
    valkey = Valkey(folder)
    valkey.start()
    try:
        for name, drive, slots in (("passing", passing, 8), ("waiting", waiting, 8), ("waiting", waiting, 2)):
            profile = Profile(valkey, slots)
            drive(profile, calls)
            whole = sum(one.total() for one in profile.by.values()) / calls
            print(f"{name}, {slots} slots: {whole:.1f} commands a call (goal of a whole call: {GOAL})")
            for script, found in profile.by.items():
                each = " ".join(f"{what}:{n / calls:.2f}" for what, n in found.most_common() if n / calls >= 0.01)
                print(f"  {script:<8}{found.total() / calls:6.2f}  {each}", flush=True)
    finally:
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
