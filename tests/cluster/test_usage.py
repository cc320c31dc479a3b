"""The lines that a team writes, as the plan of the product has them: each has its effect, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ratelimit_worker.simulate import Scenario, Simulator
from ratelimit_worker.stores.tracker import engine_for
from tests.builders import clean_environment
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]

#: What the team's own module has: its app, installed, and a task.
MODULE = """
import os
from celery import Celery
import ratelimit_worker
from ratelimit_worker import llm_task, optimize_api_call, make_optimized_llm_call, get_advanced_rate_limiter
from ratelimit_worker.builtin import chat_completion

your_celery_app = Celery("yours", broker=os.environ["MAISD_REDIS_URL"])
ratelimit_worker.install(your_celery_app)

@llm_task(lane="openai:gpt-4o", context="code_generation", tags=["codegen"], cache_ttl=3600)
def generate_code(prompt: str, temperature: float = 0.1) -> str:
    with open(os.environ["USAGE_LOG"], "a") as log:
        log.write("asked\\n")
    return f"code for {prompt} at {temperature}"

class Analyst:
    @optimize_api_call(
        func_name="brd_analysis", context="business_requirements", context_tags=["analysis"], cache_enabled=True
    )
    def analyze_brd(self, brd):
        return brd.upper()

class llm:
    @staticmethod
    def invoke(prompt):
        return f"answer to {prompt}"
"""

#: What an agent of theirs does.
AGENT = """
import asyncio, json
from usage import *

r = generate_code.delay("a parser")
first = r.get(timeout=120)

async def later():
    return await generate_code.delay("a lexer", temperature=0.5)

said = {"first": first, "awaited": asyncio.run(later()), "again": generate_code.delay("a parser").get(timeout=120)}
chat = chat_completion.delay(model="gpt-4o", messages=[{"role": "user", "content": "hello"}], max_tokens=20)
said["chat"] = chat.get(timeout=120)["object"]
said["brd"] = Analyst().analyze_brd("brd")
prompt = "what?"
said["invoke"] = make_optimized_llm_call(
    func=llm.invoke, func_name="llm_invoke", args=(prompt,), kwargs={}, context="general"
)
limiter = get_advanced_rate_limiter()
said["enabled"] = limiter.is_enabled()
said["limited"] = limiter.make_rate_limited_call(len, "count", ("four",), lane="openai:gpt-4o")
print(json.dumps(said))
"""

#: What somebody does who looks after it.
KEEPER = """
import json
from usage import *

limiter = get_advanced_rate_limiter()
said = {"calls": limiter.get_comprehensive_stats()["1h"]["total"]["calls"]}
said["exported"] = limiter.export_analytics()["total"]["calls"]
said["other context"] = limiter.invalidate_cache("ctx")
said["its context"] = limiter.invalidate_cache("code_generation")
said["all"] = limiter.invalidate_cache()
said["cleanup"] = limiter.cleanup()
said["modes"] = [str(change.to_mode) for change in limiter.set_mode("emergency", lane="openai:gpt-4o")]
print(json.dumps(said))
"""


class Team:
    """A folder with the team's module, and a worker of its app."""

    def __init__(self, made: Fleet, folder: Path) -> None:
        self.fleet, self.folder = made, folder
        (folder / "usage.py").write_text(MODULE)
        self.env = {**made.env, "USAGE_LOG": str(folder / "asked")}

    def run(self, code: str) -> dict[str, Any]:
        """What a program of theirs prints."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.folder,
            env=self.environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def environ(self) -> dict[str, str]:
        """With the folder on the path."""
        ours = clean_environment(**self.env)
        return {**ours, "PYTHONPATH": f"{self.folder}:{ours['PYTHONPATH']}"}

    def tasks(self) -> list[tuple[str, str, str, str]]:
        """(task, lane, context, outcome) of each recorded attempt."""
        engine = engine_for(f"sqlite:///{self.fleet.folder}/state/tracking.sqlite3")
        with engine.connect() as connection:
            found = connection.execute(text("SELECT task, lane, context, outcome FROM attempts ORDER BY started_at"))
            return [tuple(row) for row in found]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """With a provider, a broker and a worker."""
    folder = tmp_path_factory.mktemp("team")
    with Simulator(Scenario(latency="0.01")) as provider, fleet(OPENAI_BASE_URL=provider.base_url) as made:
        team = Team(made, folder)
        worker = Worker("yours", folder, team.environ(), ("-P", "threads", "-c", "4"), app="usage")
        made.workers.append(worker)
        worker.wait_ready()
        yield team


def test_the_lines_of_an_agent(team: Team) -> None:
    """`.delay()`, `.get()`, `await`, a built-in call, a decorated method, a call in process: each gives its answer."""
    said = team.run(AGENT)
    assert said == {
        "first": "code for a parser at 0.1",
        "awaited": "code for a lexer at 0.5",
        "again": "code for a parser at 0.1",
        "chat": "chat.completion",
        "brd": "BRD",
        "invoke": "answer to what?",
        "enabled": True,
        "limited": 4,
    }
    assert (team.folder / "asked").read_text() == "asked\n" * 2, "the same was asked once"
    wait_for(lambda: len(team.tasks()) == 6, what="every attempt is recorded")
    assert sorted(team.tasks()) == [
        ("brd_analysis", "default", "business_requirements", "answered"),
        ("count", "openai:gpt-4o", "general", "answered"),
        ("llm_invoke", "default", "general", "answered"),
        ("ratelimit_worker.chat_completion", "openai:gpt-4o", "", "answered"),
        ("usage.generate_code", "openai:gpt-4o", "code_generation", "answered"),
        ("usage.generate_code", "openai:gpt-4o", "code_generation", "answered"),
    ]


def test_the_lines_of_a_keeper(team: Team) -> None:
    """Figures, report, cache, clean-up and mode by hand, from a program."""
    wait_for(lambda: len(team.tasks()) == 6, what="the agent has run")
    said = team.run(KEEPER)
    assert (said["calls"], said["exported"]) == (6, 6)
    assert (said["other context"], said["its context"]) == (0, 2)
    assert said["all"] >= 1, "the chat completion"
    assert said["cleanup"] == {"outcomes": 0, "abandoned_calls": 0}
    assert said["modes"] == ["EMERGENCY"]
    assert team.fleet.valkey.client.hget("rlw:lane:openai:gpt-4o", "mode") == b"EMERGENCY"
    assert not team.fleet.valkey.client.keys("rlw:cache:?*[0-9a-f][0-9a-f][0-9a-f][0-9a-f]*")
