"""Which of Celery's lines stay where a worker writes none of each call?"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from celery.app.trace import LOG_FAILURE, LOG_RECEIVED, LOG_SUCCESS

from ratelimit_worker.worker.log_lines import leave_out_calls

LOGGERS = ("celery.worker.strategy", "celery.app.trace")


@pytest.fixture
def filters_as_before() -> Iterator[None]:
    """The loggers are Celery's own, of the whole process."""
    before = {name: list(logging.getLogger(name).filters) for name in LOGGERS}
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters[:] = filters


def written(message: str, task: str) -> bool:
    """Whether both of Celery's loggers let a line through, as Celery writes it."""
    told = {"id": "1", "name": task, "args": "()", "kwargs": "{}", "return_value": "1", "runtime": 1.0, "exc": "odd"}
    record = {"msg": message, "args": told, "data": told}
    return all(logging.getLogger(name).filter(logging.makeLogRecord(record)) for name in LOGGERS)


@pytest.mark.usefixtures("filters_as_before")
def test_two_lines_of_a_call_are_left_out_and_nothing_else() -> None:
    """Those of other tasks stay, and so does a failure of a call; said again, the last holds."""
    assert written(LOG_RECEIVED, "call")
    leave_out_calls(lambda name: name == "other")
    leave_out_calls(lambda name: name == "call")
    assert not written(LOG_RECEIVED, "call")
    assert not written(LOG_SUCCESS, "call")
    assert written(LOG_FAILURE, "call")
    assert written(LOG_RECEIVED, "other")
    assert written(LOG_SUCCESS, "other")


@pytest.mark.usefixtures("filters_as_before")
def test_lines_that_name_no_task_are_written() -> None:
    """A handler of somebody's may log through the same loggers."""
    leave_out_calls(lambda name: True)
    assert logging.getLogger(LOGGERS[0]).filter(logging.makeLogRecord({"msg": "something else"}))
    assert logging.getLogger(LOGGERS[0]).filter(logging.makeLogRecord({"msg": LOG_RECEIVED, "args": ("x",)}))
