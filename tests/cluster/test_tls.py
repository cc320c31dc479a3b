"""Redis behind TLS, in every spelling that Celery or redis-py takes: broker, lanes, duties and results alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.server import RedisServer
from tests.fleet import Fleet, fleet, repeated
from tests.tls import certificates, secured

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture
def made() -> Iterator[Fleet]:
    with fleet() as one:
        yield one


#: query of the address, broker_use_ssl, more of the environment; @ is the folder of certificates.
SPELLINGS = {
    "nothing, the machine's authorities": ("", None, {"SSL_CERT_FILE": "@/ca.pem"}),
    "redis-py: required": ("?ssl_cert_reqs=required&ssl_ca_certs=@/ca.pem", None, {}),
    "Celery: CERT_REQUIRED": ("?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=@/ca.pem", None, {}),
    "redis-py: none": ("?ssl_cert_reqs=none", None, {}),
    "Celery: CERT_NONE": ("?ssl_cert_reqs=CERT_NONE", None, {}),
    "a CA file alone": ("?ssl_ca_certs=@/ca.pem", None, {}),
    "broker_use_ssl": ("", {"ssl_cert_reqs": "required", "ssl_ca_certs": "@/ca.pem"}, {}),
    "broker_use_ssl, and redis://": ("redis", {"ssl_cert_reqs": "CERT_REQUIRED", "ssl_ca_certs": "@/ca.pem"}, {}),
}


def test_workers_and_callers_speak_tls(made: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker and a caller for each spelling, one after the other: a call and an ordinary task, and their results."""
    answers = {}
    for spelling, (query, told, more) in SPELLINGS.items():
        with secured(made.valkey.port, folder) as port, monkeypatch.context() as here:
            url = f"redis://127.0.0.1:{port}/0" if query == "redis" else f"rediss://127.0.0.1:{port}/0{query}"
            env = {"MAISD_REDIS_URL": url, "FLEET_TLS": json.dumps(told), **more}
            env = {name: value.replace("@", str(folder)) for name, value in env.items()}
            worker = made.worker(f"w{len(made.workers)}", "-P", "threads", "-c", "2", wait=True, **env)
            for name, value in env.items():
                here.setitem(os.environ, name, value)
            tasks = made.agent()
            results = [repeated(tasks.echo.apply_async, "paced"), repeated(tasks.add.apply_async, 1, 2)]
            answers[spelling] = [result.get(timeout=120) for result in results]
            worker.stop()
            tasks.app.close()
    assert answers == {spelling: ["paced", 3] for spelling in SPELLINGS}


def test_both_sides_show_certificates(made: Fleet, folder: Path) -> None:
    with secured(made.valkey.port, folder, clients_too=True) as port:
        trust = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.pem"
        with pytest.raises(redis.ConnectionError), RedisServer(trust).client() as client:
            client.ping()
        with RedisServer(
            f"{trust}&ssl_certfile={folder}/client.pem&ssl_keyfile={folder}/client.key"
        ).client() as client:
            assert client.ping()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?ssl_cert_reqs=maybe", "ssl_cert_reqs='maybe': use required, optional or none"),
        ("?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs=/nowhere.pem: there is no such file"),
        ("?ssl_min_version=SSLv2", "ssl_min_version='SSLv2': use TLSv1_2 or TLSv1_3"),
        ("?sll_cert_reqs=none", "unknown option 'sll_cert_reqs'"),
    ],
)
def test_what_cannot_be_is_one_line(query: str, words: str, tmp_path: Path) -> None:
    env = {**os.environ, "MAISD_REDIS_URL": f"rediss://127.0.0.1:1/0{query}", "MAISD_STATE_DIR": str(tmp_path)}
    with pytest.raises(ConfigurationError, match=words.partition(":")[0]):
        RedisServer(env["MAISD_REDIS_URL"]).client()
    ran = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", "doctor"],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 78
    assert words in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr


def test_a_certificate_that_nobody_vouches_for_is_one_line(made: Fleet, folder: Path, tmp_path: Path) -> None:
    with secured(made.valkey.port, folder) as port:
        ran = subprocess.run(
            [sys.executable, "-m", "ratelimit_worker", "doctor"],
            env={**os.environ, "MAISD_REDIS_URL": f"rediss://127.0.0.1:{port}/0", "MAISD_STATE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert ran.returncode == 69
    assert "CERTIFICATE_VERIFY_FAILED" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr
