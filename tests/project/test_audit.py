"""What `make audit` makes of pip-audit's words: found, none, or nobody was asked, and never one for the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import audit

FLAW = {"id": "PYSEC-1", "fix_versions": ["2.11.3", "3.0"], "aliases": [], "description": "a\nb"}


def said(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_a_line_for_each() -> None:
    """Package, version, name of the vulnerability and what mends it."""
    jinja = {"name": "jinja2", "version": "2.10", "vulns": [FLAW, {**FLAW, "id": "PYSEC-2", "fix_versions": []}]}
    assert audit.vulnerabilities(said(jinja, {"name": "click", "version": "8", "vulns": []})) == [
        "jinja2 2.10: PYSEC-1, mended in 2.11.3, 3.0",
        "jinja2 2.10: PYSEC-2, mended in no version",
    ]


def test_none_is_none() -> None:
    """All were asked about."""
    assert audit.vulnerabilities(said({"name": "click", "version": "8", "vulns": []})) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", said(), said({"name": "click", "skip_reason": "Dependency not found on PyPI"}),
     said({"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "x"})],
)  # fmt: skip
def test_what_was_not_asked_is_not_none(text: str) -> None:
    """A mirror without the database skips every package and calls that "none found"."""
    with pytest.raises(audit.NotAsked, match=r"^[^\n]+$"):
        audit.vulnerabilities(text)


@pytest.mark.parametrize("script", ["echo 'no route to host' >&2; exit 1", "exit 7", "echo warning: old; exit 1"])
def test_without_an_answer_there_is_one_line(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, on stderr."""
    fake = tmp_path / "bin" / "pip-audit"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(audit, "PLACE", tmp_path)
    assert audit.main() == audit.NOT_ASKED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("audit: not asked: ")
    assert len(err.splitlines()) == 1
