"""Does a lane keep its pace if Redis is far away? Workers reach it with a latency of some milliseconds.

    python benchmarks/far_redis.py [--ways 0 10 30] [--rate 100] [--calls 600]

Each line: milliseconds in each direction; the rate that was set; and the rate that the provider saw, in calls a second,
without the first and the last tenth of the calls. Two workers of 32 threads; a call takes 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.promises import all_answered, limit, stage, start_workers
from tests.fleet import Fleet

WORKERS, SLOTS = 2, 32


class Way:
    """Forwards TCP connections to a port, and delays each direction by `late_s` seconds."""

    def __init__(self, to: int, late_s: float) -> None:
        self._to, self._late_s, self._loop = to, late_s, asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """End it with all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            for task in (running := asyncio.all_tasks(self._loop)):
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))

    def _serve(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        self._loop.run_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            await asyncio.gather(self._forward(reader, back), self._forward(there, writer), return_exceptions=True)
        except asyncio.CancelledError:
            return  # it is being closed, and asyncio's streams would print the error of each connection

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self._loop.call_later(self._late_s, writer.write, data)
        self._loop.call_later(self._late_s, writer.close)


@contextmanager
def far(made: Fleet, late_s: float) -> Iterator[None]:
    """Workers reach Redis through such a `Way`. This process does not, or `.delay()` would be the bottleneck."""
    way = Way(made.valkey.port, late_s)
    url = f"redis://127.0.0.1:{way.port}/0"
    made.env["MAISD_REDIS_URL"] = url
    try:
        yield
        for worker in made.workers:
            worker.stop()
    finally:
        way.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=float, nargs="*", default=[0, 10, 30])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--calls", type=int, default=600)
    told = parser.parse_args()
    print("| ms there, and back | calls/s asked for | seen | lost |\n|---|---|---|---|")
    for way_ms in told.ways:
        with stage() as (made, provider), far(made, way_ms / 1000):
            start_workers(made, WORKERS, SLOTS)
            tasks = made.agent()
            limit("chat", told.rate)
            lost = all_answered([tasks.chat.delay(n) for n in range(told.calls)], 300.0)
            at = sorted(arrival.unix for arrival in provider.arrivals())
            tenth = len(at) // 10
            seen = (len(at) - 2 * tenth - 1) / (at[-tenth - 1] - at[tenth])
            print(f"| {way_ms:g} | {told.rate:g} | {seen:.1f} | {lost} |", flush=True)
    print(f"load average at the end: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
