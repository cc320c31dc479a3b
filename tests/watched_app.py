"""Tasks that ask a provider by a client of their own; a worker gets them with `-I tests.watched_app`."""

from __future__ import annotations

import os
from typing import Any

import httpx2 as httpx

from ratelimit_worker.app import install, llm_task
from tests.fleet_app import app

install(app, watch=True)


def ask(name: str, most: int = 40) -> httpx.Response:
    """One request for a completion."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": name}], "max_tokens": most}
    return httpx.post(f"{os.environ['PROVIDER']}/chat/completions", json=body, timeout=30)


@llm_task(app=app, shared=False, cache=False, lane="openai:gpt-4o")
def completion(name: str) -> int:
    """The tokens that came; raises what the client raises."""
    return int(ask(name).raise_for_status().json()["usage"]["completion_tokens"])


@llm_task(app=app, shared=False, cache=False)
def careless(name: str) -> Any:
    """Whatever came, a refusal too."""
    return ask(name).json()
