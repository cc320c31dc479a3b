"""Who reads what a command says of its progress? Nobody has to."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from ratelimit_worker.cli.demo.display import Display, Scene
from ratelimit_worker.cli.progress import Progress, fitting
from ratelimit_worker.cli.run.conduct import Stop


class Gone(io.StringIO):
    """A terminal that was closed, or a pipe whose reader has ended, after so many texts."""

    def __init__(self, number: int, texts: int) -> None:
        super().__init__()
        self.number, self.left = number, texts

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("texts", [0, 1])
def test_nobody_has_to_listen(number: int, texts: int) -> None:
    """What is under way goes on, and is not told any more."""
    stream = Gone(number, texts)
    with Progress(every_s=0.0, stream=stream) as progress:
        for word in ("one", "two", "three"):
            progress.note(word)
            progress.tick(lambda: "a line")
    assert "three" not in stream.getvalue()
    assert not progress.live


def test_a_stream_that_was_closed_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """`2>&-`: Python has no stderr then."""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(every_s=0.0) as progress:
        progress.tick(lambda: "a line")
        progress.note("a note")
    assert not progress.live


def test_a_terminal_that_takes_no_line_back_gets_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor's shell says TERM=dumb, and would show the controls."""
    stream = Gone(0, 100)
    monkeypatch.setenv("TERM", "dumb")
    progress = Progress(every_s=0.0, stream=stream)
    progress.tick(lambda: "a line")
    assert stream.getvalue() == "a line\n"


LINE = "174/400 · 600/min (lane 600) · normal · 429s 0 · waiting 225 (pace, 84 ms) · ETA 0:23"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (200, LINE),
        (79, "174/400 · 600/min (lane 600) · normal · 429s 0 · ETA 0:23"),
        (39, "174/400 · 600/min (lane 600) · ETA 0:23"),
        (30, "174/400 · ETA 0:23"),
        (9, "174/400 ·"),
    ],
)
def test_a_narrow_terminal_gets_what_matters_most(columns: int, shown: str) -> None:
    """How many are done and when it will be over stay."""
    assert fitting(LINE, columns) == shown


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_the_demos_panel_fits(columns: int) -> None:
    """Its bars are as long as there is room for, and its figures go on in the next line."""
    display = Display(Progress(stream=io.StringIO()))
    console = Console(width=columns, color_system=None, force_terminal=False)
    with console.capture() as printed:
        for second in range(90):
            scene = Scene(
                second=second,
                calls=600,
                answered=300,
                waiting=123,
                pace=1_500.0,
                limit=2_552.0,
                mode="emergency (provider away)",
                requests=10 * second,
                refused=7,
            )
            panel = display._panel(scene, columns)
        console.print(panel)
    shown = printed.get()
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    for figure in ("300 of 600", "123 wait", "1,500 a minute", "2,552 a minute", "890, 7 of them 429"):
        assert "".join(figure.split()) in "".join(shown.split())


def test_a_closed_number_is_given_to_no_file() -> None:
    """With `0<&- 1>&- 2>&-` the first files that are opened would be stdin, stdout and stderr of every child."""
    script = (
        "import os, sys; sys.argv = ['ratelimit-worker', '--help']\n"
        "from ratelimit_worker.cli import _open_standard_streams\n"
        "_open_standard_streams(); fd = os.open('/dev/null', os.O_RDONLY)\n"
        "os._exit(fd)"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script], check=False)
    assert done.returncode >= 3


@pytest.mark.parametrize(("ignored", "stops"), [(False, True), (True, False)])
def test_a_terminal_that_is_closed_ends_it_in_order(ignored: bool, stops: bool) -> None:
    """But for `nohup`, which has asked for the contrary."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Stop.by_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert bool(stop) is stops
            assert stop.signal == (signal.SIGHUP if stops else None)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
