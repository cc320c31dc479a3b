"""The clients of the race, with their environments and commands."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ENVIRONMENTS = ROOT / ".race"
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Client:
    """One way to send calls."""

    name: str
    environment: str  #: folder in ENVIRONMENTS, made from requirements-<environment>.txt
    script: str | None  #: None: `ratelimit-worker run`
    arguments: tuple[str, ...] = ()
    share_of_rpm: float = 1.0  #: share of the provider's true rate that is given to the client

    def command(self, source: Path, target: Path, base_url: str, rpm: float) -> list[str]:
        """The command that reads a file of calls and writes a file of answers."""
        if self.script is None:
            run = [self._bin("ratelimit-worker"), "run", str(source), "-o", str(target), "--workers", str(WORKERS)]
            return [*run, "--base-url", base_url]  # without any limit
        told = ["--rpm", f"{rpm * self.share_of_rpm:g}", *self.arguments]
        return [self._bin("python"), str(HERE / self.script), str(source), str(target), base_url, *told]

    def prepare(self) -> None:
        """Make the environment, unless it exists with the present requirements.

        Raises:
            subprocess.CalledProcessError: It cannot be made.
        """
        folder, wanted = ENVIRONMENTS / self.environment, self._wanted()
        stamp = folder / ".made-of"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(folder, ignore_errors=True)
        python, requirements = str(folder / "bin" / "python"), str(HERE / f"requirements-{self.environment}.txt")
        if shutil.which("uv"):
            _do("uv", "venv", "--quiet", "--python", sys.executable, str(folder))
            install: Sequence[str] = ("uv", "pip", "install", "--quiet", "--python", python)
        else:
            _do(sys.executable, "-m", "venv", str(folder))
            install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _do(*install, "-r", requirements)
        if self.script is None:
            _do(*install, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        stamp.write_text(wanted)

    def _bin(self, name: str) -> str:
        return str(ENVIRONMENTS / self.environment / "bin" / name)

    def _wanted(self) -> str:
        paths = [HERE / f"requirements-{self.environment}.txt"]
        if self.script is None:
            paths += [ROOT / "requirements.lock", ROOT / "pyproject.toml"]
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def environment(folder: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a client's process: without this machine's settings, brokers and proxies, with its own folder."""
    ours = ("MAISD_", "CELERY_", "OPENAI_", "ANTHROPIC_", "PYTHON", "VIRTUAL_ENV", "RACE_")
    kept = {
        name: value for name, value in base.items() if not name.startswith(ours) and not name.lower().endswith("_proxy")
    }
    return kept | {"OPENAI_API_KEY": "race", "MAISD_STATE_DIR": str(folder / "state"), "PYTHONUNBUFFERED": "1"}


def _do(*command: str) -> None:
    subprocess.run(command, check=True)


CLIENTS = {
    client.name: client
    for client in (
        Client("ours", "ours", None),
        Client("openai", "openai", "client_openai.py"),
        Client("openai_10", "openai", "client_openai.py", ("--attempts", "11")),
        Client("tenacity", "tenacity", "client_tenacity.py"),
        Client("cubic", "cubic", "client_cubic.py"),
        Client("aimd", "cubic", "client_aimd.py"),
        Client("celery", "celery", "client_celery.py"),
        # Celery's rate_limit applies to each worker: with half of the true rate each, two workers have the true rate.
        Client("celery_split", "celery", "client_celery.py", share_of_rpm=1 / WORKERS),
    )
}
