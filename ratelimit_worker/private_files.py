"""Files and folders that only their owner may read, since they contain prompts, answers or keys.

Files and folders that exist already keep their mode: their owner decides. Since a umask can only remove rights, the
mode is also set on what was just created.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
UMASK = 0o077  #: for processes all of whose files are private


def make_folder(path: Path) -> None:
    """Make a folder, and missing folders above it; only their owner may use them.

    Raises:
        OSError: it cannot be made, or is not a folder.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        path.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise
        return  # another process was faster
    path.chmod(FOLDER_MODE)


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """`os.open` for writing; a missing file is made, readable by its owner only. Also an `opener` for `open`.

    Raises:
        OSError: it cannot be opened or made.
    """
    try:
        made = os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, FILE_MODE)  # O_CREAT for a symbolic link whose target is missing
    os.fchmod(made, FILE_MODE)
    return made


def make_file(path: Path) -> None:
    """Make an empty file that only its owner may read, if there is none.

    Raises:
        OSError: it cannot be made.
    """
    if not path.exists():
        os.close(open_file(path, os.O_RDWR))
