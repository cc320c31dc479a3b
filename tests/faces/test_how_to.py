"""What documents tell one to type is typed: each shell block as it stands, in bash, but for its ports.

Every document's shell blocks are either typed here, or by the test that `TYPED_BY` names, or stand in `NOT_TYPED` with
the reason why they cannot be.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from ratelimit_worker.simulate import Scenario, Simulator
from tests import leftovers
from tests.builders import ROOT
from tests.conftest import PostgresServer, wait_for
from tests.documents import DOCUMENTS, HOW_TO, SHELL, Block, Terminal, blocks_of, typing_in, until_accepted
from tests.fleet import Valkey, free_port
from tests.tls import secured

DOCS = ROOT / "docs"
#: One after the other, in one folder; the worker of the first stays for the others.
TOGETHER = [
    HOW_TO / "agents.md",
    HOW_TO / "limits.md",
    HOW_TO / "tenants-and-budgets.md",
    HOW_TO / "autoscaling.md",
    HOW_TO / "emergencies.md",
    DOCS / "money.md",
    DOCS / "runbook.md",
]
ALONE = [
    DOCS / "deployment.md",
    HOW_TO / "existing-app.md",
    DOCS / "scale.md",
    HOW_TO / "postgresql.md",
    HOW_TO / "tls.md",
]
TYPED_BY = {
    "docs/quickstart.md": "tests/faces/test_quickstart.py",
    "docs/recipes.md": "tests/cluster/test_recipes.py",
}
#: Document and how the block begins → why it is not typed.
NOT_TYPED = {
    ("README.md", "make demo"): "tests/faces/test_demo.py has the demo; the other command is this suite",
    (
        "README.md",
        "ratelimit-worker run",
    ): "asks OpenAI; the quickstart's step 4 is the same against a simulated provider",
    ("README.md", "celery -A your_app"): "your_app is the reader's; how-to/agents.md has one with a name",
    ("README.md", "ratelimit-worker status"): "a list with placeholders (CALL_ID, KIND); the names are checked",
    ("examples/README.md", "ratelimit-worker simulate"): "steps 3 and 4 of the quickstart",
    ("docs/command-line.md", "ratelimit-worker run"): "the form of a command, with its options in brackets",
    ("docs/command-line.md", "ratelimit-worker demo"): "the form of a command, with its options in brackets",
    ("docs/flower.md", "pip install"): "pip, and the form of a command; the quickstart's step 6 starts Flower",
    ("docs/flower.md", "ratelimit-worker up"): "the form of a command; the quickstart's step 5 starts it",
    ("docs/testing.md", "make fuzz"): "property tests for minutes; tests/project/test_properties.py has its parts",
    ("docs/how-to/postgresql.md", "pip install"): "installs from the network what `make install` has installed",
    ("docs/tracing.md", "pip install"): "installs from the network",
    ("docs/how-to/tls.md", "valkey-server"): "the tests' server has no TLS: a port that speaks it stands before it",
    ("docs/deployment.md", "password="): "tests/project/test_compose.py types it, without Docker",
    ("docs/deployment.md", "docker compose"): "no Docker; tests/project/test_compose.py reads the file",
    ("docs/how-to/autoscaling.md", "kubectl apply"): "no cluster; tests/compat checks the manifests by their schemas",
}


def why_not(block: Block) -> str | None:
    """The reason why a block is not typed; None: it is."""
    return next((why for (name, begins), why in NOT_TYPED.items() if _is(block, name, begins)), None)


def _is(block: Block, name: str, begins: str) -> bool:
    return block.document == name and block.text.startswith(begins)


def shell_blocks() -> list[Block]:
    """Those of all documents."""
    return [block for document in DOCUMENTS for block in blocks_of(document, *SHELL)]


def test_every_shell_block_is_typed_or_says_why_not() -> None:
    """And nothing is named that is gone."""
    typed = {document.relative_to(ROOT).as_posix() for document in (*TOGETHER, *ALONE)} | set(TYPED_BY)
    assert [block for block in shell_blocks() if block.document not in typed and why_not(block) is None] == []
    stale = [key for key in NOT_TYPED if not any(_is(block, *key) for block in shell_blocks())]
    assert stale == []
    assert all((ROOT / test).is_file() for test in TYPED_BY.values())
    assert set(HOW_TO.glob("*.md")) <= {*TOGETHER, *ALONE}


class Reader:
    """Somebody who does what documents say, in one folder."""

    def __init__(
        self, folder: Path, opened: ExitStack, servers: Mapping[str, Valkey], ports: Mapping[str, str]
    ) -> None:
        """Args:
        servers: A server for each port at which documents have one.
        ports: Other ports of documents, and what is in their place.
        """
        self.folder, self.servers, self.opened = folder, servers, opened
        self.ports = {**ports, **{port: str(server.port) for port, server in servers.items()}}
        self.env = typing_in(folder)

    def files(self, document: Path) -> None:
        """Write the files that a document shows."""
        for block in blocks_of(document, "python", "toml"):
            if block.file:
                (self.folder / block.file).write_text(self._here(block.text))

    def does(self, document: Path, instead: Mapping[str, Callable[[], None]] | None = None) -> str:
        """Type all its shell blocks; what was exported holds for the blocks after it.

        Args:
            instead: What to do in place of a block that cannot be typed, by its first word.

        Returns:
            What was said to it, without what goes on in the background.
        """
        self.files(document)
        exports, said = "", []
        for block in blocks_of(document, *SHELL):
            text = self._here(block.text)
            if why_not(block) is not None:
                (instead or {}).get(block.text.split()[0], lambda: None)()
                continue
            exports += "".join(line + "\n" for line in text.splitlines() if line.startswith("export "))
            if "celery -A" in text:
                self._start_worker(exports + text)
            elif "ratelimit-worker metrics" in text:
                self._start(exports + text).wait_for(self.ports["9464"])
            else:
                said.append(self.types(exports + text))
        return "".join(said)

    def types(self, text: str) -> str:
        """Type lines that end, and tell what they said."""
        return until_accepted(lambda: self._start(text), Terminal.all_said).ended()

    def types_worker(self, document: Path) -> None:
        """Type the block by which a document starts its worker."""
        (block,) = (block for block in blocks_of(document, *SHELL) if "celery -A" in block.text)
        self._start_worker(block.text)

    def _here(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(port, free)
        return text

    def _start(self, text: str) -> Terminal:
        terminal = Terminal(text, self.folder, self.env)
        self.opened.callback(terminal.stop)
        return terminal

    def _start_worker(self, text: str) -> None:
        before = self._workers()
        terminal = self._start(text)

        def beats() -> bool:
            assert terminal.process.poll() is None, terminal.said()
            return self._workers() > before

        wait_for(beats, timeout_s=240, what="the worker's first beat")

    def _workers(self) -> int:
        return sum(int(server.client.zcard("rlw:workers")) for server in self.servers.values())


@pytest.fixture
def provider() -> Iterator[Simulator]:
    with Simulator(Scenario(rpm=6000)) as one:
        yield one


@pytest.fixture
def reader(tmp_path: Path, provider: Simulator) -> Iterator[Reader]:
    """With two servers and a provider; all that he started is stopped, and no key is left that nobody knows."""
    servers = {}
    with ExitStack() as stays:
        for port in ("6399", "6398"):
            (tmp_path / f"server-{port}").mkdir()
            servers[port] = Valkey(tmp_path / f"server-{port}")
            servers[port].start()
            stays.callback(servers[port].stop)
        with ExitStack() as opened:
            ports = {"8099": provider.base_url.rsplit(":", 1)[1].split("/")[0], "9464": str(free_port())}
            yield Reader(tmp_path, opened, servers, ports)
        for server in servers.values():
            leftovers.check(server.client)


@pytest.mark.server
@pytest.mark.worker
def test_what_documents_say_about_one_deployment(reader: Reader) -> None:
    """Each in turn; what they promise to show is seen."""
    said = {document.name: reader.does(document) for document in TOGETHER}
    assert "openai:gpt-4o-mini" in said["agents.md"]
    assert "crew.choose" in said["agents.md"]
    assert "openai-org" in said["limits.md"]
    assert "team-a" in said["tenants-and-budgets.md"]
    assert "ratelimit_worker_lane_useful_slots" in said["autoscaling.md"]
    assert "HALT" in said["emergencies.md"]
    assert "the provider told us" in said["emergencies.md"]
    assert "context:ideas" in said["tenants-and-budgets.md"]


@pytest.mark.server
@pytest.mark.worker
def test_an_existing_app(reader: Reader) -> None:
    """Its ordinary task and its call are answered."""
    said = reader.does(HOW_TO / "existing-app.md")
    assert "\n2\n" in said
    assert "openai:gpt-4o-mini" in said


@pytest.mark.server
@pytest.mark.worker
def test_lanes_on_a_redis_of_their_own(reader: Reader, provider: Simulator) -> None:
    """One process sends to both; each server has its own lane and not the other's."""
    reader.does(DOCS / "scale.md")
    first, second = (_lanes(server.client) for server in reader.servers.values())
    assert (first, second) == ({"openai:gpt-4o"}, {"openai:gpt-4o-mini"})
    assert len([arrival for arrival in provider.arrivals() if arrival.good]) == 2
    databases = sorted(path.relative_to(reader.folder).parts[0] for path in reader.folder.rglob("*.sqlite3"))
    assert databases == ["bulk", "chat"]


