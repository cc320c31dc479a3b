"""`run` and the account: a key that is not accepted burns no line, and what failed for it is taken up again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from ratelimit_worker.batchfile import ANSWER, End, read_out
from ratelimit_worker.cli.run.journal import Journal, OutFailed
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.tables import AttemptRow
from tests.conftest import wait_for
from tests.faces.test_run import Runner, ask

CHAT = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}
BAD_KEY = {
    "error": {"message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key"}
}

#: (what was asked, the key that came with it) → status and body
Script = Callable[[dict[str, Any], str], tuple[int, Any]]


class Provider(ThreadingHTTPServer):
    """Answers by a function of a test's, and counts."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, int]] = []  #: (custom_id, status) of each request
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        status, answer = self.server.script(sent, self.headers.get("authorization", "").removeprefix("Bearer "))
        body = json.dumps(answer).encode()
        self.server.asked.append((sent["metadata"]["custom_id"], status))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    def keyed(sent: dict[str, Any], key: str) -> tuple[int, Any]:
        return (200, CHAT) if key == "sk-good" else (401, BAD_KEY)

    with Provider(keyed) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ends(run: Runner) -> Counter[End]:
    return Counter(read_out(line.encode()).end for line in run.out.read_text("utf-8").splitlines())


@pytest.mark.server
@pytest.mark.worker
def test_a_bad_key_burns_no_line_and_a_new_one_goes_on(provider: Provider, tmp_path: Path) -> None:
    """The lane halts, the command says so once and waits; the key's file changes, by way of an empty one: all go on."""
    key = tmp_path / "key"
    key.write_text("sk-bad")
    run = Runner(tmp_path, provider.base_url, OPENAI_API_KEY_FILE=str(key))
    run.write([ask(f"q-{number}") for number in range(60)])

    running = run.start("--concurrency", "8")
    wait_for(lambda: len(provider.asked) >= 5, timeout_s=120.0, what="five refusals")
    said: list[str] = []
    stream = running.stderr
    assert stream is not None
    for line in stream:
        said.append(line)
        if "does not accept the key" in line:
            break
    assert run.answers() == []
    refused = len(provider.asked)
    assert {status for _, status in provider.asked} == {401}
    assert refused < 60
    key.write_text("")  # as `>` does, before what is to be in it
    new = tmp_path / "new"
    new.write_text("sk-good\n")
    os.replace(new, key)
    said += stream.readlines()
    assert running.wait(timeout=120) == 0, said

    told = [line for line in said if "does not accept the key" in line]
    assert len(told) == 1
    assert f"a change of {key}" in told[0]
    assert "HTTP 401" in told[0]
    assert ends(run) == {End.ANSWERED: 60}
    assert Counter(status for _, status in provider.asked)[200] == 60  # nothing is paid twice
    with engine_for(f"sqlite:///{run.state}/tracking.sqlite3").connect() as connection:
        rows = connection.execute(select(AttemptRow.outcome, AttemptRow.category)).all()
    assert Counter(str(outcome) for outcome, _ in rows)["answered"] == 60
    # what was refused for the account's sake is an attempt that was repeated
    assert {str(category) for outcome, category in rows if str(outcome) != "answered"} == {"auth"}
    assert {str(outcome) for outcome, _ in rows} == {"answered", "retried"}
    assert len(rows) == len(provider.asked)  # those that were sent again under the same id, too


@pytest.mark.server
@pytest.mark.worker
def test_a_token_that_is_bad_for_a_while_loses_no_line(provider: Provider, tmp_path: Path) -> None:
    """Nobody does anything: probes find out."""
    bad = iter(range(12))

    def script(sent: dict[str, Any], key: str) -> tuple[int, Any]:
        healthy = sum(1 for _, status in provider.asked if status == 200)
        return (401, BAD_KEY) if healthy >= 20 and next(bad, None) is not None else (200, CHAT)

    provider.script = script
    run = Runner(tmp_path, provider.base_url)
    run.write([ask(f"q-{number}") for number in range(60)])
    done = run("--concurrency", "8", timeout_s=240.0)
    assert done.returncode == 0, done.stderr
    assert ends(run) == {End.ANSWERED: 60}
    assert Counter(status for _, status in provider.asked) == {200: 60, 401: 12}


