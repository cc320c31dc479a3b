"""`run` with files as people have them, to the end: a real provider process, real Redis and real workers."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker.simulate import Entry, Fault, Scenario, Simulator
from tests.faces.test_run import Runner, ask

pytestmark = [pytest.mark.server, pytest.mark.worker]


@pytest.fixture
def provider() -> Iterator[Simulator]:
    """Fast; a line with "poison" is refused."""
    timeline = (Entry(fault=Fault.BAD_REQUEST, match="poison"),)
    with Simulator(Scenario(rpm=60_000, latency="0.05", timeline=timeline)) as simulator:
        yield simulator


def same(custom_id: object, question: str) -> dict[str, Any]:
    """A line whose body says nothing of itself."""
    body = {"model": "gpt-4o-mini", "max_tokens": 20, "messages": [{"role": "user", "content": question}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def summary(run: Runner) -> dict[str, Any]:
    """`OUT.summary.json`."""
    read: dict[str, Any] = json.loads(run.out.with_name("out.jsonl.summary.json").read_text())
    return read


def test_packed_stdin_to_stdout(provider: Simulator, tmp_path: Path) -> None:
    """`zcat`, `jq` and the like go on both sides; words are on stderr alone, and nothing is left in the folder."""
    run = Runner(tmp_path, provider.base_url)
    lines = "".join(json.dumps(ask(f"q-{number}")) + "\n" for number in range(30))
    command = ["-" if word in (str(run.source), str(run.out)) else word for word in run.command]
    done = subprocess.run(
        command, env=run.environment, input=gzip.compress(lines.encode()), capture_output=True, check=False, timeout=600
    )
    said = done.stderr.decode()
    assert done.returncode == 0, said
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["custom_id"] for line in out) == sorted(f"q-{number}" for number in range(30))
    assert {line["response"]["status_code"] for line in out} == {200}
    assert "30 of 30 lines: 30 answered, 0 refused, 0 failed" in said
    assert len(provider.arrivals()) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    assert list((run.state / "copies").iterdir()) == []
    assert run.left_over() == []


def test_identical_lines_are_asked_once(provider: Simulator, tmp_path: Path) -> None:
    """With --dedup: each has its line, whatever its id looks like; a later start takes answers out of OUT."""
    run = Runner(tmp_path, provider.base_url)
    lines = [same(number, f"question {number % 4}") for number in range(60)]
    lines[5]["url"] = f"{provider.base_url}/chat/completions"
    lines.append(same("poisoned", "poison"))
    lines.append(same("poisoned too", "poison"))
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    writer = threading.Thread(target=fifo.write_text, args=(text,))
    writer.start()
    run.command[run.command.index(str(run.source))] = str(fifo)
    done = run("--dedup", timeout_s=600)
    writer.join()
    assert done.returncode == 0, done.stderr
    asked = len(provider.arrivals())
    # line 5 has another path below the same address, and so asks for itself
    assert asked == 4 + 1 + 1
    named = Counter(line["custom_id"] for line in run.answers())
    assert named == Counter([*map(str, range(60)), "poisoned", "poisoned too"])
    assert len({line["id"] for line in run.answers()}) == 62
    told = summary(run)
    assert told["this_start"]["joined"] + told["this_start"]["cached"] == 56
    assert told["done"]["refused"] == 2
    assert told["exit_code"] == 0

    run.command[run.command.index(str(fifo))] = str(run.source)
    run.write([*lines, same("new", "question 3"), same("newest", "question 9")])
    done = run("--dedup", timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert len(provider.arrivals()) == asked + 1
    told = summary(run)
    assert told["this_start"].pop("cost_nanousd") > 0
    assert told["this_start"] | {"seconds": 0} == {
        "lines": 2, "requests": 1, "rate_limited": 0, "retries": 0, "joined": 0, "cached": 1, "seconds": 0,
        "models_without_a_price": [], "wasted_nanousd": 0, "estimated_nanousd": 0, "cached_saving_nanousd": 0,
    }  # fmt: skip
    assert (told["before"]["lines"], told["done"]["lines"]) == (62, 64)
    assert told["done"]["tokens"]["input"] > told["before"]["tokens"]["input"] > 0
    by_id = {line["custom_id"]: line["response"]["body"] for line in run.answers()}
    assert by_id["new"] == by_id["3"]
    assert "identical lines: 0 joined, 1 cached; 62 lines were done before this start" in done.stderr


def test_a_run_in_which_all_are_refused_alike_has_failed(provider: Simulator, tmp_path: Path) -> None:
    """A wrong model, a wrong body: nobody wants exit code 0 for that; one answer among them, and each is its own."""
    run = Runner(tmp_path, provider.base_url)
    lines = [ask(f"q-{number}", "poison") for number in range(12)]
    run.write(lines)
    done = run(timeout_s=600)
    assert done.returncode == 1, done.stderr
    assert "all 12 lines were refused in the same way: HTTP 400" in done.stderr
    assert summary(run)["ended_by"].startswith("all 12 lines were refused in the same way")
    again = run(timeout_s=600)
    assert again.returncode == 1
    assert len(provider.arrivals()) == 12
    run.write([*lines, ask("good")])
    done = run(timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert (
        summary(run)["done"]["refused_by"] == {"HTTP 400 invalid_request_error": 12}
        or summary(run)["done"]["refused"] == 12
    )
