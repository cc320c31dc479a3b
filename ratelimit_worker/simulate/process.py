"""The simulated provider as a process of its own, so that a demo or test does not share its interpreter."""

from __future__ import annotations

import http.client
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError
from ratelimit_worker.simulate.arrivals import Arrival, Log, parse_log
from ratelimit_worker.simulate.counters import Stats
from ratelimit_worker.simulate.scenario import Scenario

_START_S = 30.0  # a loaded machine may need long to start a Python
_STOP_S = 5.0
_ANSWER_S = 30.0


class SimulatorFailed(RateLimitWorkerError):
    """The simulator's process did not start, or died. `str()` has what it wrote to stderr."""


class Simulator:
    """A simulated provider in a process of its own, from `start` (or `with`) to `stop`.

    It also ends when this process ends in any way: the child watches a pipe from here, and its parent's id.

    Args:
        port: 0: any free one.
        host: Address to listen on.
        log_path: File to which arrivals are appended; None: a file that is removed at the end (`arrivals` still works).
    """

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        log_path: Path | None = None,
    ) -> None:
        self.scenario = scenario or Scenario()
        self._host, self._port, self._given_log = host, port, log_path
        self._process: subprocess.Popen[str] | None = None
        self._open = ExitStack()
        self._words: Path | None = None
        self._last_log: bytes | None = None
        #: Where arrivals are logged; set by `start`.
        self.log_path: Path = log_path or Path(os.devnull)
        #: Such as http://127.0.0.1:8080, which is Anthropic's base URL; set by `start`.
        self.url: str = ""

    @property
    def base_url(self) -> str:
        """OpenAI's base URL."""
        return f"{self.url}/v1"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it listens.

        Raises:
            SimulatorFailed: It ended, or did not listen within 30 s.
        """
        if self._process is not None:
            return
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="ratelimit-simulate-")))
        try:
            self._spawn(folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process: by closing its stdin, after 5 s by SIGKILL. The log stays readable through `arrivals`."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()  # it ends when its stdin is closed
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            process.stdout.close()
            if self.log_path.is_file():
                self._last_log = self.log_path.read_bytes()
        self._open.close()

    def kill(self) -> None:
        """End the process by SIGKILL, as a crash would; the log keeps all it wrote."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self.stop()

    def log(self) -> Log:
        """The whole log so far, or as it was at the end."""
        if self._process is None and self._last_log is not None:
            return parse_log(self._last_log)
        return parse_log(self.log_path.read_bytes())

    def arrivals(self) -> list[Arrival]:
        """Requests so far, in the order in which they came."""
        return self.log().arrivals

    def stats(self) -> Stats:
        """Counts so far."""
        return msgspec.json.decode(self._ask("GET", "/_stats"), type=Stats)

    def control(self, **entry: Any) -> None:
        """Put an entry on the timeline, from now (or `at_s` seconds from now); `clear=True` forgets all others.

        Raises:
            ConfigurationError: The entry is not valid.
            SimulatorFailed: The process does not answer.
        """
        self._ask("POST", "/_control", msgspec.json.encode(entry))

    def _spawn(self, folder: Path) -> None:
        scenario, self._words = folder / "scenario.json", folder / "stderr"
        scenario.write_bytes(self.scenario.as_json())
        self.log_path = self._given_log or folder / "arrivals.jsonl"
        command = [sys.executable, "-m", "ratelimit_worker.simulate", "--until-stdin-closes"]
        command += ["--scenario", str(scenario), "--log", str(self.log_path.absolute())]
        command += ["--host", self._host, "--port", str(self._port)]
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                cwd=_checkout(),
                # Ctrl-C in the terminal goes only to this process, which ends the simulator itself.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline().strip() if selector.select(_START_S) else ""
        if not line:
            raise SimulatorFailed(f"the simulator did not start: {self._last_words() or 'it says nothing'}")
        self.url = line.removesuffix("/v1")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        # http.client, since httpx and urllib would use a proxy of the environment.
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_ANSWER_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read()
        except OSError as error:
            raise SimulatorFailed(f"{method} {self.url}{path}: {error}; {self._last_words()}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ConfigurationError(str(msgspec.json.decode(text).get("error", text)))
        return text

    def _last_words(self) -> str:
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)  # if it is ending, give it time to write why
        return "" if self._words is None else " ".join(self._words.read_text("utf-8", "replace").split())


def _checkout() -> Path | None:
    """The folder in which `python -m` finds this package; None: it is installed."""
    root = Path(__file__).resolve().parents[2]
    return None if str(root) in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} else root
