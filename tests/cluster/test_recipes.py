"""docs/recipes.md: its files are written as they stand, its workers started as it says, and its promises tried."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker.simulate import Scenario, Simulator
from tests.builders import ROOT, clean_environment
from tests.fleet import Fleet, Worker, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]
RECIPES = (ROOT / "docs" / "recipes.md").read_text("utf-8")
LANE = "openai:gpt-4o-mini"


@dataclass(frozen=True)
class Scene:
    """A folder with a recipe's files, its workers, and the provider that they ask."""

    folder: Path
    env: dict[str, str]
    made: Fleet
    provider: Simulator

    def run(self, script: str) -> Any:
        """What a script of the app's own process prints last, as JSON."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.made.logs()
        return json.loads(done.stdout.splitlines()[-1])

    def asked(self) -> list[str]:
        """The requests that the provider has answered."""
        return [str(arrival.n) for arrival in self.provider.arrivals() if arrival.good]


def section(title: str) -> str:
    """What the document says under a heading."""
    return re.split(r"\n## ", RECIPES.split(f"\n## {title}\n")[1])[0]


@contextmanager
def recipe(title: str, folder: Path, **before: str) -> Iterator[Scene]:
    """A recipe with its workers running.

    Args:
        before: What stands in a file before what the recipe says of it, by its path with "__" for "/", without ".py".
    """
    files = {name.replace("__", "/") + ".py": text for name, text in before.items()}
    for path, text in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", section(title), re.DOTALL):
        files[path] = files.get(path, "") + text
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(textwrap.dedent(text))
    with Simulator(Scenario(rpm=6000)) as provider, fleet(OPENAI_BASE_URL=provider.base_url) as made:
        env = clean_environment(**made.env, CELERY_BROKER_URL=made.valkey.url, MAISD_LOG_CALLS="true")
        env.pop("MAISD_REDIS_URL")
        env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
        (console,) = re.findall(r"```console\n(.*?)```", section(title), re.DOTALL)
        for n, line in enumerate(console.splitlines()):
            celery, option, app, worker, *options = shlex.split(line)
            assert (celery, option, worker) == ("celery", "-A", "worker")
            made.workers.append(Worker(f"recipe{n}", folder, env, tuple(options), app))
        for one in made.workers:
            one.wait_ready()
        yield Scene(folder, env, made, provider)


SETTINGS = """
    import os

    SECRET_KEY = "of a test"
    INSTALLED_APPS = ["reviews"]
    ROOT_URLCONF = "shop.urls"
    ALLOWED_HOSTS = ["testserver"]
    USE_TZ = True
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["FLEET_FOLDER"] + "/shop.db",
                             "OPTIONS": {"timeout": 60, "transaction_mode": "IMMEDIATE"}}}
"""
URLS = """
    from django.urls import path

    from reviews import views

    urlpatterns = [path("reviews", views.create)]
"""
MODELS = """
    from django.db import models


    class Review(models.Model):
        text = models.TextField()
        mood = models.TextField(default="")
