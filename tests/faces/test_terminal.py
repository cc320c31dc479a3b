"""What a person at a terminal meets: examples, hints, questions, completion, and the same commands under `celery`."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from msgspec.structs import replace
from redis import Redis
from rich.cells import cell_len
from rich.console import Console, RenderableType

from ratelimit_worker.calls import LaneLimits, Mode
from ratelimit_worker.cli import COMMANDS, Sentence, main
from ratelimit_worker.cli.examples import EXAMPLES
from ratelimit_worker.cli.screen import Fitted, as_text
from ratelimit_worker.cli.watch import _all, _one, fitting
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.number_options import Amount, Whole
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports.tables import stats_tables, status_table
from ratelimit_worker.stores.lanes import Lanes
from tests.builders import clean_environment, entry
from tests.conftest import wait_for
from tests.unit.reports.test_reports_doctor import CLUSTER, LANE, a_report

NAMES = ("openai:gpt-4o", "openai:o3", "anthropic")


@pytest.fixture
def address(redis_server: str, redis_client: Redis) -> str:
    """Of an empty server."""
    return f"redis+socket://{redis_server}"


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, as it is typed."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        yield " ".join((*path, name)), command


def test_every_help_shows_an_example_that_can_be_typed() -> None:
    """The options of each example are those of its command, and nothing has an example that is no command."""
    commands = dict(walk(main))
    assert set(commands) == set(EXAMPLES)
    for path, command in commands.items():
        words = path.split()
        assert (
            f"Example:\n    ratelimit-worker {EXAMPLES[path]}\n" in CliRunner().invoke(main, [*words, "--help"]).output
        )
        typed = shlex.split(EXAMPLES[path])
        assert typed[: len(words)] == words
        if isinstance(command, click.Group) and not command.invoke_without_command:  # it shows one of its commands
            assert EXAMPLES[path] in [EXAMPLES[f"{path} {below}"] for below in command.commands]
            continue
        # As a shell completes it: read, and checked by click, without the command's own look at files and terminals.
        command.make_context(path, typed[len(words) :], resilient_parsing=True)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in typed if word.startswith("-")} <= known


def test_help_itself_shows_an_example() -> None:
    """Of the whole program."""
    assert "Example:\n    ratelimit-worker status --find gpt\n" in CliRunner().invoke(main, ["--help"]).output


def test_ctrl_c_has_the_exit_code_of_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """130, in any command that does not end itself, and no traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ratelimit_worker.cli.sources.open_sources", interrupted)
    done = CliRunner().invoke(main, ["status"])
    assert (done.exit_code, done.output.strip()) == (130, "")


LONGEST = {"lane": 200, "mode": 30, "allowed": 8, "used": 4, "429s": 4, "wait": 5, "run": 3, "oldest": 6, "held by": 60}


@pytest.mark.parametrize(
    ("columns", "lane", "left_out"),
    [
        (400, 200, set()),
        (120, 24, set()),
        (80, 16, {"held by"}),
        (40, 16, {"held by", "run", "429s", "oldest", "used", "allowed"}),
        (20, 12, {"held by", "run", "429s", "oldest", "used", "allowed"}),
    ],
)
def test_a_long_name_hides_no_figure_of_the_screen(columns: int, lane: int, left_out: set[str]) -> None:
    """Names are cut first, and where that is not enough, what matters least is left out; never how many calls wait."""
    widths = fitting(LONGEST, columns)
    assert (widths["lane"], set(LONGEST) - set(widths)) == (lane, left_out)
    assert widths["wait"] == 5
    assert columns < 40 or sum(widths.values()) + 3 * len(widths) <= columns


def numbers() -> Iterator[tuple[str, click.Parameter]]:
    """Every option and argument that takes a number, with its command."""
    for path, command in walk(main):
        for parameter in command.params:
            # Whole and Amount are of these types too, and click has no public name that covers all
            if isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
                yield path, parameter


