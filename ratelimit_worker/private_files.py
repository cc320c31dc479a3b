"""Who may read the files that we make? Their owner alone: they hold prompts, answers, keys and what tells of them.

What is there already keeps its mode: a folder or file that somebody has made is theirs to open up. A umask can only
take more away, so each mode is set once more on what we have just made.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
UMASK = 0o077  #: for a process whose files are all ours


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; each of them is its owner's alone.

    Raises:
        OSError: it cannot be made, or is no folder.
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
    """`os.open` for writing; a file that is not there yet is made, its owner's alone. An `opener` for `open`, too.

    Raises:
        OSError: it cannot be opened or made.
    """
    try:
        made = os.open(path, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, FILE_MODE)  # made here only where a link led to nothing
    os.fchmod(made, FILE_MODE)
    return made


def make_file(path: Path) -> None:
    """Make an empty file of its owner's alone where there is none.

    Raises:
        OSError: it cannot be made.
    """
    if not path.exists():
        os.close(open_file(path, os.O_RDWR))
