"""A function of a team's own that uses the openai SDK, and the built-in tasks. Imported by the workers and the caller.

RACE_WATCH in the environment: whether the app watches.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from openai import OpenAI

from ratelimit_worker import install, llm_task

app = Celery("watched", include=["ratelimit_worker.builtin"])
install(app, watch=os.environ.get("RACE_WATCH") == "yes")
MODEL = "gpt-4o"
client = OpenAI()


@llm_task(app=app, lane=f"openai:{MODEL}", cache=False)
def complete(custom_id: str, body: dict[str, Any]) -> str:
    """One completion, as a team would write it: with the SDK's defaults; returns only the text."""
    answer = client.chat.completions.create(**body, metadata={"custom_id": custom_id})
    return answer.choices[0].message.content or ""
