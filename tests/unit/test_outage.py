"""Is what is wrong said with its cause, once, and without secrets?"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest
from redis import ConnectionError as RedisAway

from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.outage import MOST_CAUSES, Outage, cause_of, without_passwords
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.duties import Duty
from ratelimit_worker.worker.log_lines import protect


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("redis://user:s3cret@host:6379/0 is away", "redis://user:***@host:6379/0 is away"),
        ("redis://:p@ss/wd@host", "redis://:***@host"),
        ("postgresql://u:s3cret@h/db?password=s3cret&x=1", "postgresql://u:***@h/db?password=***&x=1"),
        ("host=h password=s3cret user=u", "host=h password=*** user=u"),
        ("api_key=s3cret, token=s3cret", "api_key=***, token=***"),
        ("https://host/path?a=b and 12 @ 3", "https://host/path?a=b and 12 @ 3"),
        ("Error 111 connecting to host:6379", "Error 111 connecting to host:6379"),
    ],
)
def test_passwords_are_taken_out(said: str, shown: str) -> None:
    """Of URLs and of settings; what else it says stays."""
    assert without_passwords(said) == shown
    assert cause_of(ValueError(f"{said}\nmore")) == f"ValueError: {shown}"


def test_a_cause_is_one_short_harmless_line() -> None:
    """Whatever the error says."""
    assert cause_of(ValueError("\x1b[2J" + "x" * 1000 + "\nsecond")) == f"ValueError: \\u001b[2J{'x' * 1000}"[:300]
    assert cause_of(KeyError()) == "KeyError"


def test_each_cause_is_news_once_an_outage() -> None:
    """Two that take turns are two lines, and one with a number in it has a bound."""
    outage = Outage()
    assert not outage.over()
    news = [outage.news(OSError(f"cause {number % 2}")) for number in range(10)]
    assert news == ["OSError: cause 0", "OSError: cause 1", *[None] * 8]
    assert outage.over()
    assert outage.news(OSError("cause 0"))
    assert sum(outage.news(OSError(f"port {number}")) is not None for number in range(1000)) == MOST_CAUSES - 1


class Scripted(Duty):
    """A duty whose turns raise what the test says, and end it after the last."""

    def __init__(self, turns: list[BaseException | None]) -> None:
        super().__init__("scripted", RedisServer("redis://127.0.0.1:1/0"), "me")
        self.turns = turns

        def at_once(timeout: float | None = None) -> bool:
            return self.stopping.is_set()

        self.stopping.wait = at_once  # type: ignore[method-assign]

    def turn(self) -> None:
        error = self.turns.pop(0)
        if not self.turns:
            self.stop()
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (lambda: RedisAway("redis://u:s3cret@h:1 is away"), "duty.waits"),
        (lambda: StoreUnavailable("redis://u:s3cret@h:1 is away"), "duty.waits"),
        (lambda: ConfigurationError("redis://u:s3cret@h:1 is away"), "duty.waits"),
        (lambda: LookupError("redis://u:s3cret@h:1 is away"), "duty.failed"),
    ],
)
def test_a_duty_says_why_it_waits(
    error: Callable[[], BaseException], event: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a cause, in the line itself; that it goes on is said too, and after that the same is news again."""
    caplog.set_level("INFO")
    duty = Scripted([error(), error(), error(), None, None, error(), None])
    duty.run()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    lines = [message for _, message in said]
    assert [line.split(" ")[0] for line in lines] == [event, "duty.back", event, "duty.back"]
    assert "duty=rlw-scripted cause=" in lines[0]
    assert "redis://u:***@h:1 is away" in lines[0]


def test_a_worker_prints_the_fields_of_our_events() -> None:
    """Celery's formats print the message alone, so cause and lane stand in it; nothing is said twice."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    ours, theirs = logging.Logger("ratelimit_worker.stores.x"), logging.Logger("celery.x")
    for logger in (ours, theirs):
        logger.addHandler(handler)
        protect(logger)
    ours.warning("thing.away", extra={"cause": "redis://u:s3cret@h\nforged", "lane": "a\x1b"})
    ours.warning("thing.away cause=%s", "said", extra={"cause": "again"})
    theirs.warning("theirs", extra={"data": {"secret": 1}})
    assert stream.getvalue().splitlines() == [
        "thing.away cause=redis://u:***@h\\nforged lane=a\\u001b",
        "thing.away cause=said",
        "theirs",
    ]
