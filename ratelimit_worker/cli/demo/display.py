"""The display of the demo while it runs: a panel on a terminal, else plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from ratelimit_worker.cli.progress import Progress
from ratelimit_worker.plural import many

if TYPE_CHECKING:
    from rich.table import Table

_REFRESH_S = 0.25
_BARS = " ▁▂▃▄▅▆▇█"
_SECONDS_SHOWN = 60
_NAMES = 13  #: columns that the names of the figures take


class Scene(Struct, frozen=True, kw_only=True):
    """The figures at one moment."""

    second: float  #: since the first `.delay()`
    calls: int
    answered: int
    waiting: int
    pace: float | None  #: of the lane, requests a minute
    limit: float  #: of the provider, requests a minute
    mode: str
    requests: int  #: counted at the provider, like the next
    refused: int

    def line(self) -> str:
        """All figures in one line."""
        words = [
            f"{self.second:3.0f} s",
            f"{self.answered:,}/{self.calls:,} answered",
            f"lane {'?' if self.pace is None else f'{self.pace:,.0f}'}/min, limit {self.limit:,.0f}",
            self.mode,
            f"{many(self.requests, 'request')}, {self.refused:,} of them 429",
            f"waiting {self.waiting:,}",
        ]
        return " · ".join(words)


class Display:
    """Shows scenes through a `Progress`, or in its place."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open = ExitStack()
        self._show: Callable[[Scene], None] | None = None
        self._next_s = 0.0
        self._rates: list[int] = []
        self._counted = (0, 0)  #: second, requests by then

    def __enter__(self) -> Self:
        if self._progress.live:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            live = self._open.enter_context(Live(console=console, auto_refresh=False, transient=True))
            self._show = lambda scene: live.update(self._panel(scene, console.width), refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
        self._progress.clear()

    def tick(self, scene: Callable[[], Scene]) -> None:
        """Show the scene if the display is due to be refreshed."""
        if self._show is None:
            self._progress.tick(lambda: scene().line())
        elif time.monotonic() >= self._next_s:
            self._show(scene())
            self._next_s = time.monotonic() + _REFRESH_S

    def _panel(self, scene: Scene, columns: int) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        wide = max(1, min(_SECONDS_SHOWN, columns - _NAMES))
        table = Table.grid(padding=(0, 2))
        table.add_row("answered", ProgressBar(total=scene.calls, completed=scene.answered, width=wide))
        table.add_row("", f"{scene.answered:,} of {scene.calls:,}, {scene.waiting:,} wait, {scene.second:.0f} s")
        table.add_row("lane", f"{'?' if scene.pace is None else f'{scene.pace:,.0f}'} a minute · {scene.mode}")
        table.add_row("provider", f"allows {scene.limit:,.0f} a minute, which the lane has to find out")
        table.add_row("requests", f"{scene.requests:,}, {scene.refused:,} of them 429")
        table.add_row("each second", self._sparkline(scene, wide))
        return table

    def _sparkline(self, scene: Scene, wide: int) -> str:
        second, before = self._counted
        if int(scene.second) > second:
            self._rates.append(scene.requests - before)
            self._counted = (int(scene.second), scene.requests)
        shown = self._rates[-wide:]
        most = max([*shown, 1])
        return "".join(_BARS[round(rate / most * (len(_BARS) - 1))] for rate in shown)
