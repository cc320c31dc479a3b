"""Does a rolling deploy lose or delay calls? From an older checkout to this one and back, with a plain Celery worker.

    git clone . /tmp/old && git -C /tmp/old checkout 624dc0e && make -C /tmp/old install
    python benchmarks/deploy.py --old /tmp/old [--rate 50] [--seconds 12] [--latency 0.1] [--stock new|always]

One paced lane; calls are sent a little faster than it releases them, so that some always wait. The steps: two old
workers; two new ones join; the old ones leave; a new producer replaces the old one and sends a task that the old
workers do not know; two old ones come back; the new ones leave. A worker of plain Celery ("stock") with a task of the
same name consumes from the same queue: in the step without old workers (`new`; an old producer still sends at its
beginning), or all the time (`always`: it has always been able to read what an old worker releases). Required: every
call is answered once, with the answer to its own prompt; no worker sets a call aside; the rate of each step is within
10 % of the lane's. Prints a Markdown table; exit code 1: one of these is false.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import wait_for  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

LEAD = 1.05  #: calls are sent faster than the lane's pace by this factor
TOLERANCE = 0.10

APP = """
import os, time
from celery import Celery
from ratelimit_worker import install, llm_task
app = Celery("shop", broker=os.environ["MAISD_REDIS_URL"], backend=os.environ["MAISD_REDIS_URL"])
install(app)
def log(name, prompt):
    with open(os.environ["DEPLOY_LOG"], "a") as file:
        file.write(f"{time.time():.6f} {os.environ['DEPLOY_WHO']} {name} {prompt}\\n")
def run(name, prompt):
    log(name, prompt)
    time.sleep(float(os.environ["DEPLOY_LATENCY"]))
    return "answer to " + prompt
@llm_task(name="shop.translate", lane="shop", cache=False, app=app)
def translate(prompt):
    return run("translate", prompt)
if os.environ["DEPLOY_WHO"] != "old":
    @llm_task(name="shop.summarise", lane="shop", cache=False, app=app)
    def summarise(prompt):
        return run("summarise", prompt)
"""
STOCK = """
import os, time
from celery import Celery
app = Celery("shop", broker=os.environ["MAISD_REDIS_URL"], backend=os.environ["MAISD_REDIS_URL"])
@app.task(name="shop.translate")
def translate(prompt):
    with open(os.environ["DEPLOY_LOG"], "a") as file:
        file.write(f"{time.time():.6f} stock translate {prompt}\\n")
    return "stock answer to " + prompt
"""
PRODUCER = """
import json, os, sys, threading, time
import shop
rate, prefix, both = float(sys.argv[1]), sys.argv[2], sys.argv[3] == "both"
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
shop.app.connection_for_write().connect()
open(prefix + ".up", "w").close()
began, n, sent = time.monotonic(), 0, open(os.environ["DEPLOY_SENT"], "a")
while not stop.is_set():
    task = shop.summarise if both and n % 4 == 0 else shop.translate
    prompt = f"{prefix}-{n}"
    sent.write(json.dumps([task.delay(prompt).id, prompt]) + "\\n")
    n += 1
    stop.wait(max(0.0, began + n / rate - time.monotonic()))
