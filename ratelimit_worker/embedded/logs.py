"""What did a process that has ended say last?"""

from __future__ import annotations

from pathlib import Path


def log_end(path: Path, lines: int = 10) -> str:
    """ ": " and the last lines of a log, or where it should have been."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            text = log.read().decode("utf-8", "replace").rstrip()
    except OSError as error:
        return f"; no log at {path}: {error.strerror}"
    return f"; the end of {path}:\n" + "\n".join(text.splitlines()[-lines:])