@pytest.mark.server
@pytest.mark.worker
def test_for_scripts_a_bad_key_ends_the_run_and_a_resume_takes_it_up(provider: Provider, tmp_path: Path) -> None:
    """`--on-auth fail`: exit code 1, one line; with a good key the same command answers all, once."""
    run = Runner(tmp_path, provider.base_url, OPENAI_API_KEY="sk-bad")
    run.write([ask(f"q-{number}") for number in range(60)])
    done = run("--on-auth", "fail", "--concurrency", "8")
    assert done.returncode == 1
    assert "does not accept the key (HTTP 401); resume with the same command" in done.stderr
    assert "Traceback" not in done.stderr
    failed = run.answers()
    assert failed
    assert len(failed) < 60
    assert {line["response"]["status_code"] for line in failed} == {401}

    run.environment["OPENAI_API_KEY"] = "sk-good"
    again = run("--on-auth", "fail")
    assert again.returncode == 0, again.stderr
    assert f"{len(failed)} lines that failed for the account's sake are sent again" in again.stderr
    assert ends(run) == {End.ANSWERED: 60}
    assert sorted(line["custom_id"] for line in run.answers()) == sorted(f"q-{number}" for number in range(60))
    assert Counter(status for _, status in provider.asked)[200] == 60


@pytest.mark.server
@pytest.mark.worker
def test_a_quota_is_waited_for_and_said(provider: Provider, tmp_path: Path) -> None:
    """A 402 halts the lane; `--on-auth fail` ends there too, and no line is burned."""
    provider.script = lambda sent, key: (402, {"error": {"message": "Insufficient Balance"}})
    run = Runner(tmp_path, provider.base_url)
    run.write([ask(f"q-{number}") for number in range(20)])
    done = run("--on-auth", "fail", "--concurrency", "4")
    assert done.returncode == 1
    assert "says that the quota is used up" in done.stderr
    assert run.answers() == []
    provider.script = lambda sent, key: (200, CHAT)
    again = run()
    assert again.returncode == 0, again.stderr
    assert ends(run) == {End.ANSWERED: 20}