sent.close()
"""


@dataclass
class Run:
    """One deploy: its broker, its processes, and what they have written."""

    old: Path
    rate: float
    latency_s: float
    slots: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rlw-deploy-")))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.valkey = Valkey(self.folder)
        self.log, self.sent = self.folder / "log", self.folder / "sent"
        self.log.touch()
        self.sent.touch()
        (self.folder / "shop.py").write_text(APP)
        (self.folder / "stock.py").write_text(STOCK)
        (self.folder / "produce.py").write_text(PRODUCER)

    def env(self, who: str) -> dict[str, str]:
        """The environment of a process of the old version, of this one, or of plain Celery."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.old if who == "old" else ROOT), str(self.folder)]),
            "MAISD_REDIS_URL": self.valkey.url,
            "MAISD_STATE_DIR": str(self.folder / f"state-{who}"),
            "MAISD_LANES": json.dumps({"shop": {"rpm": self.rate * 60, "adaptive": False}}),
            "MAISD_VISIBILITY_TIMEOUT_SECONDS": "10",
            "DEPLOY_WHO": who,
            "DEPLOY_LOG": str(self.log),
            "DEPLOY_SENT": str(self.sent),
            "DEPLOY_LATENCY": str(self.latency_s),
        }

    def python(self, who: str) -> str:
        """The interpreter of that version, with what it depends on."""
        return str(self.old / ".venv" / "bin" / "python") if who == "old" else sys.executable

    def worker(self, name: str, who: str) -> None:
        """Start a worker and wait until it consumes."""
        out = self.folder / f"{name}.log"
        command = [self.python(who), "-m", "celery", "-A", "stock" if who == "stock" else "shop", "worker"]
        options = ["-n", f"{name}@h", "-P", "threads", "-c", str(self.slots), "--without-gossip", "--without-mingle"]
        self.processes[name] = subprocess.Popen(
            [*command, *options, "-l", "INFO"],
            env=self.env(who),
            cwd=self.folder,
            stdout=out.open("ab"),
            stderr=subprocess.STDOUT,
        )
        wait_for(lambda: " ready." in out.read_text("utf-8", "replace"), 60.0, f"{name} is ready")

    def producer(self, name: str, who: str, both: bool) -> None:
        """Start a producer."""
        self.processes[name] = subprocess.Popen(
            [self.python(who), "produce.py", str(self.rate * LEAD), name, "both" if both else "one"],
            env=self.env(who),
            cwd=self.folder,
            stdin=subprocess.PIPE,
        )
        wait_for((self.folder / f"{name}.up").exists, 60.0, f"{name} sends")

    def stop(self, *names: str) -> None:
        """End processes in an orderly way."""
        for name in names:
            process = self.processes[name]
            if process.stdin is not None:
                process.stdin.close()
            else:
                process.terminate()
        for name in names:
            self.processes.pop(name).wait(timeout=60)

    def rows(self) -> list[tuple[float, str, str, str]]:
        """(time, who, task, prompt) of every start."""
        rows = [line.split(" ", 3) for line in self.log.read_text().splitlines()]
        return [(float(at), who, task, prompt) for at, who, task, prompt in rows]


def steps(run: Run, stock_always: bool) -> list[tuple[str, Callable[[], None]]]:
    """The steps, in their order: name, and what to do."""

    def first() -> None:
        run.worker("old1", "old")
        run.worker("old2", "old")
        if stock_always:
            run.worker("stock", "stock")
        run.producer("p1", "old", both=False)

    def join() -> None:
        run.worker("new1", "new")
        run.worker("new2", "new")

    def changed() -> None:
        if not stock_always:
            run.worker("stock", "stock")
        run.producer("p2", "new", both=True)
        run.stop("p1")

    def back() -> None:
        run.producer("p3", "new", both=False)
        run.stop("p2")
        if not stock_always:
            run.stop("stock")
        run.worker("old1", "old")
        run.worker("old2", "old")

    return [
        ("two old workers, old producer", first),
        ("two new workers join", join),
        ("the old workers leave", lambda: run.stop("old1", "old2")),
        ("new producer and a new task" + ("" if stock_always else ", the stock worker joins"), changed),
        ("two old workers come back, the new task is sent no more", back),
        ("the new workers leave", lambda: run.stop("new1", "new2")),
    ]


