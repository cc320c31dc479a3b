"""Redis' password is rotated while calls run: what they were answered is kept until a connection may be had again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.credentials import MOST_BYTES, PasswordFile, credentials_of
from ratelimit_worker.stores.patient import passes
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet


class Guarded:
    """A fleet whose Redis has a password, and who may change it."""

    def __init__(self, made: Fleet, file: Path) -> None:
        self.made, self.file = made, file
        self.admin = redis.Redis(port=made.valkey.port, password="one")

    def rotate(self, password: str) -> None:
        """From now on another password holds, and every connection has to say it."""
        self.admin.config_set("requirepass", password)
        self.admin.client_kill_filter(_type="normal", skipme=True)
        self.admin.client_kill_filter(_type="pubsub", skipme=True)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    file = tmp_path / "password"
    file.write_text("one\n")
    with fleet(MAISD_REDIS_PASSWORD_FILE=str(file)) as made:
        made.valkey.client.config_set("requirepass", "one")
        scene = Guarded(made, file)
        scene.admin.ping()
        try:
            yield scene
        finally:
            scene.admin.config_set("requirepass", "")
            scene.admin.close()


@pytest.mark.worker
def test_a_rotated_password_throws_no_answer_away(guarded: Guarded) -> None:
    """Four calls run while every connection is cut and the old password is wrong: each is sent once and answered."""
    made = guarded.made
    worker = made.worker("w", "-P", "threads", "-c", "4")
    tasks = made.agent()
    results = [tasks.stamp.delay(str(n), 1.0) for n in range(4)]
    wait_for(lambda: len(made.stamps()) == 4, what="four calls run")
    guarded.rotate("two")
    wait_for(lambda: "redis.away AuthenticationError: " in worker.log(), what="an answer meets the new password")
    assert "two" not in worker.log().partition("redis.away")[2].partition("\n")[0]
    guarded.file.write_text("two\n")
    assert [result.get(timeout=120) for result in results] == ["0", "1", "2", "3"]
    assert len(made.stamps()) == 4, "none was sent again"
    assert tasks.stamp.delay("after").get(timeout=120) == "after"
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    "answer",
    [
        AuthenticationError("invalid username-password pair or user is disabled."),
        AuthenticationError("Authentication required."),
        NoPermissionError("this user has no permissions to run the 'fcall' command"),
        redis.ResponseError("WRONGPASS invalid username-password pair"),
        redis.ResponseError("NOAUTH Authentication required."),
    ],
)
def test_who_may_not_now_may_later(answer: Exception) -> None:
    """A refused connection or command waits as for an outage; the answer in hand is paid for."""
    assert passes(answer)


def test_the_file_is_read_for_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is an error that passes, and names the file and no more."""
    file = tmp_path / "password"
    monkeypatch.setenv("MAISD_REDIS_PASSWORD_FILE", str(file))
    address, password = credentials_of("redis://worker%40a@host:6379/3")
    assert address == "redis://host:6379/3"
    assert password is not None
    with pytest.raises(AuthenticationError, match="cannot be read"):
        password.get_credentials()
    file.write_text(" one\n")
    assert password.get_credentials() == ("worker@a", "one")
    file.write_text("two")
    assert password.get_credentials() == ("worker@a", "two")
    file.write_text(" \n")
    with pytest.raises(AuthenticationError, match="is empty"):
        password.get_credentials()


def test_a_device_without_end_is_no_password() -> None:
    """It is read as far as a password may go."""
    assert len(PasswordFile(Path("/dev/zero")).get_credentials()[0]) == MOST_BYTES


def test_a_password_stands_in_one_place(tmp_path: Path) -> None:
    """Two passwords are a mistake, said in one line without either."""
    env: dict[str, Any] = {"MAISD_REDIS_PASSWORD_FILE": str(tmp_path), "MAISD_REDIS_URL": "redis://u:hidden@host"}
    with pytest.raises(ConfigurationError, match="MAISD_REDIS_PASSWORD_FILE: the Redis URL has a password too") as bad:
        read_settings({**os.environ, **env})
    assert "hidden" not in str(bad.value)
    assert read_settings({**os.environ, **env, "MAISD_REDIS_URL": "redis://u@host"}).redis_url == "redis://u@host"
