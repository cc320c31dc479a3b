"""`make audit`: does what requirements.lock pins have known vulnerabilities? Asked of PyPI's database by pip-audit.

pip-audit has an environment of its own, made on first use: what audits the lock is no part of it.
Exit codes: 0 none are known, 1 some are, 3 nobody could be asked (offline, or the database does not answer).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from tests.builders import ROOT

LOCK = ROOT / "requirements.lock"
PLACE = ROOT / ".compat" / "audit"
AUDITOR = "pip-audit==2.10.1"
ASK = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
INSTALL_S, ANSWER_S = 300.0, 300.0
NOT_ASKED = 3


class NotAsked(Exception):
    """Nobody could be asked. `str()` is one line."""


def main() -> int:
    """Print what is known, one line each."""
    try:
        found = vulnerabilities(audit(auditor()))
    except NotAsked as error:
        print(f"audit: not asked: {error}", file=sys.stderr)
        return NOT_ASKED
    for line in found:
        print(line)
    print(f"audit: {len(found)} known vulnerabilities in {LOCK.name}")
    return 1 if found else 0


def auditor() -> Path:
    """pip-audit's own command.

    Raises:
        NotAsked: it cannot be installed here.
    """
    command = PLACE / "bin" / "pip-audit"
    if not command.exists():
        shutil.rmtree(PLACE, ignore_errors=True)
        venv.create(PLACE, with_pip=True)
        install = [PLACE / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", AUDITOR]
        _said(install, INSTALL_S, f"{AUDITOR} cannot be installed")
    return command


def audit(command: Path) -> str:
    """What pip-audit says of the lock, as JSON.

    Raises:
        NotAsked: its database does not answer.
    """
    return _said([command, "--requirement", LOCK, *ASK], ANSWER_S, "the database of vulnerabilities does not answer")


def vulnerabilities(text: str) -> list[str]:
    """A line each, of what pip-audit said.

    Raises:
        NotAsked: it said nothing that can be read, or the database does not know some of the packages, as a mirror
            without it answers for all: "none found" would be untrue then.
    """
    try:
        known: dict[str, Any] = json.loads(text)
        unknown = [str(one["name"]) for one in known["dependencies"] if "skip_reason" in one]
        found = [
            f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
            for one in known["dependencies"]
            for flaw in one.get("vulns", ())
        ]
        asked = len(known["dependencies"]) - len(unknown)
    except (ValueError, KeyError, TypeError) as error:
        raise NotAsked(f"pip-audit's answer cannot be read ({type(error).__name__})") from None
    if unknown or not asked:
        few = ", ".join(unknown[:3]) or "nothing"
        raise NotAsked(f"the database knows {asked} of {asked + len(unknown)} packages, not {few}, …")
    return found


def _said(command: list[Any], timeout_s: float, why: str) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise NotAsked(f"{why} (not within {timeout_s:.0f} s)") from None
    if done.returncode == 0 or done.stdout.startswith("{"):  # 1 also when it has found something
        return done.stdout
    last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it says nothing"]
    raise NotAsked(f"{why} ({last[0].strip()[:200]})")


if __name__ == "__main__":
    sys.exit(main())
