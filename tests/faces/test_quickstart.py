"""docs/quickstart.md: its module runs as it stands, and every command in the documents is one that there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ratelimit_worker.cli import COMMANDS, main
from ratelimit_worker.simulate import Scenario, Simulator
from tests.builders import ROOT, clean_environment
from tests.fleet import Worker, fleet

QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(form: str) -> list[str]:
    """The fenced blocks of one form."""
    return re.findall(rf"```{form}\n(.*?)```", QUICKSTART, re.DOTALL)


@pytest.mark.server
@pytest.mark.worker
def test_the_task_of_the_quickstart(tmp_path: Path) -> None:
    """The module, a worker of it, and the lines after `up` prints its exports, in their order."""
    (module,) = blocks("python")
    (tmp_path / "mytasks.py").write_text(module)
    lines = next(block for block in blocks("sh") if block.startswith("python -c")).splitlines()
    with Simulator(Scenario(rpm=3000)) as provider, fleet(OPENAI_BASE_URL=provider.base_url) as made:
        ours = clean_environment(**made.env)
        env = {**ours, "PYTHONPATH": f"{tmp_path}:{ours['PYTHONPATH']}"}
        worker = Worker("mine", tmp_path, env, ("-P", "threads", "-c", "4", "-E"), app="mytasks")
        made.workers.append(worker)
        worker.wait_ready()
        said = {}
        for line in lines:
            words = shlex.split(line)
            command = [sys.executable, *(words[1:] if words[0] == "python" else ["-m", "ratelimit_worker", *words[1:]])]
            done = subprocess.run(
                command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            said[words[1]] = done.stdout
        assert len(said["-c"].split()) > 3, "a title"
        assert "openai:gpt-4o-mini" in said["status"]
        assert "NORMAL -> EMERGENCY" in said["emergency"]
        assert "300/min" in said["limits"]
        assert (tmp_path / "report.html").exists()
        assert len(provider.arrivals()) == 1


def test_every_command_of_the_documents_is_there() -> None:
    """Name and options: a document that names one which is gone is wrong."""
    seen = set()
    for document in DOCUMENTS:
        for line in re.findall(r"^(?:\$ )?ratelimit-worker (.*)$", document.read_text("utf-8"), re.MULTILINE):
            name, *rest = shlex.split(line.split("  #")[0].replace("[", "").replace("]", ""))
            assert name in COMMANDS, (document.name, line)
            seen.add(name)
            command = main.get_command(click.Context(main), name)
            if isinstance(command, click.Group):
                command = command.commands[rest[0]]
            assert command is not None
            known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
            named = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert named <= known | {"-h", "--help"}, (document.name, line)
    assert {"run", "simulate", "up", "flower", "status", "stats", "doctor"} <= seen


def test_every_command_is_in_the_reference() -> None:
    """docs/command-line.md names all of them."""
    reference = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert [name for name in COMMANDS if not re.search(rf"`{name}\b", reference)] == []
