"""What may a worker's log line hold? What others have written, but no control character of theirs.

Formatters differ (Celery's own writes colours), so each handler that Celery sets up gets one around its own, which
makes message and traceback harmless before they are put together. Our own lines are events with fields; Celery's
formats print no fields, so they are put behind the event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.app.trace import LOG_RECEIVED, LOG_SUCCESS
from celery.signals import after_setup_logger, after_setup_task_logger

from ratelimit_worker.outage import without_passwords
from ratelimit_worker.plain_text import one_line, shown

_OURS = "ratelimit_worker."
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: What tasks print, colours and all, is theirs.
_PRINTED = "celery.redirected"


class HarmlessFormatter(logging.Formatter):
    """Another formatter, told of messages and tracebacks with their control characters escaped."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line; the record stays as it is, for other handlers."""
        if record.name == _PRINTED:
            return self.inner.format(record)
        harmless = logging.makeLogRecord(record.__dict__)
        said = record.getMessage()
        if record.name.startswith(_OURS):
            said = without_passwords(f"{said}{_fields(record, said)}")
        harmless.msg, harmless.args = shown(said), ()
        if record.exc_info:
            harmless.exc_text = shown(self.inner.formatException(record.exc_info))
        return self.inner.format(harmless)


def _fields(record: logging.LogRecord, said: str) -> str:
    """The fields of an event that its line does not have yet: " lane=… cause=…"."""
    more = {name: value for name, value in vars(record).items() if name not in _USUAL and f"{name}=" not in said}
    return "".join(f" {name}={one_line(str(value))}" for name, value in more.items())


def protect(logger: logging.Logger | None = None, **_: Any) -> None:
    """Give each handler of a logger such a formatter."""
    for handler in logger.handlers if logger is not None else ():
        if not isinstance(handler.formatter, HarmlessFormatter):
            handler.setFormatter(HarmlessFormatter(handler.formatter or logging.Formatter()))


class _WithoutCalls(logging.Filter):
    """Celery's lines of each call that is received and that succeeds are not written: they cost too much."""

    def __init__(self, is_call: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_call = is_call

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg not in (LOG_RECEIVED, LOG_SUCCESS):
            return True
        told = getattr(record, "data", None)
        return not (isinstance(told, dict) and self._is_call(str(told.get("name"))))


def leave_out_calls(is_call: Callable[[str], bool]) -> None:
    """Write Celery's two lines of each task no more where it is a call. Said again, the last holds.

    Args:
        is_call: Whether a task of this name makes calls.
    """
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logger = logging.getLogger(name)
        for one in [one for one in logger.filters if isinstance(one, _WithoutCalls)]:
            logger.removeFilter(one)
        logger.addFilter(_WithoutCalls(is_call))


def register() -> None:
    """From now on, whenever Celery sets logging up; once a process, however many apps there are."""
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(protect, weak=False, dispatch_uid="ratelimit_worker.log_lines")