def test_a_number_that_cannot_be_used_is_named_with_what_to_write() -> None:
    """Of every option that takes one."""
    found = list(numbers())
    assert len(found) > 30
    for path, parameter in found:
        assert isinstance(parameter.type, Whole | Amount), (path, parameter.name)
        for wrong in ("0x15B3", "many", "", "nan", "inf", "-inf", "9" * 400, "1.5.2", "-1e13"):
            with pytest.raises(click.BadParameter) as refused:
                parameter.type.convert(wrong, parameter, None)
            assert str(refused.value).startswith(f"{wrong!r}: write a "), (path, parameter.name)
    for path in {path for path, _ in found}:
        assert "=None" not in CliRunner().invoke(main, [*path.split(), "--help"]).output, "a bound that there is not"


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["metrics", "--port", "0x15B3"], "'0x15B3': write a whole number from 1 to 65535"),
        (["flower", "--port", "70000"], "'70000': write a whole number from 1 to 65535"),
        (["up", "--concurrency", "0"], "'0': write a whole number from 1 up"),
        (["simulate", "--rpm", "fast"], "'fast': write a number, such as 600"),
        (["limits", "set", "a", "--rpm", "-5"], "'-5': write a number from 0 up, such as 600"),
        (["run", "-", "-o", "-", "--tpm", "0"], "'0': write a number above 0, such as 600"),
        (["stats", "--window", "0x10"], "'0x10': write 90s, 15m, 24h or 7d"),
        (["halt", "--for", "soon"], "'soon': write 90s, 15m, 2h or 1d"),
        (["analytics", "--since", "0001-01-01"], "'0001-01-01': write 90m, 7d (ago), 2026-11-30 or 2026-11-30T08:15"),
    ],
)
def test_it_is_one_line_with_exit_code_2(words: list[str], fix: str) -> None:
    """As click writes all of them."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("Error: Invalid value for ")
    assert fix in said


STATE = replace(
    CLUSTER,
    lanes=(
        replace(LANE, lane="openai:gpt-4o-mini", waiting=1_234, running=17, oldest_age_s=91.0),
        replace(LANE, lane="anthropic:claude", mode=Mode.HALT, halted="key", bars=(Bar(kind=BarKind.GATE),)),
    ),
)
SCREENS: dict[str, Callable[[int], RenderableType]] = {
    "status --watch": lambda width: as_text(status_table(STATE, width)),
    "stats --watch": lambda width: as_text(stats_tables(a_report(), width)),
    "watch": lambda width: _all(STATE, ("a note",), width, 40),
    "watch LANE": lambda width: _one(STATE, "openai:gpt-4o-mini", ("a note",)),
}
IN_A_PIPE = {
    "status --watch": lambda: status_table(STATE),
    "stats --watch": lambda: stats_tables(a_report()),
}


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", SCREENS)
def test_a_narrow_terminal_shows_every_figure(name: str, width: int) -> None:
    """No line is longer than the terminal is wide, and nothing that a pipe gets is cut away."""
    console = Console(width=width, height=200, color_system=None, force_terminal=False)
    with console.capture() as printed:
        console.print(Fitted(lambda columns, high: SCREENS[name](columns)), end="")
    shown = printed.get()
    assert max(map(cell_len, shown.splitlines())) <= width
    if name in IN_A_PIPE:
        missing = [word for word in IN_A_PIPE[name]().split() if word not in "".join(shown.split())]
        assert missing == []
    else:
        assert "1,234" in shown
    assert "…" not in shown or name == "watch", "which leaves out columns, and cuts names before figures"


@pytest.mark.parametrize("name", ["staus", "analytic", "hlat", "emergancy"])
def test_a_name_that_is_nearly_one_is_told_what_it_is_near_to(name: str) -> None:
    """As git and celery do."""
    done = CliRunner().invoke(main, [name])
    assert done.exit_code == 2
    assert "Did you mean" in done.stderr
    assert any(word in COMMANDS for word in done.stderr.split())


@pytest.mark.parametrize("line", [["halt", "gpt"], ["auto", "gpt"], ["lanes", "gpt"], ["mode", "history", "gpt"]])
def test_a_lane_without_its_option_is_told_the_option(line: list[str]) -> None:
    """As `limits set` and `watch` take it, people write it everywhere."""
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 2
    assert done.stderr.endswith("unexpected extra argument (gpt); a lane is named with --lane\n")
    done = CliRunner().invoke(main, ["health", "gpt"])
    assert done.exit_code == 2
    assert done.stderr.endswith("unexpected extra argument (gpt)\n")


def test_the_error_of_another_program_is_not_called_an_error_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """`up` shows the end of a log, whose lines may say so themselves."""
    Sentence("flower has ended; its last lines:\nError: the port 5555 is taken").show()
    assert capsys.readouterr().err == "Error: flower has ended; its last lines:\nError: the port 5555 is taken\n"


def test_v_is_version() -> None:
    """Both forms say the same."""
    short, long = CliRunner().invoke(main, ["-V"]), CliRunner().invoke(main, ["--version"])
    assert short.output == long.output != ""


def typed(command: list[str], answer: str | None, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and stderr of a command whose input is a terminal on which that is typed."""
    parent, child = os.openpty()
    try:
        if answer is not None:
            os.write(parent, f"{answer}\n".encode())
        done = subprocess.run(
            [sys.executable, "-m", "ratelimit_worker", *command],
            stdin=child,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, done.stderr
    finally:
        os.close(parent)
        os.close(child)


@pytest.mark.parametrize("command", ["halt", "cleanup", "cache clear"])
def test_what_cannot_be_undone_is_asked_on_a_terminal(command: str, address: str, tmp_path: Path) -> None:
    """No: exit code 1 and nothing is done. Yes, `--yes` and a script's input that is no terminal: it is done."""
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path))
    words = command.split()
    code, said = typed(words, "n", environment)
    assert code == 1
    assert "[y/N]" in said
    assert "Aborted" in said
    if command == "halt":
        assert "HALT" not in CliRunner().invoke(main, ["mode", "history"], env=environment).output
    assert typed(words, "y", environment)[0] == 0
    code, said = typed([*words, "--yes"], None, environment)
    assert code == 0
    assert "[y/N]" not in said
    script = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *words], stdin=subprocess.DEVNULL, env=environment, check=False
    )
    assert script.returncode == 0


