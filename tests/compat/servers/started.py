"""Servers of others, as processes: started from environments that `make test-compat` makes, ended by pid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import free_port

COMPAT = ROOT / ".compat"
LITELLM = COMPAT / "litellm" / "bin" / "litellm"
AIMOCK = COMPAT / "aimock" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
#: The proxy refuses to start with a key that is short or simple.
MASTER_KEY = "sk-9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a"
_START_S = 600.0  #: a gateway imports a lot, on a machine that may have much else to do


@contextmanager
def started(command: Sequence[str], ready: str, log: Path, env: Mapping[str, str]) -> Iterator[None]:
    """A process, from when it answers at `ready` until the block is left."""
    process = subprocess.Popen(
        command, cwd=log.parent, env={**os.environ, **env}, stdout=log.open("ab"), stderr=subprocess.STDOUT
    )

    def answers() -> bool:
        assert process.poll() is None, log.read_text("utf-8", "replace")[-4000:]
        try:
            with urllib.request.urlopen(ready, timeout=5) as answer:
                return bool(answer.status < 500)
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    try:
        wait_for(answers, timeout_s=_START_S, what=lambda: f"{command[0]} answers: {log.read_text()[-2000:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)


@contextmanager
def litellm_proxy(models: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """LiteLLM's proxy with these models (`model_list`), its own retries and cooldowns off → its address.

    Without an environment of its own: skipped.
    """
    if not LITELLM.exists():
        pytest.skip("no LiteLLM proxy: `make test-compat` installs it")
    folder, port = Path(tempfile.mkdtemp(prefix="rlw-litellm-")), free_port()
    told = {
        "model_list": list(models),
        "litellm_settings": {"num_retries": 0, "request_timeout": 30, "telemetry": False},
        "router_settings": {"num_retries": 0, "enable_pre_call_checks": True, "disable_cooldowns": True},
        "general_settings": {"master_key": MASTER_KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(told))  # JSON is YAML
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1,localhost", "HOME": str(folder)}
    command = [str(LITELLM), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    try:
        with started(command, f"{address}/health/liveliness", folder / "log", env):
            yield address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def aimock(fixtures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """aimock with these fixtures → its address. Without npm: skipped."""
    node = shutil.which("node")
    if node is None or not AIMOCK.exists():
        pytest.skip("no aimock: `make test-compat` installs it where npm is")
    folder, port = Path(tempfile.mkdtemp(prefix="rlw-aimock-")), free_port()
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": list(fixtures)}))
    command = [node, str(AIMOCK), "--port", str(port), "--fixtures", "fixtures.json", "--log-level", "warn"]
    address = f"http://127.0.0.1:{port}"
    try:
        with started(command, f"{address}/__aimock/journal", folder / "log", {}):
            yield address
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ask_json(url: str, method: str = "GET", body: Any = None) -> Any:
    """What a server says of itself."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, method=method, headers={"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)
