"""`run`, as a person uses it: a real provider process, real Redis, real workers, and SIGKILL."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ratelimit_worker.app import make_app
from ratelimit_worker.batchfile import ANSWER, Ask, Bad, End, asks
from ratelimit_worker.cli import main
from ratelimit_worker.cli.run.intake import bounded_lines, open_intake
from ratelimit_worker.cli.run.journal import Journal, OutFailed
from ratelimit_worker.cli.run.session import Options, Session
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput
from ratelimit_worker.simulate import Entry, Fault, Scenario, Simulator
from tests import leftovers
from tests.builders import clean_environment
from tests.conftest import wait_for
from tests.fleet import Valkey

pytestmark = [pytest.mark.server, pytest.mark.worker]


def ask(custom_id: str, text: str = "a question", model: str = "gpt-4o-mini") -> dict[str, Any]:
    """One line of IN."""
    body = {
        "model": model,
        "max_tokens": 20,
        "messages": [{"role": "user", "content": f"{text} ({custom_id})"}],
        "metadata": {"custom_id": custom_id},
    }
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


class Runner:
    """`ratelimit-worker run` in a folder of its own."""

    def __init__(self, folder: Path, base_url: str | None, **environment: str) -> None:
        self.source, self.out, self.state = folder / "in.jsonl", folder / "out.jsonl", folder / "state"
        self.environment = clean_environment(**environment)
        self.command = [sys.executable, "-m", "ratelimit_worker", "run", str(self.source), "-o", str(self.out)]
        self.command += ["--state-dir", str(self.state)]
        self.command += [] if base_url is None else ["--base-url", base_url]

    def write(self, lines: Sequence[Any]) -> None:
        """Write IN; text goes in as it is."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.source.write_text("".join(f"{text}\n" for text in texts), "utf-8")

    def __call__(self, *more: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [*self.command, *more], env=self.environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start it."""
        return subprocess.Popen(
            [*self.command, *more],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def answers(self) -> list[dict[str, Any]]:
        """The whole lines of OUT."""
        text = self.out.read_text("utf-8") if self.out.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def left_over(self) -> list[str]:
        """Command lines of processes that belong to this folder's runs: server, workers, the command itself."""
        run = self.out.with_name(self.out.name + ".run")
        marks = [str(self.state)] + ([f"run-{json.loads(run.read_text())['run'][:8]}"] if run.exists() else [])
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:  # it has ended meanwhile
                continue
            if any(mark in words for mark in marks):
                found.append(words)
        return found


@pytest.fixture
def provider() -> Iterator[Simulator]:
    """50 requests/s, OpenAI headers; lines with certain words meet a fault."""
    timeline = (
        Entry(fault=Fault.BAD_REQUEST, match="poison"),
        Entry(fault=Fault.CONFLICT, match="quarrel"),
        Entry(fault=Fault.MALFORMED, match="garble"),
    )
    with Simulator(Scenario(rpm=3000, latency="0.1", timeline=timeline)) as simulator:
        yield simulator


def test_every_line_has_one_line_in_out(provider: Simulator, tmp_path: Path) -> None:
    """Answers, refusals, failures with and without a status, bad lines: each once, also when it is run again."""
    run = Runner(tmp_path, provider.base_url)
    good = [ask(f"q-{number}") for number in range(52)]
    special = [ask("refused", "poison"), ask("conflict", "quarrel"), ask("malformed", "garble")]
    bad = ["{not json", ask("q-3", "again"), {**ask("get"), "method": "GET"}, {**ask("where"), "url": "https://x.y/z"}]
    run.write([*good[:30], *special, *bad, "", *good[30:], json.dumps({"method": "POST"})])

    done = run()

    out = run.answers()
    by_id = {line["custom_id"]: line for line in out if line["custom_id"] is not None}
    assert done.returncode == 1, done.stderr  # some failed
    assert done.stdout == ""
    assert len(out) == 60
    assert len({line["id"] for line in out}) == 60
    named = Counter(line["custom_id"] for line in out)
    assert named.pop(None) == 3  # not JSON, used before, none
    assert set(named) == {line["custom_id"] for line in [*good, *special]} | {"get", "where"}
    assert set(named.values()) == {1}
    for line in good:
        answer = by_id[line["custom_id"]]
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["request_id"]
        assert answer["response"]["body"]["choices"]
    assert by_id["refused"]["response"]["status_code"] == 400
    assert by_id["refused"]["response"]["body"]["error"]["message"]  # the provider's own
    assert by_id["refused"]["error"] is None
    assert by_id["conflict"]["response"]["status_code"] == 409
    assert by_id["conflict"]["response"]["body"]["error"]["type"] == "conflict"
    assert by_id["malformed"]["response"] is None
    assert by_id["malformed"]["error"]["code"] == "malformed_response"
    for number, words in [(34, "not JSON"), (35, "line 4"), (36, "POST"), (37, "path"), (61, "no custom_id")]:
        (said,) = [line for line in done.stderr.splitlines() if f"line {number}:" in line]
        assert words in said
    assert "60 of 60 lines: 52 answered, 1 refused, 7 failed" in done.stderr
    assert not run.left_over()
    assert not run.out.with_name("out.jsonl.run").exists()
    provider_requests = len(provider.arrivals())
    assert f"{provider_requests} provider requests" in done.stderr

    again = run()

    assert again.returncode == 1
    assert run.answers() == out
    assert len(provider.arrivals()) == provider_requests


def test_a_run_goes_on_after_ctrl_c_and_after_a_kill(tmp_path: Path) -> None:
    """Nothing is left of it, the same command completes OUT, and no answer that was settled is bought again."""
    with Simulator(Scenario(rpm=1200, latency="lognormal(0.3, 0.4)")) as provider:
        run = Runner(tmp_path, provider.base_url)
        names = {f"q-{number}" for number in range(90)}
        run.write([ask(name) for name in sorted(names)])

        stopped = run.start()
        wait_for(lambda: len(run.answers()) >= 20, timeout_s=120.0, what="20 answers")
        stopped.send_signal(signal.SIGINT)
        _, said = stopped.communicate(timeout=120)
        assert stopped.returncode == 130, said
        assert "resume with the same command" in said
        assert not run.left_over()
        first = [line["custom_id"] for line in run.answers()]
        assert len(first) < len(names)
        # what ran was let finish and kept: so far, each request that was answered has its line
        assert Counter(arrival.custom_id for arrival in provider.arrivals() if arrival.good) == Counter(first)

        killed = run.start()
        wait_for(lambda: len(run.answers()) >= 50, timeout_s=120.0, what="50 answers")
        killed.kill()
        killed.communicate()
        settled = {line["custom_id"] for line in run.answers()}
        assert settled < names
        with run.out.open("ab") as out:
            out.write(b'{"id": "batch_req_12ab", "custom_id": "q-9')  # as a crash may leave it
        wait_for(lambda: not run.left_over(), timeout_s=120.0, what="nothing is left of the killed run")

        done = run()

        assert done.returncode == 0, done.stderr
        assert sorted(line["custom_id"] for line in run.answers()) == sorted(names)
        bought = Counter(arrival.custom_id for arrival in provider.arrivals() if arrival.good)
        twice = {name for name, count in bought.items() if count > 1}
        assert not twice & settled
        assert max(bought.values()) <= 2
        assert len(twice) <= 15  # what can be at the provider at 20/s and 0.3 s, and then some
        assert not run.left_over()


def test_with_a_broker_the_cluster_takes_the_calls(tmp_path: Path) -> None:
    """No server and no worker of its own; limits that are told hold; several models, one lane by --lane."""
    valkey = Valkey(tmp_path)
    valkey.start()
    with Simulator(Scenario(latency="0.02")) as provider:
        run = Runner(tmp_path, None, MAISD_REDIS_URL=valkey.url)
        run.write([ask(f"q-{number}", model=f"model-{number % 3}") for number in range(20)])
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "ratelimit_worker.app", "worker", "-P", "threads", "-c", "8"],
            env={**run.environment, "MAISD_STATE_DIR": str(run.state), "OPENAI_BASE_URL": provider.base_url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            refused = run("--base-url", provider.base_url)
            done = run("--lane", "mine", "--rpm", "600")
        finally:
            worker.terminate()
            worker.wait(timeout=120)
            limits = valkey.client.hgetall("rlw:lane:mine")
            left = leftovers.of_server(valkey.client)
            valkey.stop()
        assert left == []
        assert refused.returncode == 2
        assert "--workers" in refused.stderr
        assert done.returncode == 0, done.stderr
        assert len(run.answers()) == 20
        assert not (run.state / "redis").exists()
        assert float(limits[b"rpm"]) == 600
        times_s = sorted(arrival.t for arrival in provider.arrivals())
        assert times_s[-1] - times_s[0] >= 1.0  # 20 calls at 10/s; all at once without the limit, or after a slow first
        assert not valkey.client.connection_pool._in_use_connections


def test_what_cannot_run_says_so(tmp_path: Path) -> None:
    """Exit codes 2, 69 and 78, one line each, no traceback."""
    run = Runner(tmp_path, None)
    run.write([ask("q-1")])
    for runner, code, words in [
        (Runner(tmp_path, None, MAISD_REDIS_URL="redis://127.0.0.1:1"), 69, "Redis"),
        (run, 78, "OPENAI_API_KEY"),
    ]:
        done = runner()
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not run.left_over()
    source, out = str(run.source), str(run.out)
    for arguments, environment, code, words in [
        ([source, "-o", out], {"MAISD_LANEZ": "{}", "MAISD_BASE_DELAY": "x"}, 78, "MAISD_LANEZ"),
        ([source, "-o", out, "--rpm", "0"], {}, 2, "--rpm"),
        ([source, "-o", source], {}, 2, "IN and OUT"),
        ([source, "-o", out, "--allow-path", "/%2e%2e/admin"], {}, 2, "not a plain path"),
        ([source], {}, 2, "-o"),
        ([str(tmp_path / "none.jsonl"), "-o", out], {}, 2, "none.jsonl"),
    ]:
        said = CliRunner().invoke(main, ["run", *arguments], env=environment)
        assert said.exit_code == code, said.output
        assert words in said.stderr


def test_lines_that_cannot_be_sent_are_named_before_any_is(tmp_path: Path) -> None:
    """Who reads that a file asks for the account's own affairs can stop before anything is paid for."""
    source, said = tmp_path / "in.jsonl", list[str]()
    lines = [ask("a"), {**ask("b"), "url": "/v1/%2e%2e/admin"}, {**ask("c"), "url": "/v1/organization/users"}]
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {**ask("d"), "url": "/proxy/chat"}]))
    options = Options(context="c", allowed_paths=frozenset({"/proxy/chat"}))
    with Journal(tmp_path / "out.jsonl") as journal, open_intake(source, tmp_path) as intake:
        cluster: Any = SimpleNamespace(
            app=make_app(redis_url="redis://127.0.0.1:1"), settings=read_settings({}), environ={}
        )
        session = Session(intake, journal, cluster, options, lambda: said.append("begun"), said.append)
    assert [line.partition("in.jsonl, ")[2].partition(" is")[0] for line in said] == ["line 2: url", "line 3: url"]
    assert session.total == 4


def test_a_line_without_end_is_never_whole_in_memory() -> None:
    """It is named with its length; the lines after it are found where they are."""
    good = json.dumps(ask("b")).encode() + b"\n"
    file = io.BytesIO(b"x" * 5_000 + b"\n" + good + b"y" * 9_000)
    first, second, third = asks(bounded_lines(file, 2_000), uuid.uuid4())
    assert isinstance(first, Bad)
    assert isinstance(third, Bad)
    assert "5,001 bytes long" in first.why
    assert "9,000 bytes long" in third.why
    assert isinstance(second, Ask)
    assert file.getvalue()[second.offset :].startswith(good)


def test_a_file_that_is_not_out_is_left_as_it_is(tmp_path: Path) -> None:
    """Neither a foreign file nor one in use is written to; a torn line of ours is cut off."""
    notes = tmp_path / "notes.txt"
    for text in ("dear diary", '{"name": "x"}\n'):
        notes.write_text(text)
        with pytest.raises(BadInput, match="choose another file"), Journal(notes):
            pass
        assert notes.read_text() == text

    out = tmp_path / "out.jsonl"
    whole = '{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200}, "error": null}\n'
    out.write_text(whole + '{"id": "bat')
    with Journal(out) as journal:
        assert out.read_text() == whole
        assert journal.has("a", "1")
        assert journal.kind("a", "1") == ANSWER
        with pytest.raises(OutFailed, match="another run"), Journal(out):
            pass
        journal.write([("a", "1", b"never\n", End.FAILED), (None, "2", b"once\n", End.FAILED)])
        assert out.read_text() == whole + "once\n"
