"""docs/quickstart.md: its steps run as they stand, and every command in the documents is one that there is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import httpx2 as httpx
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ratelimit_worker.cli import COMMANDS, main
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.documents import DOCUMENTS, Terminal, blocks_of, typing_in, until_accepted
from tests.fleet import free_port

QUICKSTART = ROOT / "docs" / "quickstart.md"


@pytest.mark.server
@pytest.mark.worker
def test_every_step_of_the_quickstart(tmp_path: Path) -> None:
    """Each shell block as it stands, in bash, but for its ports; not what `make`, pip and Docker have tests for."""
    demo, install, simulate, file, up, lines, redis, workers, compose = (
        block.text for block in blocks_of(QUICKSTART, "sh")
    )
    assert "make demo" in demo
    assert "pip install" in install
    assert "docker compose" in compose
    ports = {port: str(free_port()) for port in ("8099", "6399", "5555")}

    def here(block: str) -> str:
        for port, free in ports.items():
            block = block.replace(port, free)
        return block

    (module,) = blocks_of(QUICKSTART, "python")
    (tmp_path / "mytasks.py").write_text(module.text)
    env = typing_in(tmp_path)
    with ExitStack() as opened:

        def terminal(block: str, **more: str) -> Terminal:
            made = Terminal(here(block), tmp_path, {**env, **more})
            opened.callback(made.stop)
            return made

        terminal(simulate).wait_for(ports["8099"])
        assert "200" in terminal(file).ended()
        answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
        assert sorted(int(answer["custom_id"].removeprefix("q-")) for answer in answers) == list(range(1, 201))

        deployment = terminal(f"{up.rstrip()} --port {free_port()}")  # another Flower may be on its usual one
        deployment.wait_for("export MAISD_STATE_DIR")
        exports = "".join(line + "\n" for line in deployment.said().splitlines() if line.startswith("export "))
        said = until_accepted(lambda: terminal(exports + "set -x\n" + lines), Terminal.all_said).ended()
        assert "openai:gpt-4o-mini" in said
        assert "NORMAL -> EMERGENCY" in said
        assert "300/min" in said
        assert (tmp_path / "report.html").exists()
        deployment.stop()

        terminal(redis)
        server = opened.enter_context(Redis(port=int(ports["6399"]), retry=Retry(NoBackoff(), 0)))
        wait_for(lambda: _reaches(server.ping, RedisError))
        own = {
            "MAISD_REDIS_URL": here("redis://127.0.0.1:6399/0"),
            "OPENAI_BASE_URL": here("http://127.0.0.1:8099/v1"),
        }
        worker, flower = (terminal(line, **own) for line in workers.strip().splitlines())
        wait_for(lambda: server.zcard("rlw:workers"), what=lambda: f"the worker's first beat: {worker.said()}")
        asked = next(line for line in lines.splitlines() if line.startswith("python -c"))
        title = until_accepted(lambda: terminal(asked, **own), Terminal.all_said).ended()
        assert len(title.split()) > 3
        flower.wait_for(here("5555"))
        page = f"http://127.0.0.1:{ports['5555']}/rate-limit"
        wait_for(lambda: _reaches(lambda: httpx.get(page), httpx.TransportError))
        assert httpx.get(page).status_code == 401
        assert "openai:gpt-4o-mini" in httpx.get(page, auth=("me", "secret")).text


def _reaches(ask: Callable[[], object], unreached: type[Exception]) -> bool:
    try:
        ask()
    except unreached:
        return False
    return True


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
                command = command.commands[rest[0]] if rest else command
            assert command is not None
            known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
            named = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert named <= known | {"-h", "--help"}, (document.name, line)
    assert {"run", "simulate", "up", "flower", "status", "stats", "doctor"} <= seen


def test_every_command_is_in_the_reference() -> None:
    """docs/command-line.md names all of them."""
    reference = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert [name for name in COMMANDS if not re.search(rf"`{name}\b", reference)] == []
