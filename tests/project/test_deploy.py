"""What docs/deploy has for Prometheus, Grafana and KEDA asks for metrics that there are; docs/metrics.md names all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace
from prometheus_client.metrics_core import Metric

from ratelimit_worker.contracts.budget import NOTHING_SPENT, Budget
from ratelimit_worker.policy.budget import standing
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports.metrics import PREFIX
from tests.builders import ROOT
from tests.unit.reports.test_metrics import NOW_S, Deployment, Source, cell, lane
from tests.unit.reports.test_reports_doctor import CLUSTER, LANE

DEPLOY = ROOT / "docs" / "deploy"


@pytest.fixture(scope="module")
def families() -> list[Metric]:
    """Those of a lane of which everything is known."""
    budget = replace(LANE.levels["requests"], learned_per_min=600.0)
    known = lane("gpt", levels={"requests": budget}, oldest_age_s=1.0, bars=(Bar(kind=BarKind.PACE),))
    money = standing("all", Budget(usd_per_day=5.0), NOTHING_SPENT, NOW_S)
    state = replace(CLUSTER, lanes=(known,), counters={"joined": 1}, modes={"NORMAL": 1}, budgets=(money,))
    return Deployment(state, Source(cell("gpt"))).scrape()[1]


def expressions(document: Any) -> list[str]:
    """What a dashboard or a file of rules asks Prometheus."""
    if isinstance(document, dict):
        named = [document[name] for name in ("expr", "query", "definition") if isinstance(document.get(name), str)]
        return named + [found for value in document.values() for found in expressions(value)]
    return [found for value in document for found in expressions(value)] if isinstance(document, list) else []


@pytest.mark.parametrize("name", ["alerts.yml", "keda.yaml", "grafana/ratelimit-worker.json"])
def test_every_metric_that_is_asked_for_is_there(name: str, families: list[Metric]) -> None:
    """Names and labels."""
    text = (DEPLOY / name).read_text("utf-8")
    asked = expressions(json.loads(text) if name.endswith(".json") else yaml.safe_load(text))
    assert asked
    samples = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    for expression in asked:
        named = re.findall(rf"({PREFIX}\w+)(?:\{{([^}}]*)\}})?", expression)
        assert named, expression
        for metric, matchers in named:
            assert metric in samples, expression
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= samples[metric], expression


#: Labels of which every value is told at each scrape, whether anything has happened or not.
ALWAYS_TOLD = ("what", "mode", "of", "kind")


@pytest.mark.parametrize("name", ["alerts.yml", "grafana/ratelimit-worker.json"])
def test_every_value_that_is_asked_for_is_there(name: str, families: list[Metric]) -> None:
    """As `what="hit"` would never match anything, and its panel stay empty."""
    text = (DEPLOY / name).read_text("utf-8")
    told: dict[tuple[str, str], set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        for label, value in sample.labels.items():
            told.setdefault((sample.name, label), set()).add(value)
    found = 0
    for expression in expressions(json.loads(text) if name.endswith(".json") else yaml.safe_load(text)):
        for metric, matchers in re.findall(rf"({PREFIX}\w+)\{{([^}}]*)\}}", expression):
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                if label in ALWAYS_TOLD:
                    assert set(values.split("|")) <= told[metric, label], expression
                    found += 1
    assert found


def test_the_dashboard_shows_what_reuse_saves_and_what_is_left_of_budgets() -> None:
    """Hits, joined, money, budgets: each has a panel."""
    board = json.loads((DEPLOY / "grafana" / "ratelimit-worker.json").read_text("utf-8"))
    asked = "\n".join(expressions(board["panels"]))
    for metric in ("reuse_total", "saved_by_answers_usd_total", "budget_spent_usd", "budget_limit_usd"):
        assert PREFIX + metric in asked


def test_the_reference_names_every_metric(families: list[Metric]) -> None:
    """docs/metrics.md has each family with its labels, and none that is gone."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    there = {}
    for family in families:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        there[family.name + ("_total" if family.type == "counter" else "")] = ", ".join(sorted(labels)) or "-"
    assert told == there


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Its panels do not lie on each other, and have numbers of their own."""
    board = json.loads((DEPLOY / "grafana" / "ratelimit-worker.json").read_text("utf-8"))
    cells = [
        (x, y)
        for panel in board["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_compose_brings_prometheus_and_grafana_where_they_are_asked_for() -> None:
    """A profile of their own; every file that they mount is there."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    for name in ("metrics", "prometheus", "grafana"):
        assert services[name]["profiles"] == ["observability"]
        mounts = [mount for mount in services[name].get("volumes", []) if mount.startswith("./")]
        assert all(Path(ROOT / mount.split(":")[0]).is_file() for mount in mounts)
        assert all(port.startswith("127.0.0.1:") for port in services[name].get("ports", []))
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["metrics:9464"]


def _documents(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return [found for found in yaml.safe_load_all((DEPLOY / name).read_text("utf-8")) if found]


def test_what_scales_and_what_is_scaled_know_each_other() -> None:
    """KEDA's object names the workers' Deployment, asks for a part of its slots, and something serves the metrics."""
    (scaled,) = _documents("keda.yaml")
    pods = {
        found["metadata"]["name"]: found["spec"]["template"]["spec"]["containers"][0]
        for found in _documents("kubernetes.yaml")
        if found["kind"] == "Deployment"
    }
    workers = pods[scaled["spec"]["scaleTargetRef"]["name"]]["args"]
    (trigger,) = scaled["spec"]["triggers"]
    assert 0 < int(trigger["metadata"]["threshold"]) < int(workers[workers.index("-c") + 1])
    assert trigger["metadata"]["ignoreNullValues"] == "false", "where nothing is told, nobody may be stopped"
    metrics = pods["ratelimit-metrics"]
    assert metrics["args"][:2] == ["ratelimit-worker", "metrics"]
    assert metrics["args"][-1] == str(metrics["ports"][0]["containerPort"])


UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit_and_leaves_a_wrong_setting_alone(unit: Path, tmp_path: Path) -> None:
    """It is started again after all but 78; systemd itself knows each line, where it is installed."""
    text = unit.read_text("utf-8")
    assert "\nRestart=always\n" in text
    assert "\nRestartPreventExitStatus=78\n" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit's lines are not judged by systemd")
    there = tmp_path / unit.name
    # Judged here without the folder of a deployment.
    there.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", there], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
