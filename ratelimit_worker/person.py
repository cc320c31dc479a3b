"""The name under which changes by a person at this machine are recorded."""

from __future__ import annotations

import getpass
import os


def this_person() -> str:
    """The name of the user whose process this is; `uid N` where it has none, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
