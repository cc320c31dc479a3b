"""docker-compose.yml: what the promises rest on stands in it, and a compose binary takes it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ratelimit_worker.config import read_settings
from tests.builders import ROOT
from tests.documents import blocks_of

FILE = ROOT / "docker-compose.yml"
DEPLOYMENT = ROOT / "docs" / "deployment.md"
DEV = ROOT / "docs" / "deploy" / "dev.env"
IMAGE = "ratelimit-worker:latest"
ALWAYS = {"redis", "worker", "flower"}
#: Profile → the services that it adds.
PROFILES = {
    "postgres": {"postgres"},
    "observability": {"metrics", "prometheus", "grafana"},
    "dev": {"provider"},
}


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
    assert {name: rule["condition"] for name, rule in worker["depends_on"].items()} == {"redis": "service_healthy"}


def test_profiles_add_services(services: dict[str, Any]) -> None:
    """What has no profile always runs, and the document names each profile; nothing waits for what may not be there."""
    assert {name for name, service in services.items() if "profiles" not in service} == ALWAYS
    for profile, added in PROFILES.items():
        assert {name for name, service in services.items() if profile in service.get("profiles", [])} == added
        assert f"| `{profile}` |" in DEPLOYMENT.read_text("utf-8")
    for name, service in services.items():
        for other, rule in dict(service.get("depends_on") or {}).items():
            assert rule["condition"] == "service_healthy"
            assert "healthcheck" in services[other]
            assert services[other].get("profiles", service.get("profiles")) == service.get("profiles"), (name, other)


def test_every_service_is_watched_and_started_again(services: dict[str, Any]) -> None:
    """With a check that may fail for as long as a start takes."""
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_what_is_recorded_is_in_one_place(services: dict[str, Any]) -> None:
    """A SQLite file is shared: each of our containers has the same volume where the image has its state."""
    ours = [name for name, service in services.items() if service["image"] == IMAGE and name != "provider"]
    assert set(ours) == {"worker", "flower", "metrics"}
    for name in ours:
        assert services[name]["volumes"] == ["state:/home/worker/state"]
        assert services[name]["environment"]["MAISD_DATABASE_URL"] == "${MAISD_DATABASE_URL:-}"


def test_the_image_is_built_once(services: dict[str, Any]) -> None:
    """Services that build it each give its name to an image of their own: the next `up` replaces what had another."""
    assert [name for name, service in services.items() if "build" in service] == ["worker"]
    assert services["worker"]["image"] == IMAGE


def test_health_checks_ask_where_it_listens(services: dict[str, Any]) -> None:
    """The port of a check in Python is the one of the command."""
    for name in ("flower", "metrics", "provider"):
        (port,) = re.findall(r"127\.0\.0\.1:(\d+)/", services[name]["healthcheck"]["test"][-1])
        command = services[name]["command"]
        assert command[command.index("--port") + 1] == port
        compile(services[name]["healthcheck"]["test"][-1], name, "exec")


def test_flower_is_reached_from_this_machine_alone(services: dict[str, Any]) -> None:
    """On the same broker and database as the workers."""
    flower = services["flower"]
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])
    assert flower["command"][:4] == ["ratelimit-worker", "flower", "-A", "tasks"]
    assert services["worker"]["environment"].items() <= flower["environment"].items()


def test_what_runs_our_image_is_watched_and_locked(services: dict[str, Any]) -> None:
    """Time to stop, nothing to write but state and temporary files, no privileges."""
    for name in ("worker", "flower", "metrics", "provider"):
        service = services[name]
        assert int(service["stop_grace_period"].removesuffix("s")) >= 15
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
    """Every name is known, and without an .env file none is missing."""
    values = {name: value for name, value in services["flower"]["environment"].items() if not value.startswith("${")}
    asked = [name for name in services["flower"]["environment"] if name.startswith("MAISD_")]
    settings = read_settings({name: values.get(name, "") for name in asked} | {"MAISD_STATE_DIR": "/home/worker/state"})
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.database_url.startswith("sqlite:////home/worker/state/")
    assert all(value.endswith(":-}") for value in services["flower"]["environment"].values() if value.startswith("${"))


def test_the_simulated_provider_is_where_dev_env_says(services: dict[str, Any]) -> None:
    """Its profile, name and port; and the workers are given each variable."""
    told = variables(DEV.read_text("utf-8"))
    assert PROFILES[told["COMPOSE_PROFILES"]] == {"provider"}
    command = services["provider"]["command"]
    assert told["OPENAI_BASE_URL"] == f"http://provider:{command[command.index('--port') + 1]}/v1"
    given = {name for name in told if not name.startswith("COMPOSE_")}
    assert all(services["flower"]["environment"][name] == f"${{{name}:-}}" for name in given)
    assert services["provider"]["environment"] == {}, "no key of a real provider"


@pytest.mark.parametrize("name", [".gitignore", ".dockerignore"])
def test_passwords_and_keys_go_nowhere(name: str) -> None:
    """The .env file is neither in the repository nor sent to what builds the image."""
    assert ".env" in {line.removeprefix("/") for line in (ROOT / name).read_text("utf-8").splitlines()}


def variables(text: str) -> dict[str, str]:
    """The lines of an .env file."""
    found = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in found}


def test_the_documents_env_file_fits_the_profiles(services: dict[str, Any], tmp_path: Path) -> None:
    """Its lines are typed, with a `docker` that does nothing: one password in both places, profiles that there are."""
    (block,) = (one for one in blocks_of(DEPLOYMENT, "sh") if "COMPOSE_PROFILES" in one.text)
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@" > typed\n')
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", block.text], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True, timeout=60)
    assert (tmp_path / "typed").read_text().startswith("compose up")
    told = variables((tmp_path / ".env").read_text())
    assert set(told["COMPOSE_PROFILES"].split(",")) <= set(PROFILES)
    postgres = services["postgres"]["environment"]
    assert postgres["POSTGRES_PASSWORD"] == "${POSTGRES_PASSWORD:-}"
    where = urlsplit(read_settings({"MAISD_DATABASE_URL": told["MAISD_DATABASE_URL"]}).database_url)
    assert (where.hostname, where.path) == ("postgres", f"/{postgres['POSTGRES_DB']}")
    assert (where.username, where.password) == (postgres["POSTGRES_USER"], told["POSTGRES_PASSWORD"])
    assert len(told["POSTGRES_PASSWORD"]) == 32
    if (command := compose()) is not None:
        done = composed(command, "--env-file", str(tmp_path / ".env"), "config", "--services")
        assert set(done.stdout.split()) >= ALWAYS | PROFILES["postgres"] | PROFILES["observability"], done.stderr


def compose() -> list[str] | None:
    """The compose command of this machine, if it has one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and "ompose" in done.stdout:
                return command
    return None


def composed(command: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """What compose says of the file; what this shell has set for it does not count."""
    ours = ("POSTGRES_", "COMPOSE_", "MAISD_", "OPENAI_", "FLOWER_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [*command, "-f", str(FILE), *words], env=environ, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("profiles", [(), ("postgres",), ("dev", "observability")], ids="+".join)
def test_a_compose_binary_takes_it(profiles: tuple[str, ...]) -> None:
    """With any profiles, and without an .env file; among the services it names those that they add."""
    command = compose()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is on PATH")
    chosen = [word for profile in profiles for word in ("--profile", profile)]
    done = composed(command, *chosen, "config", "--services")
    assert done.returncode == 0, done.stderr
    # Compose 1.29 names all services, whatever their profile.
    assert set(done.stdout.split()) >= ALWAYS.union(*(PROFILES[profile] for profile in profiles))
