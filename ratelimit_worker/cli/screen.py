"""How does a command keep showing something? On a terminal as a screen that fits it, otherwise as text every 2 s.

A terminal that says TERM=dumb gets text too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ratelimit_worker.cli.terminal import say
from ratelimit_worker.plain_text import shown

EVERY_S = 2.0
PRINTED = 120  #: columns of the text if stdout is no terminal
_DRAWN_A_SECOND = 4  #: redraws, so that the screen soon fits a terminal whose size has changed


class Fitted:
    """The last content, drawn anew for the terminal's present size; if it is too long, a last line says by how much."""

    def __init__(self, draw: Callable[[int, int], RenderableType]) -> None:
        """
        Args:
            draw: Called with the terminal's columns and lines; returns what is shown.
        """
        self.draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        high = options.height or console.size.height
        lines = console.render_lines(self.draw(options.max_width, high), options.update(height=None), pad=False)
        cut = len(lines) > high
        for line in lines[: high - 1] if cut else lines:
            yield from line
            yield _NEWLINE
        if cut:
            yield Text(f"… {len(lines) - high + 1} lines more than this terminal has", style="dim", end="")


_NEWLINE = Text("", end="\n")


def keep_showing(look: Callable[[], Callable[[int | None, int | None], RenderableType]]) -> None:
    """Read and show something every two seconds; returns on Ctrl-C.

    Args:
        look: Reads the figures, and returns a function that draws them for (columns, lines) of the terminal; both are
            None if there is no terminal.
    """
    console = Console(file=sys.stdout)
    try:
        if not console.is_terminal or console.is_dumb_terminal:  # an editor's shell would show the controls
            while True:
                say(shown(_plain(look()(None, None))))
                _pause(EVERY_S)
        with Live(console=console, screen=True, refresh_per_second=_DRAWN_A_SECOND) as live:
            while True:
                live.update(Fitted(look()), refresh=True)
                _pause(EVERY_S)
    except KeyboardInterrupt:
        return


def as_text(text: str) -> Text:
    """A text, such as a table of `reports`, without markup and with control characters escaped. Nothing is cut: lines
    that are longer than the terminal is wide go on in the next one."""
    return Text(shown(text), overflow="fold")


def group(*parts: RenderableType) -> Group:
    """These parts, one below the other."""
    return Group(*parts)


def _plain(what: RenderableType) -> str:
    if isinstance(what, Text):
        return what.plain
    console = Console(width=PRINTED, color_system=None, force_terminal=False)
    with console.capture() as printed:
        console.print(what)
    return printed.get().rstrip("\n")


def _pause(seconds: float) -> None:
    time.sleep(seconds)