def test_a_shell_completes_names_of_lanes(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options, and the lanes that there are; none, and no word, where Redis is away."""
    for name, value in clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    for lane in NAMES:
        assert CliRunner().invoke(main, ["limits", "set", lane, "--rpm", "60"]).exit_code == 0
    shell = ShellComplete(main, {}, "ratelimit-worker", "_RATELIMIT_WORKER_COMPLETE")

    def completed(words: list[str], incomplete: str) -> set[str]:
        return {item.value for item in shell.get_completions(words, incomplete)}

    assert completed([], "sta") == {"stats", "status"}
    assert completed(["status", "--lane"], "openai") == {"openai:gpt-4o", "openai:o3"}
    assert completed(["limits", "set"], "anth") == {"anthropic"}
    assert completed(["halt", "--lane"], "") == set(NAMES)
    monkeypatch.setenv("MAISD_REDIS_URL", "redis://127.0.0.1:1/0")
    assert completed(["status", "--lane"], "openai") == set()


def test_celery_has_the_same_commands(address: str, tmp_path: Path) -> None:
    """`celery -A MODULE ratelimit …` looks at the app's deployment, and keeps the exit codes."""
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path))

    def celery(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "celery", "-A", "ratelimit_worker.app", "ratelimit", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    assert celery("limits", "set", "one", "--rpm", "60").returncode == 0
    shown = celery("status", "--lane", "one")
    assert shown.returncode == 0
    assert "one" in shown.stdout
    wrong = celery("status", "--fail-on", "never")
    assert wrong.returncode == 2


def test_health_is_a_beat_of_this_machine(address: str, tmp_path: Path, redis_client: Redis) -> None:
    """0 while a worker of this machine beats, 1 where none does, 69 where Redis is away: no fault of the worker's."""
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path))
    lanes = Lanes(redis_client)

    def health(*words: str) -> int:
        return CliRunner().invoke(main, ["health", *words], env=environment).exit_code

    assert health() == 1
    lanes.beat("celery@elsewhere/1-0a1b2c3d", 4, 60.0, ["celery"], 60.0, [])
    assert health() == 1
    assert health("--worker", "celery@elsewhere") == 0
    lanes.beat(f"mine@{socket.gethostname()}/1-0a1b2c3d", 4, 60.0, ["celery"], 60.0, [])
    assert health() == 0
    assert health("--worker", "gone@elsewhere") == 1
    environment["MAISD_REDIS_URL"] = "redis://127.0.0.1:1/0"
    assert health() == 69


def test_a_narrow_terminal_folds_names_and_a_pipe_does_not(address: str, tmp_path: Path, redis_client: Redis) -> None:
    """Whole in both, and found by `grep` in a pipe."""
    name = "provider:" + "x" * 100 + ":end"
    Lanes(redis_client).enqueue(entry("c", lane=name))
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path))
    command = [sys.executable, "-m", "ratelimit_worker", "lanes"]
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    assert [line.split()[0] for line in piped.splitlines() if ":end" in line][:1] == [name], "then its mode, in words"
    parent, child = os.openpty()
    try:
        termios.tcsetwinsize(child, (24, 90))
        done = subprocess.run(
            command, env=environment, stdin=child, stdout=child, stderr=subprocess.PIPE, check=True, timeout=300
        )
        assert done.stderr == b""
        lines = os.read(parent, 65_536).decode().splitlines()
    finally:
        os.close(parent)
        os.close(child)
    assert max(map(len, lines)) <= 90
    assert name in "".join(line.split()[0] for line in lines if line.split() and line.split()[0] != "lane")


