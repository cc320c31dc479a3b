"""Is what docs/deploy/ has for Kubernetes taken by it? Asked of its own schemas, every field known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
NOT_OURS = "keda"  # custom resources have schemas of their own


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    """The validator on a file."""
    command = [str(Path(sys.executable).with_name("kubernetes-validate")), "--strict", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("name", [file.name for file in sorted(DEPLOY.glob("*.yaml")) if NOT_OURS not in file.name])
def test_kubernetes_takes_it(name: str) -> None:
    """No field is unknown, and none is missing."""
    done = validate(DEPLOY / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_field_that_is_none_is_seen(tmp_path: Path) -> None:
    """The validator sees what is wrong."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((DEPLOY / "kubernetes.yaml").read_text("utf-8").replace("replicas: 3", "replica: 3"), "utf-8")
    assert validate(wrong).returncode == 1
