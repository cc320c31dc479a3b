"""Alerts as people see them: the command, one line of `status` and `health`, metrics, and Flower's page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import redis
from click.testing import CliRunner, Result
from msgspec.structs import replace

from ratelimit_worker.cli import main
from ratelimit_worker.contracts.alert import Alert, Kind
from ratelimit_worker.person import this_person
from ratelimit_worker.policy.alert_states import Symptom, looked
from ratelimit_worker.reports import alerts as words
from ratelimit_worker.stores.alert_states import AlertStates
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.tracker import Tracker
from tests.faces.test_flower import LOGIN, flower

T0 = 1_790_000_000.0
NO_WORKER = Symptom(kind=Kind.NO_WORKER, lane="gpt", cause="3 calls wait on q and no worker takes them", after_s=0.0)
LATENCY = Symptom(kind=Kind.LATENCY, lane="gpt", cause="answers take 3 s, and took 1 s before", after_s=0.0)


def alert(number: int = 1, **more: object) -> Alert:
    """An alert that opened at T0."""
    made = Alert(id=f"id{number}", kind=Kind.HALT, lane="gpt", since_s=T0, seen_s=T0, cause="no key", opened_s=T0)
    return replace(made, **more)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_line_names_five_and_counts_the_others() -> None:
    """With what it is about and how long; whatever a name holds, it stays one line."""
    assert words.line([], T0) == ""
    odd = [alert(n, lane=f"l{n}\n") for n in range(7)]
    said = words.line(odd, T0 + 90)
    assert said.startswith("alerts: halt l0\\n (for 90.0 s); halt l1")
    assert said.endswith("halt l4\\n (for 90.0 s); 2 more")
    assert "\n" not in said
    assert words.line([alert(acked_by="ana", lane="*")], T0) == "alerts: halt all lanes (for 0 ms, in hand)"
    assert words.topic(alert(lane="", about="t.f")) == "t.f"
    assert words.topic(alert(lane="")) == "deployment"


def test_what_is_open_says_redis_and_what_is_past_the_database() -> None:
    """One row each, the newest first."""
    past = [alert(1), alert(2, opened_s=T0 + 5, closed_s=T0 + 65, ended="NORMAL by ana")]
    found = words.whole([alert(1, acked_by="ana")], past)
    assert [(one.id, one.acked_by) for one in found] == [("id2", ""), ("id1", "ana")]
    text = words.alerts_table(found, T0 + 60)
    assert "closed after 60.0 s" in text
    assert "no key; ended: NORMAL by ana" in text
    assert "open for 60.0 s, in hand: ana" in text


# ── a deployment ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Deployment:
    """A Redis and a tracking database, and commands that look at them."""

    def __init__(self, client: redis.Redis, url: str, folder: Path) -> None:
        self.states = AlertStates(client)
        self.tracker = Tracker(engine_for(f"sqlite:///{folder}/t.db"))
        self.env = {
            "MAISD_REDIS_URL": url,
            "MAISD_DATABASE_URL": f"sqlite:///{folder}/t.db",
            "MAISD_STATE_DIR": str(folder),
        }

    def run(self, *arguments: str, **env: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env={**self.env, **env})

    def open(self, symptoms: list[Symptom]) -> None:
        """What the rules' worker does when it sees these."""
        book = self.states.read()
        assert self.states.write(book, looked({}, symptoms, (), book.now_s))

    def keep(self) -> None:
        """What the rules' worker does now and then."""
        rows = self.states.records()
        self.tracker.record_alerts(rows)
        self.states.recorded(rows)


@pytest.fixture
def deployment(redis_client: redis.Redis, redis_server: str, tmp_path: Path) -> Deployment:
    return Deployment(redis_client, f"unix://{redis_server}", tmp_path)


@pytest.mark.server
def test_the_command_shows_acknowledges_and_silences(deployment: Deployment) -> None:
    """What is open now from Redis, what was from the database; `--json` for programs."""
    none = deployment.run("alerts")
    assert (none.exit_code, none.stdout) == (0, "no alert\n")
    assert "no worker has looked yet" in none.stderr
    deployment.open([NO_WORKER, LATENCY])
    deployment.tracker.record_alerts([alert(1, closed_s=T0 + 5)])
    deployment.keep()

    rows = json.loads(deployment.run("alerts", "--json").stdout)["alerts"]
    assert {(one["kind"], one["severity"], one["lane"], one["open"]) for one in rows} == {
        ("no_worker", "critical", "gpt", True),
        ("latency", "warning", "gpt", True),
    }
    kinds = [one["kind"] for one in json.loads(deployment.run("alerts", "list", "--json").stdout)["alerts"]]
    assert sorted(kinds) == ["latency", "no_worker"]
    table = deployment.run("alerts", "list", "--all", "--since", "1000d", "--kind", "halt").stdout
    assert "id1" in table
    assert "no_worker" not in table
    assert "id1" not in deployment.run("alerts", "list", "--all", "--since", "1h").stdout

    found = next(one for one in rows if one["kind"] == "no_worker")
    acked = deployment.run("alerts", "ack", found["id"][:6])
    assert acked.stdout == f"{found['id']} (no_worker, gpt) is in hand: {this_person()}\n"
    assert deployment.run("alerts", "ack", "nobody").exit_code == 2

    assert deployment.run("alerts", "silence", "latency").exit_code == 2
    assert "until 20" in deployment.run("alerts", "silence", "latency", "--lane", "gpt", "--for", "2h").stdout
    (held,) = deployment.states.silences()
    assert (held.kind, held.lane, held.who) == (Kind.LATENCY, "gpt", this_person())
    assert "silenced until" in deployment.run("alerts").stdout
    assert "told again" in deployment.run("alerts", "silence", "latency", "--lane", "gpt", "--end").stdout
    assert deployment.states.silences() == []


