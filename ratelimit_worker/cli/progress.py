"""How is one told how it goes? On a terminal one line that is refreshed, elsewhere a plain line now and then."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import click

from ratelimit_worker.cli.terminal import say
from ratelimit_worker.plain_text import one_line

_REFRESH_S = 0.25


class Progress:
    """Words on stderr.

    Args:
        every_s: Seconds between two lines where there is no terminal.
        stream: stderr when None.
    """

    def __init__(self, every_s: float = 5.0, stream: Any = None) -> None:
        told = stream if stream is not None else sys.stderr
        self._stream: Any = _Nobody() if told is None else told  # None where it was closed before this began
        #: Whether there is a terminal that takes a line back.
        self.live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._every_s = _REFRESH_S if self.live else every_s
        self._next_s = time.monotonic() + (0.0 if self.live else every_s)
        self._shown = False

    def tick(self, words: Callable[[], str]) -> None:
        """Show `words()` if it is time to."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        line = words()
        if self.live:
            columns = shutil.get_terminal_size().columns
            self._put(f"\r\x1b[K{one_line(line)[: columns - 1]}")
            self._shown = True
        else:
            self._say(line)
        self._next_s = time.monotonic() + self._every_s

    def note(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._say(text)

    def clear(self) -> None:
        """Take the refreshed line away."""
        if self._shown:
            self._put("\r\x1b[K")
            self._shown = False

    def _put(self, text: str) -> None:
        with self._whoever_listens():
            click.echo(text, file=self._stream, nl=False)

    def _say(self, text: str) -> None:
        with self._whoever_listens():
            say(text, file=self._stream)

    @contextmanager
    def _whoever_listens(self) -> Iterator[None]:
        """Who ends what is told (`2>&1 | head`, a terminal that is closed) does not end what is under way."""
        try:
            yield
        except (OSError, ValueError):
            self._stream, self.live = _Nobody(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()


class _Nobody:
    """In place of a stream to which nobody listens."""

    def write(self, text: str) -> int:
        """Taken, and gone."""
        return len(text)

    def flush(self) -> None:
        """There is nothing to be flushed."""

    def isatty(self) -> bool:
        """It is no terminal."""
        return False


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
