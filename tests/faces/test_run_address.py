"""`run` with a base URL that leads nowhere: one line, and the file is not burned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker.batchfile import End, answer_line
from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.cli.run.address import Addresses, WrongAddress
from ratelimit_worker.errors import call_failed
from ratelimit_worker.simulate import Scenario, Simulator
from tests.faces.test_run import Runner, ask

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "body",
    [
        "<html>not found</html>",
        "",
        {"detail": "Not Found"},
        {"error": {"message": "Invalid URL (POST /v2/chat/completions)", "type": "invalid_request_error"}},
    ],
)
def test_a_path_that_is_not_there(body: Any) -> None:
    """Whatever says so: the line names path and base URL; once something else was heard of it, a 404 is a line's."""
    told = {"status_code": 404, "body": body}
    with pytest.raises(WrongAddress, match=r"nothing answers /v1/chat/completions below http://h/v1"):
        Addresses({"OPENAI_BASE_URL": "http://h/v1"}).hear(CHAT, told)
    with pytest.raises(WrongAddress, match="does it lack /v1"):
        Addresses({"OPENAI_BASE_URL": "http://h"}).hear("/chat/completions", told)
    with pytest.raises(WrongAddress, match=r"/v1/messages below https://api.anthropic.com"):
        Addresses({}).hear("/v1/messages", told)
    failure = Failure(category=Category.INVALID_REQUEST, cause="HTTP 404: does it lack /v1?", status=404)
    with pytest.raises(WrongAddress, match="does it lack /v1"):
        Addresses({}).hear("/chat/completions", None, call_failed(failure, 1))
    Addresses({}).hear(CHAT, None, TimeoutError())
    known = Addresses({})
    known.hear(CHAT, {"status_code": 400, "body": {}})
    known.hear(CHAT, told)
    with pytest.raises(WrongAddress):
        known.hear("/v1/embeddings", told)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}},
        {"error": {"message": "model: claude-x", "type": "not_found_error"}},
        {"object": "error", "message": "The model `x` does not exist.", "code": 404},
        {"error": "model 'x' not found, try pulling it first"},
        {"error": {"param": "model", "message": "no such"}},
    ],
)
def test_a_model_that_is_not_there(body: Any) -> None:
    """The API has answered: the path is right, and the next line may name another model."""
    known = Addresses({})
    known.hear(CHAT, {"status_code": 404, "body": body})
    known.hear(CHAT, {"status_code": 404, "body": "x"})


def test_a_404_within_a_good_answer() -> None:
    """A gateway is there, and passes on what another API said."""
    known, body = Addresses({}), {"error": {"code": 404, "message": "upstream said no"}}
    known.hear(CHAT, {"status_code": 404, "body": body, "within": 200})
    known.hear(CHAT, {"status_code": 404, "body": body})
    line, end = answer_line("a-b", "q-1", {"status_code": 404, "request_id": None, "body": body, "within": 200})
    assert end == End.REFUSED
    assert json.loads(line)["response"] == {"status_code": 404, "request_id": None, "body": body}


@pytest.fixture
def provider() -> Iterator[Simulator]:
    with Simulator(Scenario(rpm=6000, latency="0.02")) as simulator:
        yield simulator


@pytest.mark.server
@pytest.mark.worker
def test_a_run_that_leads_nowhere(provider: Simulator, tmp_path: Path) -> None:
    """Exit code 2 and one line; the same command with the right address answers every line, and none was written."""
    wrong = Runner(tmp_path, f"{provider.url}/gateway/v1")
    wrong.write([ask(f"q-{number}") for number in range(200)])
    done = wrong(timeout_s=120)
    assert done.returncode == 2, done.stderr
    assert (
        f"HTTP 404: nothing answers {CHAT} below {provider.url}/gateway/v1; is that the API's base URL?" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert wrong.answers() == []
    asked = len(provider.arrivals())
    assert asked < 100, "the file is not burned"
    assert wrong.left_over() == []
    right = Runner(tmp_path, provider.base_url)
    done = right(timeout_s=180)
    assert done.returncode == 0, done.stderr
    assert sorted(line["custom_id"] for line in right.answers()) == sorted(f"q-{number}" for number in range(200))
    assert {line["response"]["status_code"] for line in right.answers()} == {200}
    assert len(provider.arrivals()) - asked == 200
