"""What does a worker take compared with one of plain Celery? Memory, import and start; and the memory of Flower.

    python -m benchmarks.footprint [--pairs 5] [--calls 1000] [--events 100000]

Processes run in pairs, plain Celery and ours in turn, on one Valkey; the median of the ratios is printed. One further
worker of ours runs all the time and has the duty of the recorder, so the measured ones show the cost of each further
worker; the recorder's figures, which apply to one worker of a deployment, are printed without a goal. Import and start
are measured in processor time (user and system), which is valid on a busy machine too; compiled modules are kept in the
benchmark's own folder, and the first process of each kind, which compiles them, is not counted. A worker has four
threads; its memory is read after `--calls` calls that do nothing. Flower gets the events of 100,000 calls from a
process that sends them as a worker would. Goals: import and start at most 1.2 times plain Celery's, memory at most 1.3
times, Flower at most 150 MB.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from tests.conftest import wait_for  # noqa: E402
from tests.fleet import Valkey, free_port  # noqa: E402

IMPORT, START, MEMORY, FLOWER_MB = 1.2, 1.2, 1.3, 150.0  #: goals
IDLE_S = 0.3  #: processor time that Flower takes in 3 s if it has nothing to do
PLAIN_IMPORT = "import celery.apps.worker, celery.bin.celery, kombu.transport.redis, celery.backends.redis"
OUR_IMPORT = f"{PLAIN_IMPORT}, ratelimit_worker.app"
PLAIN_APP = """
import os
from celery import Celery
url = os.environ["MAISD_REDIS_URL"]
app = Celery("footprint", broker=url, backend=url)
queue = os.environ.get("FOOTPRINT_QUEUE", "celery")
app.conf.update(task_acks_late=True, worker_send_task_events=False, task_default_queue=queue)
@app.task(name="noop")
def noop(n):
    return n
"""
OURS = """
from ratelimit_worker import install, llm_task
install(app)
@llm_task(app=app, """
OUR_APP = PLAIN_APP.replace("\n@app.task(", OURS)
CALLS = "import app, sys\nfor one in [app.noop.delay(n) for n in range(int(sys.argv[1]))]: one.get(timeout=120)"
EVENTS = """
import app, sys, uuid
made = int(sys.argv[1])
with app.app.connection_for_write() as connection, app.app.events.Dispatcher(connection, hostname="celery@one") as told:
    told.send("worker-online", freq=2)
    for number in range(made):
        call = str(uuid.uuid4())
        told.send("task-received", uuid=call, name="noop", args="(lane=bench, 4 B)", kwargs="{}", root_id=call)
        told.send("task-started", uuid=call)
        told.send("task-succeeded", uuid=call, result="", runtime=0.1)
"""


def kib(pid: int, what: str) -> int:
    """A value of a process's status in kB, such as VmRSS or VmHWM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def imported_s(code: str, env: Mapping[str, str]) -> float:
    """Processor time of a process that runs these imports, seconds."""
    child = subprocess.Popen([sys.executable, "-c", code], env=dict(env), cwd=ROOT)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return used.ru_utime + used.ru_stime


@contextmanager
def process(arguments: list[str], log: Path, folder: Path, env: Mapping[str, str]) -> Iterator[int]:
    """A Python process, which is ended by SIGTERM and writes its output to `log`; yields its pid."""
    with log.open("w") as said:
        child = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=dict(env), stdout=said, stderr=said)
        try:
            yield child.pid
        finally:
            child.terminate()
            child.wait(timeout=120)


@contextmanager
def ready(name: str, folder: Path, env: Mapping[str, str]) -> Iterator[int]:
    """A worker that is ready to take calls; yields its pid."""
    log = folder / f"{name}.log"
    arguments = ["-m", "celery", "-A", "app", "worker", "-n", name, "-P", "threads", "-c", "4", "-l", "INFO"]
    with process(arguments, log, folder, env) as pid:
        wait_for(lambda: " ready." in log.read_text(), what=lambda: log.read_text()[-2000:])
        yield pid