def main() -> int:
    """Run it and print the table; returns 1 if a requirement is not met."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--old", type=Path, required=True, help="an older checkout")
    options.add_argument("--rate", type=float, default=50.0, help="calls a second of the lane")
    options.add_argument("--seconds", type=float, default=12.0, help="of each step, once its processes are ready")
    options.add_argument("--latency", type=float, default=0.1, help="seconds of an answer")
    options.add_argument("--slots", type=int, default=8, help="of each worker")
    options.add_argument("--stock", choices=["new", "always"], default="new")
    options.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    told = options.parse_args()
    run = Run(told.old.resolve(), told.rate, told.latency, told.slots)
    marks: list[tuple[str, float, float]] = []
    try:
        run.valkey.start()
        for name, act in steps(run, told.stock == "always"):
            began = time.time()
            act()
            if not marks:  # until some wait
                began = time.time() + 2.0
                time.sleep(2.0)
            time.sleep(told.seconds)
            marks.append((name, began, time.time()))
        run.stop("p3")
        sent = [tuple(json.loads(line)) for line in run.sent.read_text().splitlines()]
        got = answers(run, sent)
    finally:
        run.stop(*list(run.processes))
        run.valkey.stop()
        logs = "".join(path.read_text("utf-8", "replace") for path in run.folder.glob("*.log"))
        rows = run.rows()
        if told.keep:
            print("kept:", run.folder)
        else:
            shutil.rmtree(run.folder, ignore_errors=True)
    return judge(told.rate, marks, rows, sent, got, logs)


def answers(run: Run, sent: list[tuple[str, str]]) -> dict[str, str | None]:
    """Prompt → answer; None: none came within a minute."""
    names = {f"celery-task-meta-{call_id}": prompt for call_id, prompt in sent}
    got: dict[str, str | None] = dict.fromkeys(names.values())
    until = time.monotonic() + 60.0
    while time.monotonic() < until and None in got.values():
        missing = [name for name, prompt in names.items() if got[prompt] is None]
        for name, raw in zip(missing, run.valkey.client.mget(missing), strict=True):
            if raw is not None and (meta := json.loads(raw))["status"] in ("SUCCESS", "FAILURE"):
                got[names[name]] = str(meta["result"])
        time.sleep(0.2)
    return got


def judge(
    rate: float,
    marks: list[tuple[str, float, float]],
    rows: list[tuple[float, str, str, str]],
    sent: list[tuple[str, str]],
    got: dict[str, str | None],
    logs: str,
) -> int:
    """Print what was seen; returns 1 if a requirement is not met."""
    print("| step | starts/s | most in 1 s | least in 2 s | by old | by new | by stock |")
    print("|---|---|---|---|---|---|---|")
    broken = 0
    for name, began, ended in marks:
        some = [row for row in rows if began <= row[0] < ended]
        per_s = len(some) / (ended - began)
        times = [row[0] for row in some]
        most = max((sum(1 for at in times if since <= at < since + 1) for since in times), default=0)
        windows = [began + k * 0.5 for k in range(int((ended - began - 2) / 0.5))]
        least = min((sum(1 for at in times if since <= at < since + 2) / 2 for since in windows), default=0.0)
        by = Counter(row[1] for row in some)
        print(f"| {name} | {per_s:.1f} | {most} | {least:.1f}/s | {by['old']} | {by['new']} | {by['stock']} |")
        broken += abs(per_s / rate - 1) > TOLERANCE
    wrong = [prompt for _, prompt in sent if got[prompt] != f"answer to {prompt}"]
    runs = Counter(row[3] for row in rows)
    twice = [prompt for _, prompt in sent if runs[prompt] > 1]
    refs = [row for row in rows if row[3].startswith("ref:")]
    aside = logs.count("message.set_aside") + logs.count("Received unregistered task")
    print()
    print(
        f"{len(sent)} calls sent; {len(wrong)} without their own answer, {len(twice)} run twice, "
        f"{len(refs)} references run as prompts, {aside} messages set aside by a worker that did not know their task, "
        f"{logs.count('message.declined')} given back for that"
    )
    for prompt in wrong[:5]:
        print("  ", prompt, "->", got[prompt])
    return int(bool(broken or wrong or twice or refs or aside))


if __name__ == "__main__":
    sys.exit(main())
