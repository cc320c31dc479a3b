"""The captured content of calls: nothing, unless MAISD_CAPTURE_CONTENT is on; then texts, cut to a length."""

from __future__ import annotations

import json
import traceback
from typing import Any

from ratelimit_worker.calls import MOST_CONTENT, Arguments, Content

NOTHING: Any = object()  #: an attempt had neither an answer nor an error


def content_of(
    arguments: Arguments | None, *, value: Any = NOTHING, error: BaseException | None = None
) -> Content | None:
    """What an attempt was asked, and its answer or error; None: content is not captured.

    Args:
        arguments: Gives (args, kwargs) of the call; None: content is not captured.
        value: What the attempt returned.
        error: What it raised, with its traceback.
    """
    if arguments is None:
        return None
    args, kwargs = arguments()
    return Content(
        asked=text_of({"args": args, "kwargs": kwargs}),
        answer=None if value is NOTHING else text_of(value),
        traceback=None if error is None else trace_of(error),
    )


def text_of(value: Any) -> str:
    """A value as JSON, or by `repr` if it is not JSON; its first `MOST_CONTENT` characters.

    Never raises, since capturing must not fail an attempt.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)[:MOST_CONTENT]
    except Exception as error:  # keys that are not text, cycles, and whatever a user's `repr` raises
        return f"<not to be written: {type(error).__name__}>"


def trace_of(error: BaseException) -> str:
    """The traceback with all causes; its last `MOST_CONTENT` characters, since the end says what happened."""
    try:
        return "".join(traceback.format_exception(error))[-MOST_CONTENT:]
    except Exception as failed:  # a user's `__str__`
        return f"<{type(error).__name__}, not to be written: {type(failed).__name__}>"
