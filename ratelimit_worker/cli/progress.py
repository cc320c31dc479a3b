"""Progress on stderr: on a terminal one line that is refreshed, otherwise a plain line every few seconds."""

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
_BETWEEN = " · "


class Progress:
    """Messages on stderr.

    Args:
        every_s: Seconds between two lines if there is no terminal.
        stream: None: stderr.
    """

    def __init__(self, every_s: float = 5.0, stream: Any = None) -> None:
        told = stream if stream is not None else sys.stderr
        self._stream: Any = _Nobody() if told is None else told  # None: it was closed before this began
        #: Whether it is a terminal on which a line can be overwritten.
        self.live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._every_s = _REFRESH_S if self.live else every_s
        self._next_s = time.monotonic() + (0.0 if self.live else every_s)
        self._shown = False

    def tick(self, words: Callable[[], str]) -> None:
        """Show `words()` if the next refresh is due."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        line = words()
        if self.live:
            columns = shutil.get_terminal_size().columns
            self._put(f"\r\x1b[K{fitting(one_line(line), columns - 1)}")
            self._shown = True
        else:
            self._say(line)
        self._next_s = time.monotonic() + self._every_s

    def note(self, text: str) -> None:
        """Print a line that is not overwritten."""
        self.clear()
        self._say(text)

    def clear(self) -> None:
        """Remove the refreshed line."""
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
        """Ignore errors in writing: if stderr is closed (`2>&1 | head`, a closed terminal), the command goes on."""
        try:
            yield
        except (OSError, ValueError):
            self._stream, self.live = _Nobody(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()


def fitting(line: str, columns: int) -> str:
    """A line of parts with " · " between them, in so many columns: the first part and the last are left out last."""
    from rich.cells import cell_len, set_cell_size

    parts = line.split(_BETWEEN)
    while len(parts) > 2 and cell_len(_BETWEEN.join(parts)) > columns:
        del parts[-2]
    return set_cell_size(_BETWEEN.join(parts), columns).rstrip()


class _Nobody:
    """Replaces a closed stream."""

    def write(self, text: str) -> int:
        """Discard the text."""
        return len(text)

    def flush(self) -> None:
        """Does nothing."""

    def isatty(self) -> bool:
        """False."""
        return False


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
