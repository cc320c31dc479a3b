"""A worker's log lines: control characters from outside are escaped, and fields of events are printed.

Formatters differ (Celery's own writes colours), so the formatter of each handler that Celery sets up is wrapped by one
that escapes message and traceback before they are put together. Our own lines are events with fields. Celery's formats
do not print fields, so they are added behind the event.
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
#: The logger for what tasks print, which is left as it is, with colours.
_PRINTED = "celery.redirected"


class HarmlessFormatter(logging.Formatter):
    """Wraps another formatter, which gets messages and tracebacks with control characters escaped."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Format the line; the record itself stays unchanged, for other handlers."""
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
    """The fields of an event that are not in its line yet: " lane=… cause=…"."""
    more = {name: value for name, value in vars(record).items() if name not in _USUAL and f"{name}=" not in said}
    return "".join(f" {name}={one_line(str(value))}" for name, value in more.items())


def protect(logger: logging.Logger | None = None, **_: Any) -> None:
    """Wrap the formatter of each handler of a logger."""
    for handler in logger.handlers if logger is not None else ():
        if not isinstance(handler.formatter, HarmlessFormatter):
            handler.setFormatter(HarmlessFormatter(handler.formatter or logging.Formatter()))


class _WithoutCalls(logging.Filter):
    """Suppresses Celery's two lines for each call (received, succeeded), which cost too much."""

    def __init__(self, is_call: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_call = is_call

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg not in (LOG_RECEIVED, LOG_SUCCESS):
            return True
        told = getattr(record, "data", None)
        return not (isinstance(told, dict) and self._is_call(str(told.get("name"))))


def leave_out_calls(is_call: Callable[[str], bool]) -> None:
    """Stop writing Celery's two lines of a task if it is a call. Can be repeated; the last one holds.

    Args:
        is_call: Whether a task of this name makes calls.
    """
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logger = logging.getLogger(name)
        for one in [one for one in logger.filters if isinstance(one, _WithoutCalls)]:
            logger.removeFilter(one)
        logger.addFilter(_WithoutCalls(is_call))


def register() -> None:
    """Call `protect` whenever Celery sets up logging; registered once in a process, for any number of apps."""
    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(protect, weak=False, dispatch_uid="ratelimit_worker.log_lines")