@pytest.mark.server
def test_status_names_them_in_one_line_and_as_json(deployment: Deployment) -> None:
    """And metrics count them by kind, none left out."""
    deployment.open([NO_WORKER, LATENCY])
    (said,) = [line for line in deployment.run("status").stdout.splitlines() if line.startswith("alerts: ")]
    assert "no_worker gpt" in said
    assert "latency gpt" in said
    state = json.loads(deployment.run("status", "--format", "json").stdout)
    assert {one["kind"] for one in state["alerts"]} == {"no_worker", "latency"}


@pytest.mark.server
def test_without_redis_past_ones_are_shown_all_the_same(deployment: Deployment, tmp_path: Path) -> None:
    """With a note; what is open now is not guessed."""
    deployment.tracker.record_alerts([alert(1, closed_s=T0 + 5)])
    away = f"unix://{tmp_path}/nobody"
    found = deployment.run("alerts", "list", "--all", "--since", "1000d", MAISD_REDIS_URL=away)
    assert found.exit_code == 0
    assert "id1" in found.stdout
    assert "what is open now is unknown" in found.stderr
    assert deployment.run("alerts", MAISD_REDIS_URL=away).exit_code == 69


@pytest.fixture
def page(deployment: Deployment, tmp_path: Path) -> Iterator[httpx.Client]:
    with (
        flower(deployment.env, tmp_path / "flower.log", "--basic-auth", ":".join(LOGIN)) as address,
        httpx.Client(base_url=address, auth=LOGIN, timeout=120.0, trust_env=False) as client,
    ):
        yield client


@pytest.mark.server
@pytest.mark.worker
def test_the_page_shows_them_and_takes_them_in_hand(deployment: Deployment, page: httpx.Client) -> None:
    """What names hold is text; buttons need the token, and a login."""
    odd = Symptom(kind=Kind.HALT, lane='<script>alert("&")</script>', cause="no key", after_s=0.0)
    deployment.open([NO_WORKER, odd])
    deployment.tracker.record_alerts([alert(7, closed_s=T0 + 5, ended="NORMAL by ana")])
    shown = page.get("/rate-limit/alerts")
    assert shown.is_success
    assert 'data-kind="no_worker"' in shown.text
    assert 'data-alert="id7"' in shown.text
    assert "NORMAL by ana" in shown.text
    assert "<script>alert(" not in shown.text
    assert "/rate-limit/alerts" in page.get("/rate-limit").text

    (one,) = [found for found in deployment.states.read().open if found.kind is Kind.NO_WORKER]
    assert page.post("/rate-limit/alerts", data={"ack": one.id}).status_code == 403
    token = {"_xsrf": page.cookies.get("_xsrf", "")}
    assert page.post("/rate-limit/alerts", data={**token, "ack": one.id}).status_code == 303
    said = page.get("/rate-limit/alerts").text
    assert re.search(rf"Alert {one.id} is in hand: {LOGIN[0]}", said)
    assert {found.acked_by for found in deployment.states.read().open} == {"", LOGIN[0]}

    form = {**token, "kind": "latency", "for": "4h", "lane": "gpt"}
    assert page.post("/rate-limit/alerts", data=form).status_code == 303
    assert [(held.kind, held.lane) for held in deployment.states.silences()] == [(Kind.LATENCY, "gpt")]
    assert "silenced until" in page.get("/rate-limit/alerts").text
    assert page.post("/rate-limit/alerts", data={**form, "for": "end"}).status_code == 303
    assert deployment.states.silences() == []
    for wrong in ({"kind": "of-tomorrow"}, {"for": "2 years"}):
        assert page.post("/rate-limit/alerts", data={**form, **wrong}).status_code == 400
    assert page.post("/rate-limit/alerts", data={**token, "ack": "nobody"}).status_code == 400
    assert httpx.get(f"{page.base_url}/rate-limit/alerts", trust_env=False).status_code == 401
