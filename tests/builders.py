"""Ordinary values: what a test does not say of a call, an attempt or an environment is as here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ratelimit_worker.calls import Attempt, Outcome
from ratelimit_worker.contracts.call import Entry
from ratelimit_worker.contracts.plan import Shedding

ROOT = Path(__file__).parents[1]  #: of the repository


def message(ref: str, headers: str = "{}") -> bytes:
    """A message as the transport stores it."""
    return (
        '{"properties": {"delivery_tag": "@", "delivery_info": {"exchange": "", "redelivered": false}}, '
        f'"headers": {headers}, "body": "{ref}"}}'
    ).encode()


def entry(ref: str, lane: str = "gpt", queue: str = "q", **more: Any) -> Entry:
    """A call that anybody could have made. `sheds`: who hears that it is shed; "": it is not."""
    sheds = more.pop("sheds", "")
    more = {"message": message(ref), "body": b"jbody of " + ref.encode(), "deadline_in_s": 3600.0, **more}
    return Entry(
        lane=lane, queue=queue, ref=ref, publication=f"pub-{ref}", shedding=Shedding(sheds) if sheds else None, **more
    )


def attempt(
    call_id: str = "c",
    number: int = 1,
    outcome: Outcome = Outcome.ANSWERED,
    *,
    finished_at: float = 101.5,
    took_s: float = 1.5,
    **more: Any,
) -> Attempt:
    """An answered attempt of `took_s` seconds that ended at a Unix time; `more` are fields of `Attempt`."""
    values: dict[str, Any] = {"lane": "lane", "task": "task", "waited_s": 0.0, **more}
    return Attempt(
        call_id=call_id,
        number=number,
        outcome=outcome,
        started_at=finished_at - took_s,
        finished_at=finished_at,
        **values,
    )


def attempts(count: int) -> list[Attempt]:
    """As many calls of one attempt each."""
    return [attempt(f"c-{number}") for number in range(count)]


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what a deployment would set, so that a command brings its own cluster."""
    ours = (
        "MAISD_",
        "CELERY_",
        "FLOWER_",
        "OPENAI_",
        "ANTHROPIC_",
        "GOOGLE_",
        "GEMINI_",
        "DATABASE_URL",
        "RATE_LIMIT_DELAY",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}
