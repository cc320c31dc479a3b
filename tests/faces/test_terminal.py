"""What a person at a terminal meets: examples, hints, questions, completion, and the same commands under `celery`."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from redis import Redis

from ratelimit_worker.cli import COMMANDS, main
from ratelimit_worker.cli.examples import EXAMPLES
from ratelimit_worker.stores.lanes import Lanes
from tests.builders import clean_environment, entry

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
        else:
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
        # As a shell completes it: read, and checked by click, without the command's own look at files and terminals.
        command.make_context(path, typed[len(words) :], resilient_parsing=True)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in typed if word.startswith("-")} <= known


@pytest.mark.parametrize("name", ["staus", "analytic", "hlat", "emergancy"])
def test_a_name_that_is_nearly_one_is_told_what_it_is_near_to(name: str) -> None:
    """As git and celery do."""
    done = CliRunner().invoke(main, [name])
    assert done.exit_code == 2
    assert "Did you mean" in done.stderr
    assert any(word in COMMANDS for word in done.stderr.split())


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
    lanes.beat("celery@elsewhere", 4, 60.0, ["celery"], 60.0, [])
    assert health() == 1
    assert health("--worker", "celery@elsewhere") == 0
    lanes.beat(f"mine@{socket.gethostname()}", 4, 60.0, ["celery"], 60.0, [])
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
