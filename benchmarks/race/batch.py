"""What all clients of the race have in common: the file of calls, the file of answers, and threads that send the calls.

Standard library only: it runs in each client's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

_TIED = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which stays over exec
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before this process began")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """The command as a child that is killed when the thread that started it ends in any way (Linux)."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


class Arguments(NamedTuple):
    """The command line of every client."""

    source: Path  #: OpenAI Batch lines
    target: Path  #: file for the lines of answers
    base_url: str
    rpm: float  #: the provider's initial limit a minute, for clients that need to know it
    callers: int  #: calls at once
    attempts: int | None  #: most attempts of one call; None: the client's default


def arguments() -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("base_url")
    parser.add_argument("--rpm", type=float, required=True)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--attempts", type=int)
    return Arguments(**vars(parser.parse_args()))


def calls(source: Path) -> list[tuple[str, dict[str, Any]]]:
    """custom_id and body of each line."""
    lines = map(json.loads, source.read_text("utf-8").splitlines())
    return [(line["custom_id"], line["body"]) for line in lines]


def answered(target: Path, custom_id: str, status: int | None, why: str = "") -> None:
    """Append the end of one call, with the parts of a Batch answer that are counted: its status, or why it has none.

    A single write to a file opened for appending, so that several processes may write to one file.
    """
    response = None if status is None else {"status_code": status}
    line = json.dumps({"custom_id": custom_id, "response": response, "error": why or None}) + "\n"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Pace:
    """Paces callers by sleeping: each turn comes one interval after the last."""

    def __init__(self, rpm: float) -> None:
        self._interval_s = 60.0 / rpm
        self._lock = threading.Lock()
        self._next_s = time.monotonic()

    def wait(self) -> None:
        """Sleep until it is this caller's turn."""
        with self._lock:
            turn_s = max(self._next_s, time.monotonic())
            self._next_s = turn_s + self._interval_s
        time.sleep(max(0.0, turn_s - time.monotonic()))


def work_off(given: Arguments, send: Callable[[dict[str, Any]], int | None]) -> None:
    """Send all calls in order, by `callers` threads; `send` takes a body, and returns the call's last status."""

    def one(call: tuple[str, dict[str, Any]]) -> None:
        custom_id, body = call
        try:
            status, why = send(body), ""
        except Exception as error:  # any error of a client is the end of this call
            status, why = None, f"{type(error).__name__}: {error}"[:300]
        answered(given.target, custom_id, status, why)

    with ThreadPoolExecutor(given.callers) as pool:
        for _ in pool.map(one, calls(given.source)):
            pass
