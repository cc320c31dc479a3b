"""What a call said is kept where someone switched that on, and nowhere else: prompt, answer, traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from ratelimit_worker import wiring
from ratelimit_worker.calls import MOST_CONTENT, Attempt, Content
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.flow.call.content import content_of, text_of, trace_of
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

PROMPT = "Tell me of Zeppelin7"
KEY = "sk-canary-key-0123456789"


class Unprintable:
    """An argument of a user whose `repr` fails."""

    def __repr__(self) -> str:
        raise LookupError("no name")


class Unspeakable(Exception):
    """An error of a user whose `str` fails; tracebacks of the standard library live with that."""

    def __str__(self) -> str:
        raise LookupError("no words")


def circle() -> list[Any]:
    """A list that holds itself."""
    one: list[Any] = []
    one.append(one)
    return one


def raised(error: Exception) -> Exception:
    """The error, with a traceback and a cause."""
    try:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise error from cause
    except Exception as caught:
        return caught


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_kept_where_nobody_asks() -> None:
    """Without arguments there is no content, whatever came of the attempt."""
    assert content_of(None, value="an answer") is None
    assert content_of(None, error=ValueError(PROMPT)) is None


def test_arguments_and_answer_or_traceback() -> None:
    """An answer is written as JSON, a failure as its whole traceback."""
    told = content_of(lambda: (["é", 1], {"n": None}), value={"text": "ok"})
    assert told == Content(asked='{"args": ["é", 1], "kwargs": {"n": null}}', answer='{"text": "ok"}')
    assert content_of(lambda: ((), {}), value=None) == Content(asked='{"args": [], "kwargs": {}}', answer="null")
    assert content_of(lambda: ((), {})) == Content(asked='{"args": [], "kwargs": {}}'), "nothing came of it"
    told = content_of(lambda: ([], {}), error=raised(ValueError("the end")))
    assert told is not None
    assert told.answer is None
    assert told.traceback is not None
    assert "KeyError: 'the cause'" in told.traceback
    assert "in raised" in told.traceback
    assert told.traceback.endswith("ValueError: the end\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"at": {1}}, '{"at": "{1}"}'),
        (Unprintable(), "<not to be written: LookupError>"),
        (circle(), "<not to be written: ValueError>"),
        ({(1, 2): 3}, "<not to be written: TypeError>"),
        ("x" * 2 * MOST_CONTENT, '"' + "x" * (MOST_CONTENT - 1)),
    ],
)
def test_whatever_comes_is_written(value: Any, text: str) -> None:
    """What is no JSON by its repr, what fails by its error; cut to the bound."""
    assert text_of(value) == text


def test_the_end_of_a_long_traceback_is_kept() -> None:
    """The last line says what happened."""
    trace = trace_of(raised(ValueError("x" * 2 * MOST_CONTENT + " the end")))
    assert len(trace) == MOST_CONTENT
    assert trace.endswith("the end\n")
    assert "Unspeakable" in trace_of(raised(Unspeakable()))


# ── a worker, and calls in process ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["true", "false"])
def running(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A worker that captures, and one that does not."""
    with fleet(MAISD_CAPTURE_CONTENT=request.param, OPENAI_API_KEY=KEY) as made:
        made.worker("w", "-P", "threads", "-c", "4", "-E")
        yield made