def _lanes(client: Redis) -> set[str]:
    return {key.decode().removeprefix("rlw:lane:") for key in client.scan_iter("rlw:lane:*")}


#: The tests' server comes without its command line; this says what it is told, as `valkey-cli` does.
CLI = """#!{python}
import sys
from redis import Redis
client = Redis(port={port}, decode_responses=True)
client.set_response_callback("INFO", lambda told, **_: told)
client.set_response_callback("CONFIG SET", lambda told, **_: told)
print(client.execute_command(*sys.argv[1:]))
"""


@pytest.mark.server
@pytest.mark.worker
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is not installed (apt-get install sqlite3)")
def test_a_backup_is_made_and_restored(reader: Reader, provider: Simulator) -> None:
    """Of a deployment with calls that wait: they go on from the copy, and what was recorded is there."""
    server = reader.servers["6399"]
    cli = reader.folder / "bin" / "valkey-cli"
    cli.parent.mkdir()
    cli.write_text(CLI.format(python=sys.executable, port=server.port))
    cli.chmod(0o755)
    reader.env |= {
        "PATH": f"{cli.parent}:{reader.env['PATH']}",
        "MAISD_REDIS_URL": server.url,
        "OPENAI_BASE_URL": provider.base_url,
    }
    reader.files(HOW_TO / "agents.md")
    with ExitStack() as opened:
        worker = Reader(reader.folder, opened, reader.servers, reader.ports)
        worker.env = reader.env
        worker.types_worker(HOW_TO / "agents.md")
        worker.types('python -c \'from crew import idea; idea.delay("a", "answered").get(timeout=300)\'')
        wait_for(lambda: server.client.xlen("rlw:outbox") == 0, what="it is recorded")
    reader.types("python -c 'from crew import idea; print([idea.delay(\"a\", str(n)).id for n in range(20)])'")
    reader.ports["/data/appendonlydir"] = str(server.folder / "appendonlydir")
    reader.does(DOCS / "deployment.md")

    server.kill()
    server.forget()
    shutil.copytree(reader.folder / "backup" / "appendonlydir", server.folder / "appendonlydir")
    server.start()
    (reader.folder / "state" / "tracking.sqlite3").rename(reader.folder / "lost.sqlite3")
    shutil.copy(reader.folder / "backup" / "tracking.sqlite3", reader.folder / "state" / "tracking.sqlite3")
    before = len(provider.arrivals())
    reader.types_worker(HOW_TO / "agents.md")
    wait_for(lambda: len(provider.arrivals()) == before + 20, timeout_s=240, what="what waited goes on")
    wait_for(lambda: server.client.xlen("rlw:outbox") == 0, what="it is recorded")
    said = reader.types("ratelimit-worker stats --window 1h --format json")
    assert json.loads(said)["total"]["answered"] == 21


