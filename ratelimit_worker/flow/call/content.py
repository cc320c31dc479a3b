"""What is kept of what a call said? Nothing, unless MAISD_CAPTURE_CONTENT is on: then texts, cut to a bound."""

from __future__ import annotations

import json
import traceback
from typing import Any

from ratelimit_worker.calls import MOST_CONTENT, Arguments, Content

NOTHING: Any = object()  #: came of an attempt: neither an answer nor an error


def content_of(
    arguments: Arguments | None, *, value: Any = NOTHING, error: BaseException | None = None
) -> Content | None:
    """What an attempt was asked and what came of it; None where nobody keeps that.

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
    """A value as JSON, what is no JSON by its `repr`; its first `MOST_CONTENT` characters.

    Never fails: an attempt must not end for what is written of it.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)[:MOST_CONTENT]
    except Exception as error:  # keys that are no text, circles, and whatever a user's `repr` raises
        return f"<not to be written: {type(error).__name__}>"


def trace_of(error: BaseException) -> str:
    """The traceback with all causes; its last `MOST_CONTENT` characters, for the end says what happened."""
    try:
        return "".join(traceback.format_exception(error))[-MOST_CONTENT:]
    except Exception as failed:  # a user's `__str__`
        return f"<{type(error).__name__}, not to be written: {type(failed).__name__}>"
