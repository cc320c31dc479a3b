"""`ratelimit-worker classify`: the verdict that a worker would come to, without a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ratelimit_worker import plugins
from ratelimit_worker.calls import Category
from ratelimit_worker.cli import main
from tests.builders import ROOT, clean_environment

FIELDS = [
    "category",
    "verdict",
    "least_delay_s",
    "most_delay_s",
    "tries",
    "sick",
    "halts",
    "status",
    "retry_after_s",
    "request_id",
    "cause",
]
QUOTA = '{"error": {"code": "insufficient_quota", "message": "the canary sings"}}'


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["classify", *arguments], input=stdin)


def told(*arguments: str, stdin: str | None = None) -> dict[str, Any]:
    done = run(*arguments, "--format", "json", stdin=stdin)
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(done.stdout)
    assert list(figures) == FIELDS
    return figures


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--status", "429", "--header", "retry-after: 2"), ("rate_limited", "snooze", 2.0, 2.0, None, False, False)),
        (("--status", "429", "--body", QUOTA), ("quota_exhausted", "halt", None, None, None, False, True)),
        (("--status", "503", "--header", "Retry-After:9"), ("overloaded", "retry", 9.0, 9.0, 8, True, False)),
        (("--status", "500"), ("server_error", "retry", 0.0, 1.0, 6, True, False)),
        (("--status", "401"), ("auth", "give_up", None, None, None, False, False)),
        (("--status", "200", "--body", '{"type": "error"}'), ("server_error", "retry", 0.0, 1.0, 6, True, False)),
        (("--status", "200", "--body", '{"choices": []}'), ("malformed_response", "retry", 0.0, 1.0, 3, True, False)),
        (("--status", "200", "--body", '{"output": []}'), (None, "answered", None, None, None, False, False)),
        (("httpx2.ReadTimeout",), ("timeout", "retry", 0.0, 2.0, 4, True, False)),
        (("ratelimit_worker.errors.Conflict",), ("conflict", "retry", 0.0, 1.0, 3, False, False)),
        (("ConnectionResetError",), ("connection", "retry", 0.0, 1.0, 6, True, False)),
        (("TypeError",), ("programming", "give_up", None, None, None, False, False)),
        (("ValueError",), (None, "celery", None, None, None, False, False)),
        (("redis.exceptions.ConnectionError",), (None, "celery", None, None, None, False, False)),
    ],
)
def test_the_verdict_in_json(arguments: tuple[str, ...], expected: tuple[Any, ...]) -> None:
    """Category, verdict, shortest and longest wait, tries, sick, halts: names and types that stay."""
    figures = told(*arguments)
    assert tuple(figures[name] for name in FIELDS[:7]) == expected


def test_a_body_comes_from_a_file_or_from_stdin(tmp_path: Path) -> None:
    """As text it is tested above; bytes that are no text are no crash."""
    path = tmp_path / "body.json"
    path.write_text(QUOTA)
    assert told("--status", "429", "--body", f"@{path}")["category"] == "quota_exhausted"
    assert told("--status", "429", "--body", "-", stdin=QUOTA)["category"] == "quota_exhausted"
    path.write_bytes(b"\xff\xfe{")
    assert told("--status", "429", "--body", f"@{path}")["category"] == "rate_limited"


def test_the_table_is_for_people_and_repeats_no_body() -> None:
    """One line a fact; of the body only machine words of ours."""
    done = run("--status", "429", "--body", QUOTA, "--header", "x-request-id: req_1")
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["category", "verdict", "delay", "sick", "halts", "cause"]
    assert "HTTP 429 insufficient_quota" in done.stdout
    assert "canary" not in done.stdout


def test_every_category_has_a_verdict_in_words() -> None:
    """No category of ours breaks the table."""
    for category in Category:
        name = {kind.category: kind for kind in _failures()}[category].__name__
        done = run(f"ratelimit_worker.errors.{name}")
        assert done.exit_code == 0, done.output
        assert f"category  {category.value}" in done.stdout


def _failures() -> list[Any]:
    from ratelimit_worker.errors import CallFailed

    return CallFailed.__subclasses__()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name one exception"),
        (("httpx2.ReadTimeout", "--status", "429"), "name one exception"),
        (("httpx2.ReadTimeout", "--body", "x"), "--header and --body belong to an answer"),
        (("no_such_sdk.RateLimitError",), "no_such_sdk is not installed here"),
        (("httpx2.NoSuchError",), "httpx2.NoSuchError is no exception"),
        (("httpx2.get",), "httpx2.get is no exception"),
        (("int",), "int is no exception"),
        ((".",), "is no exception"),
        (("x..y",), "x is not installed"),
        (("ExceptionGroup",), "means nothing without what it holds"),
        (("--status", "42"), "42"),
        (("--status", "429", "--header", "retry-after 2"), "use 'name: value'"),
        (("--status", "429", "--body", "@/no/such/file"), "No such file"),
    ],
)
def test_bad_input_is_a_usage_error(arguments: tuple[str, ...], says: str) -> None:
    """Exit code 2, one line with the value and what to do, no traceback."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert says in line
    assert "Traceback" not in done.output


def test_a_package_whose_import_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs, or how it failed."""
    (tmp_path / "half_installed.py").write_text("import no_such_dependency")
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('x')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "half_installed cannot be imported: it needs no_such_dependency" in run("half_installed.Error").stderr
    assert "raises_at_import cannot be imported: RuntimeError" in run("raises_at_import.Error").stderr


def test_rules_of_packages_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker would ask them."""
    monkeypatch.setattr(plugins, "installed_rules", lambda: (lambda error: Category.CONFLICT,))
    assert told("ValueError")["category"] == "conflict"


@pytest.mark.parametrize("form", ["table", "json"])
def test_it_needs_neither_celery_nor_redis(form: str) -> None:
    """The whole command, not its help alone."""
    code = (
        "import sys; from ratelimit_worker.cli import main; "
        f"main(['classify', '--status', '429', '--format', '{form}'], standalone_mode=False); "
        "print(sorted(set(sys.modules) & {'celery', 'redis', 'sqlalchemy', 'kombu', 'httpx'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
