"""How much of a provider's capacity does a client use, and how many refusals does it get for that?

    python benchmarks/provider_race.py [--client ours …] [--scenario steady …] [--seeds 0 1 2] [--seconds 60]
                                       [--jobs 1] [--json FILE]

Each run: a simulated provider in one process and one client in another, in an environment of its own (made in .race/ at
the first use), over HTTP on loopback. All clients get the same calls, more than can be answered, and the provider's log
is evaluated: good answers delivered within the horizon, which begins with the first request, as a share of the oracle's
(ratelimit_worker/simulate/oracle.py). *429s* are a share of the requests that met no scripted fault. In
thousand_at_once all calls are waited for: there the share is the oracle's time divided by the client's (at most 1),
times the share of the calls that were answered.
With more than one job at a time the machine itself may limit the clients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.race.batch import tied  # noqa: E402
from benchmarks.race.clients import CLIENTS, Client, environment  # noqa: E402
from benchmarks.race.count import Figures, count, statuses, table  # noqa: E402
from ratelimit_worker.simulate import Simulator  # noqa: E402
from ratelimit_worker.simulate.oracle import oracle_time_s  # noqa: E402
from ratelimit_worker.simulate.scenarios import CASES, Case  # noqa: E402

_START_S = 120.0  # after which a client that has sent nothing has failed
_STOP_S = 20.0
_PATIENCE = 5.0  # in a finite case a client may take so many times the oracle's time
_SETTLE_S = 1.0  # wait after the horizon, so that the log has the ends of the last requests


class Stopped(Exception):
    """A signal has asked the race to end."""


def race(client: Client, case: Case, seconds: float | None, stopping: threading.Event) -> Figures:
    """One run; every process that it starts has ended when it returns or raises.

    Raises:
        RuntimeError: The client sent nothing.
        Stopped: `stopping` was set.
    """
    if stopping.is_set():
        raise Stopped
    horizon_s = case.horizon_s if seconds is None else seconds
    if case.finite is not None:
        horizon_s = _PATIENCE * oracle_time_s(case.provider, case.finite, case.mean())
    with tempfile.TemporaryDirectory(prefix="race-", dir="/tmp") as name:  # short: it holds unix sockets
        folder = Path(name)
        source, target, words = folder / "in.jsonl", folder / "out.jsonl", folder / "words"
        source.write_text("".join(_batch_line(call.custom_id, call.body()) for call in case.calls(horizon_s)))
        with Simulator(case.provider) as provider, words.open("wb") as said:
            process = subprocess.Popen(
                tied(client.command(source, target, provider.base_url, case.nominal_rpm)),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment(folder),
                cwd=folder,
                start_new_session=True,
            )
            try:
                ended = _watch(process, provider, horizon_s, stopping)
            finally:
                _end(process)
            log = provider.log()
        if not log.arrivals:
            raise RuntimeError(f"{client.name} sent nothing: {words.read_text('utf-8', 'replace')[-2000:]}")
        ends = statuses(target.open(encoding="utf-8")) if target.exists() else {}
    return count(client.name, case, horizon_s, log, ends, ended=ended)


def main() -> None:
    """Run what the command line names; print a line for each run, and a table."""
    given = _arguments()
    clients = [CLIENTS[name] for name in given.client]
    for client in clients:
        client.prepare()
    runs = [(client, CASES[name].seeded(seed)) for name in given.scenario for seed in given.seeds for client in clients]
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    done: list[Figures] = []
    broken = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        futures = {pool.submit(race, client, case, given.seconds, stopping): (client, case) for client, case in runs}
        for future in as_completed(futures):
            client, case = futures[future]
            try:
                figures = future.result()
            except Stopped:
                continue
            except Exception as error:  # the figures of the others are printed even if one client fails
                broken += 1
                print(f"{case.name} seed {case.seed} {client.name}: no figures: {error}", file=sys.stderr, flush=True)
                continue
            done.append(figures)
            print(figures.line(), flush=True)
            if given.json is not None:
                with given.json.open("a", encoding="utf-8") as file:
                    file.write(figures.as_json() + "\n")
    order = [(client.name, case.name, case.seed) for client, case in runs]
    done.sort(key=lambda run: order.index((run.client, run.case, run.seed)))
    if done:
        print(f"\n{table(done)}")
    sys.exit(130 if stopping.is_set() else 1 if broken else 0)


def _watch(
    process: subprocess.Popen[bytes],
    provider: Simulator,
    horizon_s: float,
    stopping: threading.Event,
) -> bool:
    """Wait until the horizon is over or the client has ended; returns whether the client ended by itself."""
    started_s, begun_s = time.monotonic(), None
    empty = provider.log_path.stat().st_size  # the log's first line is the provider's own start
    while True:
        if stopping.wait(0.05):
            raise Stopped
        now_s = time.monotonic()
        if begun_s is None and provider.log_path.stat().st_size > empty:
            begun_s = now_s
        ended = process.poll() is not None
        if begun_s is None:
            if ended or now_s - started_s > _START_S:
                return ended
        elif ended or now_s - begun_s > horizon_s + _SETTLE_S:
            return ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a client, by SIGTERM first, and all processes that are left in its session."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its children, if any are left


def _batch_line(custom_id: str, body: object) -> str:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--scenario", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="the horizon. Default: each scenario's own")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="append the figures of each run to it as JSON lines")
    given = parser.parse_args()
    if given.jobs < 1 or (given.seconds is not None and given.seconds <= 0):
        parser.error("--jobs and --seconds are numbers above 0")
    return given


if __name__ == "__main__":
    main()
