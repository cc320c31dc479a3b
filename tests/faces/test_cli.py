"""The command line: light until a command is used, and every error a sentence with an exit code of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from ratelimit_worker.cli import COMMANDS, main, sentence
from ratelimit_worker.errors import ConfigurationError, LaneFull, StoreUnavailable
from tests.builders import clean_environment

HEAVY = ("celery", "redis", "sqlalchemy", "kombu", "httpx2", "alembic")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """`--help` needs neither celery, redis, sqlalchemy, kombu nor httpx2."""
    code = (
        "import sys; from ratelimit_worker.cli import main; main(sys.argv[1:], standalone_mode=False); "
        f"print('imported:', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=clean_environment(), capture_output=True, text=True, check=False
    )
    if arguments:
        assert done.stdout.splitlines()[-1] == "imported: []", done.stderr
    else:
        assert "Commands:" in done.stderr + done.stdout


def test_help_lists_every_command() -> None:
    """The table is what can be called, and each entry exists."""
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    for name in COMMANDS:
        assert f"  {name} " in shown.output
        own = CliRunner().invoke(main, [name, "--help"])
        assert own.exit_code == 0, own.output


def test_an_unknown_command_is_a_usage_error() -> None:
    """Exit code 2, and the name is said."""
    done = CliRunner().invoke(main, ["runn"])
    assert done.exit_code == 2
    assert "runn" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(StoreUnavailable("Redis: away"), 69), (ConfigurationError("A=1: no\nB=2: no"), 78), (LaneFull("l", 3), 1)],
)
def test_errors_become_sentences(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a problem on stderr, and the exit code of its kind."""
    spoken = sentence(error)  # type: ignore[arg-type]
    spoken.show()
    lines = capsys.readouterr().err.splitlines()
    assert spoken.exit_code == code
    assert lines == [f"Error: {line}" for line in str(error).splitlines()]