@pytest.mark.server
@pytest.mark.worker
def test_a_person_lets_a_halted_run_go_on(provider: Provider, tmp_path: Path) -> None:
    """By the very command that stderr names, as the run's own Redis has an address of its own."""
    provider.script = lambda sent, key: (403, {"code": "x", "error": "Your team has used all available credits."})
    run = Runner(tmp_path, provider.base_url)
    run.write([ask(f"q-{number}") for number in range(20)])
    running = run.start("--concurrency", "4")
    stream = running.stderr
    assert stream is not None
    told = next(line for line in iter(stream.readline, "") if "quota is used up" in line)
    provider.script = lambda sent, key: (200, CHAT)
    address, *command = told.partition("`")[2].partition("`")[0].split()
    name, _, url = address.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *command[1:]],
        env={**run.environment, name: url, "MAISD_STATE_DIR": str(run.state)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rest = stream.read()
    assert running.wait(timeout=120) == 0, rest
    assert "no longer halted; going on" in rest
    assert ends(run) == {End.ANSWERED: 20}


@pytest.mark.server
@pytest.mark.worker
def test_a_line_that_is_barred_while_others_are_answered_is_its_own_fault(provider: Provider, tmp_path: Path) -> None:
    """One model that this key may not use, and one line with a 403 among others: failed, and the rest is answered."""

    def script(sent: dict[str, Any], key: str) -> tuple[int, Any]:
        if sent["model"] == "barred" or sent["metadata"]["custom_id"] == "odd":
            return 403, {"error": {"message": "no access", "code": "model_not_allowed"}}
        return 200, CHAT

    provider.script = script
    run = Runner(tmp_path, provider.base_url)
    run.write([ask("odd"), ask("other", model="barred"), *(ask(f"q-{number}") for number in range(60))])
    done = run("--rpm", "600", timeout_s=240.0)
    assert done.returncode == 1, done.stderr
    by_id = {line["custom_id"]: line["response"]["status_code"] for line in run.answers()}
    assert (by_id.pop("odd"), by_id.pop("other")) == (403, 403)
    assert set(by_id.values()) == {200}
    assert len(by_id) == 60


@pytest.mark.server
@pytest.mark.worker
def test_what_is_no_answer_is_none_in_out_either(provider: Provider, tmp_path: Path) -> None:
    """An upstream's status inside a 200 is that status; nothing in it is malformed, three times and no more."""

    def script(sent: dict[str, Any], key: str) -> tuple[int, Any]:
        name = sent["metadata"]["custom_id"]
        if name.startswith("inner"):
            return 200, {"error": {"code": name.partition("-")[2], "message": "upstream said no"}}
        if name == "once" and not any(one == "once" for one, _ in provider.asked):
            return 200, {**CHAT, "choices": []}
        return 200, {**CHAT, "choices": []} if name == "empty" else CHAT

    provider.script = script
    run = Runner(tmp_path, provider.base_url)
    run.write([ask(name) for name in ("inner-400", "inner-404", "inner-422", "once", "empty", "q-1")])
    done = run(timeout_s=240.0)
    assert done.returncode == 1, done.stderr
    by_id = {line["custom_id"]: line for line in run.answers()}
    assert [by_id[f"inner-{status}"]["response"]["status_code"] for status in (400, 404, 422)] == [400, 404, 422]
    assert by_id["inner-404"]["response"]["body"]["error"]["message"] == "upstream said no"  # the provider's own
    assert by_id["empty"]["error"]["code"] == "malformed_response"
    assert by_id["once"]["response"]["body"]["choices"]
    assert "2 answered, 3 refused, 1 failed" in done.stderr
    assert sum(name == "empty" for name, _ in provider.asked) == 3


@pytest.mark.server
def test_a_line_that_streams_is_never_sent(provider: Provider, tmp_path: Path) -> None:
    """It is an invalid line, and no worker is started for it."""
    run = Runner(tmp_path, provider.base_url)
    lines = [ask(f"q-{number}") for number in range(3)]
    for line in lines:
        line["body"]["stream"] = True
    run.write(lines)
    done = run()
    assert done.returncode == 1
    assert {line["error"]["code"] for line in run.answers()} == {"invalid_line"}
    assert provider.asked == []
    assert '"stream"' in done.stderr
    assert "0 provider requests, 0 of them 429, 0 retries" in done.stderr


OURS = '{"message": "x", "type": "%s"}'


@pytest.mark.parametrize(
    ("response", "error", "accounts"),
    [
        ('{"status_code": 401, "request_id": null, "body": {}}', "null", True),
        ('{"status_code": 403, "request_id": null, "body": "<html>"}', "null", True),
        ('{"status_code": 429, "request_id": null, "body": {"error": {"type": "quota_exhausted"}}}', "null", True),
        ('{"status_code": 412, "request_id": null, "body": {"error": {"type": "quota_exhausted"}}}', "null", True),
        ('{"status_code": 429, "request_id": null, "body": {"error": {"type": "rate_limited"}}}', "null", False),
        ('{"status_code": 400, "request_id": null, "body": {"error": "x"}}', "null", False),
        ('{"status_code": 400, "request_id": null, "body": [1]}', "null", False),
        ('{"status_code": 200, "request_id": null, "body": {"error": {"type": "auth"}}}', "null", False),
        ("null", '{"code": "auth", "message": "no key"}', True),
        ("null", '{"code": "connection", "message": "reset"}', False),
    ],
)
def test_which_lines_of_out_failed_for_the_account(response: str, error: str, accounts: bool) -> None:
    """By their status, or by what we call it ourselves."""
    line = f'{{"id": "batch_req_1", "custom_id": "a", "response": {response}, "error": {error}}}\n'
    assert read_out(line.encode()).accounts is accounts


def test_out_is_put_in_place_of_itself_without_them(tmp_path: Path) -> None:
    """Whole or not at all, through a link, with its mode; nobody else writes it meanwhile."""
    kept = '{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200}, "error": null}\n'
    owed = '{"id": "batch_req_2", "custom_id": "b", "response": {"status_code": 401}, "error": null}\n'
    real, out = tmp_path / "real.jsonl", tmp_path / "out.jsonl"
    real.write_text(owed + kept + owed.replace('"b"', '"c"') + '{"id": "bat')
    real.chmod(0o640)
    out.symlink_to(real)
    with Journal(out) as journal:
        assert real.read_text() == kept
        assert out.is_symlink()
        assert real.stat().st_mode & 0o777 == 0o640
        assert journal.taken_up == {"b", "c"}
        assert (journal.has("a", "1"), journal.has("b", "2")) == (True, False)
        assert journal.kind("a", "1") == ANSWER
        with pytest.raises(OutFailed, match="another run"), Journal(out):
            pass
        journal.write([("b", "2", b"again\n", End.ANSWERED)])
        assert real.read_text() == kept + "again\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "real.jsonl"]
