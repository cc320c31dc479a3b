"""What a process loads is known: each package costs memory and time in every worker and every producer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.builders import ROOT

STOCK = """
import celery, celery.app, celery.apps.worker, celery.worker, celery.bin.celery
import kombu.transport.redis, celery.backends.redis, celery.concurrency.thread
"""
APP = "import ratelimit_worker.app"
#: As a worker of an installed app does: an app, its consumer step, and its duties, of which it has none yet.
WORKER = """
from celery import Celery
from ratelimit_worker import install, read_settings
environment = {"MAISD_REDIS_URL": "redis://127.0.0.1:1/0"}
app = install(Celery("imports", broker="redis://127.0.0.1:1/0"), read_settings(environment))
import ratelimit_worker.worker.presence
from ratelimit_worker.wiring import services
from ratelimit_worker.worker.duties import Clean, Recording, Rules, Sample
record, *_ = Recording(services(), "w"), Clean(services(), "w"), Sample(services(), "w"), Rules(services(), "w")
"""
RECORDER = f"{WORKER}record.recorder()\n"
TOLD = """
import json, sys
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names)))
"""
OWN = "ratelimit_worker"


def packages(code: str) -> set[str]:
    """What is loaded beside the standard library when a new process has run this."""
    made = subprocess.run(
        [sys.executable, "-c", code + TOLD], capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    )
    loaded: list[str] = json.loads(made.stdout.splitlines()[-1])
    return {name for name in loaded if not name.startswith(("_", "cython"))}


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (APP, {"msgspec"}),
        (WORKER, {"msgspec"}),
        (RECORDER, {"msgspec", "sqlalchemy"}),
    ],
    ids=["an app that sends", "a worker of an installed app", "the worker that records"],
)
def test_what_is_loaded_beside_plain_celery(code: str, more: set[str]) -> None:
    """No HTTP client where no task asks by it, no Alembic, no test tools; who adds to this says here why."""
    # of ours Celery's own command loads a part, by an entry point
    assert packages(STOCK + code) - packages(STOCK) - {OWN} == more


def test_a_producer_loads_nothing_of_what_others_do() -> None:
    """Modules of ours that only some processes need: a worker's duties, in-process calls, reports, SDKs' seams."""
    code = f"""
from celery import Celery
{APP}
{OWN}.app.install(Celery("imports", broker="redis://127.0.0.1:1/0"))
import sys, json
print(json.dumps(sorted(name for name in sys.modules if name.startswith('{OWN}.'))))
"""
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    )
    loaded = json.loads(made.stdout)
    apart = (
        "inprocess",
        "reports",
        "cli",
        "simulate",
        "flower",
        "providers.http",
        "providers.seams",
        "builtin",
        "worker.presence",
        "worker.duties",
        "flow.duty",
        "flow.lane.decide",
        "flow.lane.tune",
        "policy.alert",
        "policy.trend",
    )
    assert [name for name in loaded if name.removeprefix(f"{OWN}.").startswith(apart)] == []