@pytest.mark.server
@pytest.mark.worker
@pytest.mark.postgres
def test_postgresql(reader: Reader, postgres_server: PostgresServer) -> None:
    """A database is made, outcomes are in it, and it is dumped."""
    user, _, host = postgres_server.url().removeprefix("postgresql://").partition("@")
    reader.env |= {"PGUSER": user, "PGHOST": host.partition("host=")[2]}
    reader.files(HOW_TO / "agents.md")
    reader.env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{reader.ports['8099']}/v1"
    said = reader.does(HOW_TO / "postgresql.md")
    assert "crew.idea | answered" in " ".join(said.split())
    assert "CREATE TABLE public.attempts" in (reader.folder / "tracking.sql").read_text()
    assert "crew.idea" in said.rpartition("(1 row)")[2], "what was restored has figures"


@pytest.mark.server
@pytest.mark.worker
def test_tls(reader: Reader) -> None:
    """With the certificates that its commands make."""
    reader.files(HOW_TO / "agents.md")

    def before_the_server() -> None:
        port = reader.opened.enter_context(secured(reader.servers["6399"].port, reader.folder))
        reader.ports["6380"] = str(port)

    reader.does(HOW_TO / "tls.md", {"valkey-server": before_the_server})
    assert _lanes(reader.servers["6399"].client) == {"openai:gpt-4o-mini"}