@pytest.mark.worker
def test_a_queued_call_is_kept_only_when_it_is_on(running: Fleet) -> None:
    """Answer, retry and failure: each attempt has its content with the switch on, none has one with it off."""
    tasks = running.agent()
    on = running.env["MAISD_CAPTURE_CONTENT"] == "true"
    answered = tasks.hush.delay(PROMPT, fail_times=1, name=f"content-{on}")
    refused = tasks.refused.delay(PROMPT, KEY)
    unknown = tasks.broken.delay(PROMPT)
    assert answered.get(timeout=120) == "hushed"
    for failing in (refused, unknown):
        with pytest.raises(Exception, match=r"invalid_request|no such thing"):
            failing.get(timeout=120)
    tracker = Tracker(engine_for(read_settings().database_url))
    first, second = recorded(tracker, answered.id, 2)
    (refusal,) = recorded(tracker, refused.id, 1)
    (own,) = recorded(tracker, unknown.id, 1)
    contents = [attempt.content for attempt in (first, second, refusal, own)]
    explained = CliRunner().invoke(main, ["explain", refused.id])
    if not on:
        assert contents == [None] * 4
        assert "Traceback" not in explained.output
        for path in (running.folder / "state").glob("tracking*"):
            assert PROMPT.encode() not in path.read_bytes(), path
        return
    asked = json.loads(contents[0].asked)  # type: ignore[union-attr]
    assert asked == {"args": [PROMPT], "kwargs": {"fail_times": 1, "name": "content-True"}}
    assert "ServerError: server_error (HTTP 500)" in str(contents[0].traceback)  # type: ignore[union-attr]
    assert contents[1] == Content(asked=contents[0].asked, answer='"hushed"')  # type: ignore[union-attr]
    assert "in refused" in str(contents[2].traceback)  # type: ignore[union-attr]
    assert "LookupError: no such thing" in str(contents[3].traceback)  # type: ignore[union-attr]
    assert f'asked: {{"args": ["{PROMPT}", "{KEY}"], "kwargs": {{}}}}' in explained.output
    assert "Traceback (most recent call last):" in explained.output
    whole = json.loads(CliRunner().invoke(main, ["explain", answered.id, "--format", "json"]).stdout)
    assert [attempt["content"]["answer"] for attempt in whole["attempts"]] == [None, '"hushed"']
    assert PROMPT not in running.workers[0].log()


@pytest.mark.server
def test_a_call_in_process_likewise(running: Fleet) -> None:
    """The arguments that never left the caller, what is no JSON by its repr, and the caller's own error."""
    limiter = AdvancedRateLimiter(wiring.use(read_settings()))

    def fails(what: str, tool: object) -> None:
        raise LookupError(f"{what} with {tool}")

    try:
        with pytest.raises(LookupError):
            limiter.make_rate_limited_call(fails, "fails", (PROMPT, {1}), lane="free", cache_enabled=False)
        assert limiter.make_rate_limited_call(lambda what: {2}, "set", (PROMPT,), lane="free") == {2}
        tracker = Tracker(engine_for(read_settings().database_url))
        failed, answered = of_task(tracker, "fails"), of_task(tracker, "set")
    finally:
        limiter.close()
    if running.env["MAISD_CAPTURE_CONTENT"] == "false":
        assert (failed.content, answered.content) == (None, None)
        return
    assert failed.content is not None
    assert failed.content.asked == f'{{"args": ["{PROMPT}", "{{1}}"], "kwargs": {{}}}}'
    assert "in fails" in str(failed.content.traceback)
    assert answered.content == Content(asked=f'{{"args": ["{PROMPT}"], "kwargs": {{}}}}', answer='"{2}"')


def recorded(tracker: Tracker, call_id: str, number: int) -> list[Attempt]:
    """The attempts of a call, once there are so many."""
    wait_for(lambda: len(tracker.attempts_of(call_id)) >= number, what=f"{number} attempts are recorded")
    return tracker.attempts_of(call_id)


def of_task(tracker: Tracker, task: str) -> Attempt:
    """The one attempt of a function, whose call's id its caller does not know."""
    found: list[str] = []

    def there() -> bool:
        with tracker._transaction() as connection:
            rows = connection.exec_driver_sql("SELECT call_id FROM attempts WHERE task = ?", (task,)).all()
        found[:] = [row[0] for row in rows]
        return bool(found)

    wait_for(there, what=f"{task} is recorded")
    return tracker.attempts_of(found[0])[0]
