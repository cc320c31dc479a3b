"""Plain Celery, as its documentation advises: rate_limit, autoretry_for, retry_backoff (with its jitter), 10 retries.

Imported by the workers; variables RACE_… of their environment configure it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
from batch import answered
from celery import Celery, Task

app = Celery("race", broker=os.environ["RACE_BROKER"])
app.conf.task_ignore_result = True
_client = httpx.Client(base_url=os.environ["RACE_BASE_URL"], headers={"authorization": "Bearer race"}, timeout=600.0)
_target = Path(os.environ["RACE_TARGET"])


class Refused(Exception):
    """The provider will never take this request."""


class Tell(Task):
    """Writes the end of each call to the file of answers."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        answered(_target, args[0], 200)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        status = exc.response.status_code if isinstance(exc, httpx.HTTPStatusError) else None
        answered(_target, args[0], 400 if isinstance(exc, Refused) else status, type(exc).__name__)


@app.task(
    base=Tell,
    rate_limit=os.environ["RACE_RATE_LIMIT"],
    autoretry_for=(httpx.HTTPError,),
    retry_backoff=True,
    max_retries=10,
)
def complete(custom_id: str, body: dict[str, Any]) -> None:
    """One call."""
    response = _client.post("/chat/completions", json=body)
    if response.status_code == 400:
        raise Refused(custom_id)
    response.raise_for_status()
