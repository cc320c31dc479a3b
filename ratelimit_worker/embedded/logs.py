"""The last lines of the log of a process that has ended."""

from __future__ import annotations

from pathlib import Path


def log_end(path: Path, lines: int = 10) -> str:
    """The last lines of a log, or why there is none, as a text to append to an error message."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            text = log.read().decode("utf-8", "replace").rstrip()
    except OSError as error:
        return f"; no log at {path}: {error.strerror}"
    return f"; the end of {path}:\n" + "\n".join(text.splitlines()[-lines:])