@pytest.mark.parametrize("command", ["status", "lanes"])
def test_a_lane_that_is_not_there_is_said_so(command: str, address: str, tmp_path: Path, redis_client: Redis) -> None:
    """Its name may be misspelt; others are shown, and nothing is said of having none at all."""
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path))

    def said(*words: str) -> tuple[str, str]:
        done = CliRunner().invoke(main, [command, *words], env=environment)
        assert done.exit_code == 0
        return done.stdout + done.stderr, done.stderr

    assert "no lane is known yet" in said()[0]
    Lanes(redis_client).enqueue(entry("c", lane="gpt"))
    both, notes = said("--lane", "gpt", "--lane", "gtp", "--lane", "gtp")
    assert "gpt" in both
    assert notes == "Note: lane gtp is not known (yet)\n"
    assert "no such lane" in said("--lane", "gtp")[0]
    assert "no lane has 'gtp' in its name" in said("--find", "gtp")[0]
    assert "no lane is known yet" not in said("--find", "gtp")[0]


def test_a_pin_of_a_lane_that_is_not_there_is_said_so(address: str, tmp_path: Path, redis_client: Redis) -> None:
    """It holds for a lane to come, but who misspells a name in an emergency must hear that the other lane goes on."""
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path))
    Lanes(redis_client).enqueue(entry("c", lane="gpt"))

    def notes(*words: str) -> list[str]:
        done = CliRunner().invoke(main, list(words), env=environment)
        assert done.exit_code == 0
        return [line for line in done.stderr.splitlines() if line.startswith("Note: ")]

    assert notes("emergency", "--lane", "gpt") == notes("auto", "--lane", "gpt") == notes("halt") == notes("auto") == []
    (said,) = notes("halt", "--lane", "gtp")
    assert said.startswith("Note: gtp is no lane that is known (yet)")
    (said,) = notes("auto", "--lane", "gpr")
    assert said.startswith("Note: gpr is no lane that is known (yet)")


def test_a_screen_is_never_higher_than_its_terminal() -> None:
    """What is too long ends in a line that says how much; what fits is as it is."""
    console = Console(width=40, height=10, color_system=None, force_terminal=False)

    def drawn(lines: int) -> list[str]:
        text = "\n".join(f"line {number}" for number in range(lines))
        with console.capture() as printed:
            console.print(Fitted(lambda columns, high: as_text(text)), end="")
        return printed.get().splitlines()

    assert drawn(100) == [*(f"line {number}" for number in range(9)), "… 91 lines more than this terminal has"]
    assert drawn(3) == ["line 0", "line 1", "line 2"]


def test_watch_fits_its_terminal_and_ends_with_ctrl_c(address: str, tmp_path: Path, redis_client: Redis) -> None:
    """A screen of its own: of 60 lanes as many as there is room for, and all of one lane."""
    for number in range(60):
        Lanes(redis_client).establish(f"team-{number:02}", limit_fields(LaneLimits(rpm=60)))
    environment = clean_environment(MAISD_REDIS_URL=address, MAISD_STATE_DIR=str(tmp_path), TERM="xterm")

    def screen(*words: str, until: str) -> str:
        parent, child = os.openpty()
        termios.tcsetwinsize(child, (24, 100))
        command = [sys.executable, "-m", "ratelimit_worker", *words]
        # A shell that starts the tests in the background has them ignore Ctrl-C, and what they start too.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, env=environment, stdin=child, stdout=child, stderr=child)
        signal.signal(signal.SIGINT, before)
        try:
            seen = ""
            while until not in seen:
                assert select.select([parent], [], [], 300)[0], seen
                seen += os.read(parent, 65_536).decode("utf-8", "replace")
            process.send_signal(signal.SIGINT)

            def has_ended() -> bool:  # it may have to write what nobody has read
                if select.select([parent], [], [], 0.1)[0]:
                    os.read(parent, 65_536)
                return process.poll() is not None

            wait_for(has_ended, timeout_s=120.0, what="Ctrl-C ends it")
            assert process.returncode == 0
        finally:
            process.kill()
            process.wait()
            os.close(parent)
            os.close(child)
        return seen

    every = screen("watch", until="lanes more")
    assert "\x1b[?1049h" in every, "the terminal's other screen, so that what stood there comes back"
    assert sum(f"team-{number:02}" in every for number in range(60)) < 24
    one = screen("watch", "team-07", until="requests a minute")
    assert "team-08" not in one
    assert "lines more than this terminal has" in screen("status", "--watch", until="lines more")