def worker(app: str, folder: Path, env: Mapping[str, str], calls: int, queue: str) -> tuple[float, int]:
    """Processor time of a worker until it is ready, in seconds, and its memory in kB after so many calls.

    Args:
        queue: Its own, so that no other worker takes its calls.
    """
    (folder / "app.py").write_text(app)
    told = {**env, "FOOTPRINT_QUEUE": queue}
    with ready(queue, folder, told) as pid:
        started_s = cpu_s(pid)
        subprocess.run([sys.executable, "-c", CALLS, str(calls)], cwd=folder, env=told, check=True)
        return started_s, kib(pid, "VmRSS")


@contextmanager
def recorder(folder: Path, env: Mapping[str, str]) -> Iterator[int]:
    """A worker of ours that records what all others do; yields its pid."""
    (folder / "app.py").write_text(OUR_APP)
    with ready("recorder", folder, {**env, "FOOTPRINT_QUEUE": "recorder"}) as pid:
        yield pid


def flower_kib(folder: Path, env: Mapping[str, str], events: int) -> int:
    """The most memory of Flower while it got the events of so many calls, kB."""
    (folder / "app.py").write_text(OUR_APP)
    port, log = free_port(), folder / "flower.log"
    arguments = ["-m", "ratelimit_worker", "flower", "-A", "app", "--port", str(port)]
    with process(arguments, log, folder, env) as pid:
        wait_for(lambda: listens(port), what=lambda: log.read_text()[-2000:])
        subprocess.run([sys.executable, "-c", EVENTS, str(events)], cwd=folder, env=dict(env), check=True)
        before_s = -1.0
        while (now_s := cpu_s(pid)) - before_s > IDLE_S:  # it still reads what was sent
            before_s = now_s
            time.sleep(3.0)
        return kib(pid, "VmHWM")


def listens(port: int) -> bool:
    """Whether a process listens on the port."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def main() -> int:
    """Run it once; 1: a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--events", type=int, default=100_000)
    told = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Valkey(folder)
        server.start()
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {
            "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
            "MAISD_REDIS_URL": server.url,
            "MAISD_DATABASE_URL": f"sqlite:///{folder}/tracking.db",
            "MAISD_STATE_DIR": str(folder / "state"),
        }
        try:
            imported_s(OUR_IMPORT, env)
            pairs = [(imported_s(PLAIN_IMPORT, env), imported_s(OUR_IMPORT, env)) for _ in range(told.pairs)]
            print(f"import, s: {', '.join(f'{plain:.2f} and {ours:.2f}' for plain, ours in pairs)}")
            ratio = statistics.median(ours / plain for plain, ours in pairs)
            missed.append(beside("import ratelimit_worker.app, of plain Celery's", ratio, IMPORT, "times"))
            worker(OUR_APP, folder, env, 1, "first")  # it records, too, so that all is compiled
            with recorder(folder, env) as pid:
                started_s = cpu_s(pid)
                both = [
                    (
                        worker(PLAIN_APP, folder, env, told.calls, "plain"),
                        worker(OUR_APP, folder, env, told.calls, "ours"),
                    )
                    for _ in range(max(1, told.pairs // 2))
                ]
                print(f"the recorder beside them, s to be ready and MB: {started_s:.2f} {kib(pid, 'VmRSS') / 1024:.0f}")
            print(
                "worker, s to be ready and MB: "
                + ", ".join(f"{p[0]:.2f} {p[1] / 1024:.0f} and {o[0]:.2f} {o[1] / 1024:.0f}" for p, o in both)
            )
            ratio = statistics.median(ours[0] / plain[0] for plain, ours in both)
            missed.append(beside("a worker's start, of plain Celery's", ratio, START, "times"))
            ratio = statistics.median(ours[1] / plain[1] for plain, ours in both)
            missed.append(beside("a worker's memory, of plain Celery's", ratio, MEMORY, "times"))
            most = flower_kib(folder, env, told.events) / 1024
            missed.append(beside(f"Flower's memory after {told.events:,} calls", most, FLOWER_MB, "MB"))
        finally:
            server.stop()
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
