"""`ratelimit-worker classify`: what would happen to a call that gets this answer or exception?"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from ratelimit_worker.cli.terminal import say
from ratelimit_worker.number_options import Whole

if TYPE_CHECKING:
    from ratelimit_worker.calls import Failure
    from ratelimit_worker.policy.retry import Step


@click.command()
@click.argument("exception", required=False)
@click.option("--status", type=Whole(100, 599), help="The HTTP status of an answer.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="One of its headers; repeatable.")
@click.option("--body", metavar="TEXT|@FILE|-", help="Its body: text, a file's, or what comes on stdin.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def classify(exception: str | None, status: int | None, headers: tuple[str, ...], body: str | None, form: str) -> None:
    """Print what kind of failure an answer or an EXCEPTION is, and what follows the first time.

    EXCEPTION is a dotted name such as openai.RateLimitError, and stands for an empty instance of it; its package must
    be installed. Rules of installed packages are asked; a task's own `classify=` is not.
    """
    import time

    from ratelimit_worker.calls import Response
    from ratelimit_worker.plugins import classifier
    from ratelimit_worker.policy.classification import classify_response

    if (exception is None) == (status is None):
        raise click.UsageError("name one exception, such as openai.RateLimitError, or an answer, such as --status 429")
    if exception is not None:
        if headers or body is not None:
            raise click.UsageError(f"{exception}: --header and --body belong to an answer; give its --status instead")
        failure, unknown = classifier()(_bare_instance(exception)), "celery"
    else:
        answer = Response(status=status or 0, headers=dict(map(_header, headers)), body=_parsed(_text(body)))
        failure, unknown = classify_response(answer, now_s=time.time()), "answered"
    nothing = {**dict.fromkeys(_FIELDS), "verdict": unknown, "sick": False, "halts": False}
    figures = _figures(failure) if failure else nothing
    if form == "json":
        from ratelimit_worker.reports.words import as_json

        say(as_json({name: figures[name] for name in _FIELDS}))
        return
    for line in _lines(figures):
        say(line)


#: In the order of the JSON.
_FIELDS = (
    "category",
    "verdict",
    "least_delay_s",
    "most_delay_s",
    "tries",
    "sick",
    "halts",
    "status",
    "retry_after_s",
    "request_id",
    "cause",
)


def _figures(failure: Failure) -> dict[str, Any]:
    import math

    from ratelimit_worker.policy.retry import Halt, Retry, RetryPolicy, Snooze, next_step

    policy = RetryPolicy()

    def step(draw: float) -> Step:
        return next_step(
            failure, 1, policy, lambda: draw, now_s=0.0, deadline_s=math.inf
        )  # for a healthy lane and a call without a deadline

    first, last = step(0.0), step(1.0)
    rule = policy.rules.get(failure.category)
    verdict = {Retry: "retry", Snooze: "snooze", Halt: "halt"}.get(type(first), "give_up")
    return {
        "category": failure.category.value,
        "verdict": verdict,
        "least_delay_s": first.after_s if isinstance(first, Retry | Snooze) else None,
        "most_delay_s": last.after_s if isinstance(last, Retry | Snooze) else None,
        "tries": rule.tries if rule is not None else None,
        "sick": failure.sick,
        "halts": isinstance(first, Halt),
        "status": failure.status,
        "retry_after_s": failure.retry_after_s,
        "request_id": failure.request_id,
        "cause": failure.cause,
    }


def _lines(figures: dict[str, Any]) -> list[str]:
    least, most, tries = figures["least_delay_s"], figures["most_delay_s"], figures["tries"]
    said = {
        "answered": "none: a good answer",
        "celery": "Celery's own rules hold: autoretry_for, max_retries",
        "retry": f"retry, at most {tries} tries in all",
        "snooze": "snooze: back to its place in the lane, at no try",
        "halt": "halt: the lane stops, and its calls wait until somebody pays",
        "give_up": "give up: another attempt would not help",
    }[figures["verdict"]]
    if least is None:
        delay = "-"
    elif least == most:
        delay = f"{least:g} s" if least else "as the lane's pace has room"
    else:
        delay = f"{least:g} to {most:g} s"
    shown = {
        "category": figures["category"] or ("none" if figures["verdict"] == "answered" else "unknown"),
        "verdict": said,
        "delay": delay,
        "sick": "yes: counts towards the lane's mode" if figures["sick"] else "no",
        "halts": "yes" if figures["halts"] else "no",
        "cause": figures["cause"] or "-",
    }
    return [f"{name:<9} {value}" for name, value in shown.items()]


def _bare_instance(name: str) -> BaseException:
    """An empty exception of the class with this dotted name."""
    import builtins
    from importlib import import_module

    module, _, kind_name = name.rpartition(".")
    try:
        home = import_module(module) if module else builtins
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise click.UsageError(f"{module} cannot be imported: it needs {error.name}") from error
        raise click.UsageError(
            f"{name}: {error.name} is not installed here (pip install it, or give --status)"
        ) from error
    except Exception as error:  # another package's import
        raise click.UsageError(f"{module} cannot be imported: {type(error).__name__}") from error
    kind = getattr(home, kind_name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise click.UsageError(f"{name} is no exception; give a dotted name such as openai.RateLimitError")
    with suppress(Exception):  # most SDKs' classes need a response; then the class alone is enough
        return kind()
    try:
        return kind.__new__(kind)
    except TypeError as error:
        raise click.UsageError(f"{name} means nothing without what it holds: {error}") from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header {text!r}: use 'name: value'")
    return name.strip().lower(), value.strip()


def _text(body: str | None) -> str:
    if body == "-":
        return sys.stdin.buffer.read().decode("utf-8", "replace")
    if body is not None and body.startswith("@"):
        try:
            with open(body[1:], encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError as error:
            raise click.UsageError(f"--body {body}: {error.strerror or error}") from error
    return body or ""


def _parsed(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # it is not JSON: the text is the body, as for an answer over HTTP
        return text