"""


def test_django(tmp_path: Path) -> None:
    """`shared_task` and `delay_on_commit`: sent when the row is there, not before, and not after a rollback."""
    files = {
        "shop__settings": textwrap.dedent(SETTINGS),
        "shop__urls": URLS,
        "reviews__models": MODELS,
        "reviews____init__": "",
    }
    with recipe("Django", tmp_path, **files) as scene:
        got = scene.run("""
            import json, os, time

            os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
            import django

            django.setup()
            from django.core.management import call_command
            from django.db import transaction
            from django.test import Client
            from celery.signals import before_task_publish
            from reviews.models import Review
            from reviews.tasks import count, rate

            call_command("migrate", run_syncdb=True, verbosity=0)
            published = []
            before_task_publish.connect(lambda sender, **_: published.append(sender), weak=False)
            try:
                with transaction.atomic():
                    rate.delay_on_commit(Review.objects.create(text="rolled back").pk)
                    count.delay_on_commit()
                    raise LookupError
            except LookupError:
                rolled_back = len(published)
            with transaction.atomic():
                first = Review.objects.create(text="Arrived late, but works.")
                rate.delay_on_commit(first.pk)
                count.delay_on_commit()
                uncommitted = len(published)
            committed = published[:]
            answers = [Client().post("/reviews", {"text": f"Nothing for me, number {n}."}) for n in range(5)]
            until = time.monotonic() + 200
            while Review.objects.exclude(mood="").count() < 6 and time.monotonic() < until:
                time.sleep(0.1)
            print(json.dumps({
                "rolled back": rolled_back,
                "uncommitted": uncommitted,
                "committed": committed,
                "status": sorted({answer.status_code for answer in answers}),
                "rated": Review.objects.exclude(mood="").count(),
                "counted": count.delay().get(timeout=100),
                "expires": rate.app.conf.result_expires,
            }))
        """)
        assert got == {
            "rolled back": 0,
            "uncommitted": 0,
            "committed": ["reviews.tasks.rate", "reviews.tasks.count"],
            "status": [202],
            "rated": 6,
            "counted": 6,
            "expires": 3600,
        }
        assert len(scene.asked()) == 6


def test_flask(tmp_path: Path) -> None:
    """Calls run in the app's context; one request sends, another looks."""
    with recipe("Flask", tmp_path) as scene:
        got = scene.run("""
            import json, time

            from web import create_app

            client = create_app().test_client()
            started = [client.post("/summaries", data={"text": f"text {n}"}) for n in range(5)]
            found, until = [], time.monotonic() + 200
            for answer in started:
                while True:
                    look = client.get("/summaries/" + answer.json["id"]).json
                    if look["state"] == "SUCCESS" or time.monotonic() > until:
                        break
                    time.sleep(0.05)
                found.append(look)
            print(json.dumps([[answer.status_code for answer in started], found]))
        """)
        assert got[0] == [202] * 5
        assert [one["state"] for one in got[1]] == ["SUCCESS"] * 5
        assert all(one["answer"].startswith("one sentence: ") for one in got[1])
        assert len(scene.asked()) == 5


def test_fastapi(tmp_path: Path) -> None:
    """200 requests await their calls at once; each gets its own answer, and the loop answers others meanwhile."""
    with recipe("FastAPI", tmp_path) as scene:
        got = scene.run("""
            import asyncio, json

            import httpx2
            from api import api

            async def main():
                here = httpx2.ASGITransport(app=api)
                client = httpx2.AsyncClient(transport=here, base_url="http://api", timeout=None)
                questions = [client.get("/answers", params={"question": str(n)}) for n in range(200)]
                waiting = [asyncio.ensure_future(question) for question in questions]
                health = (await client.get("/health")).json()
                early = sum(one.done() for one in waiting)
                answers = [one.json()["answer"] for one in await asyncio.gather(*waiting)]
                return [health, early, [answer.split(":")[0] for answer in answers]]

            print(json.dumps(asyncio.run(main())))
        """)
        health, early, answers = got
        assert health == {"state": "well"}
        assert early < 200
        assert answers == [str(n) for n in range(200)]
        assert len(scene.asked()) == 200


def test_own_class_routes_and_queues(tmp_path: Path) -> None:
    """Each call is taken by the worker of its queue, in its tenant, and all of them count in one lane."""
    with recipe("Your own task class, routes and queues", tmp_path) as scene:
        got = scene.run("""
            import json

            from celery import chord
            from desk import archive, log, reply

            sent = [task.delay(tenant, f"letter {task.name} {tenant}") for task in (reply, archive) for tenant in "ab"]
            found = [one.get(timeout=200)[:2] for one in sent]
            print(json.dumps([found, log.delay("c").get(timeout=100)]))
        """)
        assert got == [[["a", "people"], ["b", "people"], ["a", "night.archive"], ["b", "night.archive"]], "c"]
        status = json.loads(
            subprocess.run(
                [sys.executable, "-m", "ratelimit_worker", "status", "--format", "json"],
                env={**scene.env, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        assert [lane["lane"] for lane in status["lanes"]] == [LANE]
        assert len(scene.asked()) == 4
        people, night = (worker.log() for worker in scene.made.workers)
        assert (people.count("desk.reply["), people.count("desk.archive[")) >= (2, 0)
        assert "desk.archive[" not in people
        assert "desk.reply[" not in night
