"""Flower's own options: a value that it cannot read is named, with what to write instead of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ratelimit_worker.flower.own_options import flaw_of_environment, flaw_of_words
from tests.builders import clean_environment


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("FLOWER_PORT", "0x15B3", "FLOWER_PORT='0x15B3': write a whole number"),
        ("FLOWER_PORT", "", "FLOWER_PORT='': write a whole number"),
        ("FLOWER_MAX_TASKS", "1e4", "FLOWER_MAX_TASKS='1e4': write a whole number"),
        ("FLOWER_INSPECT_TIMEOUT", "soon", "FLOWER_INSPECT_TIMEOUT='soon': write a number"),
        ("FLOWER_TASK_RUNTIME_METRIC_BUCKETS", "1,2,x", "…: write a number"),
        ("FLOWER_PERSISTENT", "perhaps", "FLOWER_PERSISTENT='perhaps': write true or false"),
        ("FLOWER_PORT", "5555", None),
        ("FLOWER_PERSISTENT", "no", None),
        ("FLOWER_TASK_RUNTIME_METRIC_BUCKETS", "1,2.5", None),
        ("FLOWER_BASIC_AUTH", "me:secret", None),
        ("FLOWER_UNKNOWN", "0x15B3", None),
        ("PORT", "0x15B3", None),
    ],
)
def test_a_variable_that_cannot_be_read(name: str, value: str, wrong: str | None) -> None:
    """Numbers and switches alone can be wrong in this way."""
    found = flaw_of_environment({"PATH": "/bin", name: value})
    assert found == wrong if wrong is None or "…" not in wrong else str(found).endswith(wrong.removeprefix("…"))


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        ("--max_tasks=0x10", "--max_tasks=0x10: write a whole number"),
        ("--max-tasks=", "--max-tasks=: write a whole number"),
        ("--inspect-timeout=1 s", "--inspect-timeout=1 s: write a number"),
        ("--max_tasks", "--max_tasks: write --max_tasks=VALUE"),
        ("--max_tasks=10", None),
        ("--read_only", None),
        ("--read_only=true", None),
        ("--url_prefix=x", None),
    ],
)
def test_a_word_that_cannot_be_read(word: str, wrong: str | None) -> None:
    """By its name, with a dash or an underscore."""
    assert flaw_of_words(["--debug=false", word]) == wrong


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "variables", "code", "says"),
    [
        (["--max_tasks=0x10"], {}, 2, "Error: --max_tasks=0x10: write a whole number"),
        ([], {"FLOWER_PORT": "0x15B3"}, 78, "Error: FLOWER_PORT='0x15B3': write a whole number"),
        (["--conf=none.py"], {}, 78, "Error: --conf=none.py: there is no such file"),
    ],
)
def test_the_command_says_it_in_one_line(
    words: list[str], variables: dict[str, str], code: int, says: str, tmp_path: Path
) -> None:
    """And no traceback; an option is a usage error, a variable a setting."""
    environment = clean_environment(MAISD_REDIS_URL="redis://127.0.0.1:1/0", MAISD_STATE_DIR=str(tmp_path), **variables)
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", "flower", *words],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, says)
