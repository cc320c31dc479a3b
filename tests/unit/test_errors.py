"""Errors that reach the caller: ours, whole after pickle and JSON, and silent about prompt and key."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import pytest
from celery import Celery

from ratelimit_worker import errors
from ratelimit_worker.calls import Category, Response
from ratelimit_worker.errors import CallFailed, RateLimitWorkerError, call_failed
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.providers.http import ProviderRefused
from ratelimit_worker.worker.task import ANSWERS

PROMPT, KEY = "the canary sings at midnight", "sk-canary-0123456789"

#: One of each class that is raised, with what it is raised with.
ALL: list[RateLimitWorkerError] = [
    errors.ConfigurationError("A=1: no\nB=2: no"),
    errors.StoreUnavailable("Redis said: no"),
    errors.BadInput("no JSON"),
    errors.LaneFull("lane", 3),
    errors.LanesFull("lane"),
    errors.LaneShedding("lane", "EMERGENCY"),
    errors.BudgetSpent("tenant:a", 1_700_006_400),
    errors.DeadlineExceeded("call", "lane", 2),
    errors.DeadlineExceeded("call", "lane", 2, "overloaded", 503, "req-1", "the provider is overloaded"),
    errors.WorkerLostRepeatedly("call", 3),
    errors.TaskAborted("call", "SystemExit"),
    errors.CallLost("ref"),
    errors.MessageRefused("call", "no delivery tag"),
    errors.CallFailedLater("lane"),
    errors.RowRefused("too long"),
    *(kind("HTTP 503 overloaded", 503, "req_1", 4) for kind in CallFailed.__subclasses__()),
]


def test_the_list_is_whole() -> None:
    """Every class of the tree is tested here."""
    tree, waiting = set(), [RateLimitWorkerError]
    while waiting:
        kind = waiting.pop()
        below = [sub for sub in kind.__subclasses__() if sub.__module__ == errors.__name__]
        tree |= set() if below else {kind}
        waiting += below
    assert {type(error) for error in ALL} == tree
    assert {kind.category for kind in CallFailed.__subclasses__()} == set(Category)


def same(one: BaseException, other: BaseException) -> bool:
    return (type(one), one.args, vars(one), str(one)) == (type(other), other.args, vars(other), str(other))


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_args_rebuild_an_error(error: RateLimitWorkerError) -> None:
    """Through pickle, copy, Celery's JSON result, and the answer that SETTLE keeps."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert same(copy.copy(error), error)
    backend: Any = Celery("errors", backend="cache+memory://", set_as_current=False).backend
    stored = backend.decode(backend.encode(backend.prepare_exception(error, "json")))
    assert same(backend.exception_to_python(stored), error)
    kind, rebuilt = ANSWERS.decode(ANSWERS.error(error))
    assert kind == "error"
    assert same(rebuilt, error)


def test_a_failed_call_says_what_is_known() -> None:
    """Category, attempts, last status, request id and a cause of one line."""
    body = {"error": {"type": "server_error", "message": PROMPT}}
    refused = ProviderRefused(Response(status=500, headers={"x-request-id": "req_9"}, body=body))
    failure = classify_exception(refused)
    assert failure is not None
    error = call_failed(failure, 6)
    assert isinstance(error, errors.ServerError)
    assert (error.category, error.attempts, error.status, error.request_id) == (Category.SERVER_ERROR, 6, 500, "req_9")
    assert error.cause == "ProviderRefused: HTTP 500 server_error"
    assert str(error) == "server_error (HTTP 500) after 6 attempt(s): ProviderRefused: HTTP 500 server_error"


class Echo(Exception):
    """An SDK's exception that repeats prompt and key wherever it can."""

    def __init__(self) -> None:
        super().__init__(f"{PROMPT} {KEY}")
        self.message = f"{PROMPT} {KEY}"
        self.status_code, self.code, self.type, self.reason = 400, KEY, PROMPT, KEY
        self.body = {"error": {"message": PROMPT, "type": KEY, "code": KEY, "param": PROMPT}, "detail": PROMPT}
        self.headers = {"x-request-id": f"{KEY} {PROMPT}", "authorization": KEY, "x-ratelimit-limit": PROMPT}


@pytest.mark.parametrize("wrapped", [False, True])
def test_neither_prompt_nor_key_is_in_an_error(wrapped: bool) -> None:
    """Body, message, headers and the text of a wrapper; in text, arguments, pickle, JSON and traceback."""
    try:
        try:
            raise Echo
        except Echo as error:
            if wrapped:
                raise RuntimeError(f"agent failed on {PROMPT}") from error
            raise
    except Exception as error:
        failure = classify_exception(error)
    assert failure is not None
    try:
        raise call_failed(failure, 1)
    except CallFailed as final:
        answers: Answers = ANSWERS
        shown = [str(final), repr(final), repr(final.args), repr(vars(final)), answers.error(final).decode()]
        shown += [pickle.dumps(final).decode("latin-1"), "".join(traceback.format_exception(final))]
    for text in shown:
        for secret in (PROMPT, KEY, "canary"):
            assert secret not in text
