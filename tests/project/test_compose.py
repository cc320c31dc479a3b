"""docker-compose.yml: what the promises rest on stands in it, and a compose binary takes it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from ratelimit_worker.config import read_settings
from tests.builders import ROOT

FILE = ROOT / "docker-compose.yml"
NEEDED = "set POSTGRES_PASSWORD in .env"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services, as YAML says them."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))["services"]
    return found


def test_redis_keeps_what_waits(services: dict[str, Any]) -> None:
    """Written to disk, never evicted, on a volume, and out of reach from outside."""
    redis = services["redis"]
    command = redis["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert redis["volumes"] == ["redis:/data"]
    assert "ports" not in redis
    assert "ports" not in services["postgres"]
    assert services["postgres"]["image"].startswith("postgres:")
    assert services["postgres"]["volumes"]


def test_workers_can_be_scaled(services: dict[str, Any]) -> None:
    """No name and no port of the host, which one container alone could have; time to finish what runs."""
    worker = services["worker"]
    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert int(worker["stop_grace_period"].removesuffix("s")) > 30, "longer than worker_soft_shutdown_timeout"
    assert {name: rule["condition"] for name, rule in worker["depends_on"].items()} == {
        "redis": "service_healthy",
        "postgres": "service_healthy",
    }
    assert all("healthcheck" in services[name] for name in worker["depends_on"])


def test_flower_is_reached_from_this_machine_alone(services: dict[str, Any]) -> None:
    """On the same broker and database as the workers."""
    flower = services["flower"]
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])
    assert flower["command"][:4] == ["ratelimit-worker", "flower", "-A", "tasks"]
    assert services["worker"]["environment"].items() <= flower["environment"].items()


def test_what_runs_our_image_is_watched_and_locked(services: dict[str, Any]) -> None:
    """Health checks, a restart policy, nothing to write but state and temporary files, no privileges."""
    for name in ("worker", "flower"):
        service = services[name]
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
    assert "ratelimit-worker health" in services["worker"]["healthcheck"]["test"][1]


def test_the_image_has_what_runs_and_no_more() -> None:
    """Extras of the project alone, at the versions of the lock; what is written goes to a volume."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    assert "PIP_CONSTRAINT=/src/requirements.lock" in text
    assert "-r " not in text
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"flower", "postgres"} <= set(extras.split(",")) <= set(known) - {"embedded"}
    assert 'VOLUME ["/home/worker/state"]' in text


def test_the_settings_are_settings(services: dict[str, Any]) -> None:
    """Every name is known, and without an .env file nothing but the password is missing."""
    values = {name: value for name, value in services["flower"]["environment"].items() if not value.startswith("${")}
    settings = read_settings({**values, "MAISD_DATABASE_URL": "postgresql://u:p@postgres/r"})
    assert settings.redis_url == "redis://redis:6379/0"
    asked = [name for name in services["flower"]["environment"] if name.startswith("MAISD_")]
    read_settings({name: values.get(name, "") for name in asked if name != "MAISD_DATABASE_URL"})
    assert NEEDED in services["worker"]["environment"]["MAISD_DATABASE_URL"]


def compose() -> list[str] | None:
    """The compose command of this machine, if it has one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and "ompose" in done.stdout:
                return command
    return None


@pytest.mark.parametrize(("password", "code"), [("secret", 0), ("", 1)])
def test_a_compose_binary_takes_it(password: str, code: int) -> None:
    """`config -q` says nothing, but for a password that is not set."""
    command = compose()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is on PATH")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("POSTGRES_", "COMPOSE_"))}
    done = subprocess.run(
        [*command, "-f", str(FILE), "config", "-q"],
        env={**environ, "POSTGRES_PASSWORD": password},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert bool(done.returncode) == bool(code), done.stderr
    assert (NEEDED in done.stderr) == bool(code)
