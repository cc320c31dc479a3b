"""What documents tell one to type: their blocks, and a terminal in which a test types them as they stand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.builders import ROOT, clean_environment
from tests.conftest import wait_for

T = TypeVar("T")

HOW_TO = ROOT / "docs" / "how-to"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(HOW_TO.glob("*.md")),
]
SHELL = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str  #: its path in the repository
    form: str  #: what stands behind its fence
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, by a first line such as `# shop.py`."""
        named = re.match(r"# (\S+\.(?:py|toml))\n", self.text)
        return named[1] if named else None


def blocks_of(document: Path, *forms: str) -> list[Block]:
    """A document's fenced blocks, in order; of these forms, if some are named."""
    found = re.findall(r"^```(\S+)\n(.*?)^```$", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    name = document.relative_to(ROOT).as_posix()
    return [Block(name, form, text) for form, text in found if form in forms or not forms]


def typing_in(folder: Path) -> dict[str, str]:
    """The environment of one who has installed the package, and works in a folder."""
    ours = clean_environment(HOME=str(folder), MAISD_STATE_DIR=str(folder / "state"))
    path, modules = f"{Path(sys.executable).parent}:{ours['PATH']}", f"{folder}:{ours['PYTHONPATH']}"
    return {**ours, "PATH": path, "PYTHONPATH": modules}


#: What a call's sender is told if a machine is so busy that Redis seems to be frozen.
NOT_ACCEPTED = "was not accepted: Redis did not answer in time"


def until_accepted(type_it: Callable[[], T], said: Callable[[T], str]) -> T:
    """Type it again, as its reader would, while it ends since nothing answered in time; `said` gives its words."""
    for _ in range(4):
        if NOT_ACCEPTED not in said(done := type_it()):
            return done
    return type_it()


class Terminal:
    """What one types into a shell of its own; it ends with Ctrl-C."""

    def __init__(self, lines: str, folder: Path, env: Mapping[str, str]) -> None:
        self.words = (folder / f"terminal-{len(list(folder.glob('terminal-*')))}").open("w+")
        self.process = subprocess.Popen(
            ["bash", "-ec", f"exec {lines}" if "\n" not in lines.strip() else lines],
            cwd=folder,
            env=dict(env),
            stdout=self.words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self) -> str:
        """All of it until now."""
        return Path(self.words.name).read_text("utf-8")

    def wait_for(self, words: str) -> None:
        """Until it says so.

        Raises:
            AssertionError: it ends before.
        """

        def there() -> bool:
            assert words in self.said() or self.process.poll() is None, self.said()
            return words in self.said()

        wait_for(there)

    def all_said(self) -> str:
        """What it said, when it has ended by itself."""
        self.process.wait(timeout=300)
        return self.said()

    def ended(self) -> str:
        """The same; it has ended well."""
        said = self.all_said()
        assert self.process.returncode == 0, said
        return said

    def stop(self) -> None:
        """Press Ctrl-C, and wait; only what does not end so is killed."""
        try:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(timeout=120)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(timeout=30)
            self.words.close()
