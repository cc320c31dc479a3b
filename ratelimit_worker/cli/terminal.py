"""How do commands speak? Through `say`, which makes harmless what lanes, providers and files have put into a text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import click

from ratelimit_worker.plain_text import shown


def say(text: str, *, err: bool = False, nl: bool = True, file: Any = None) -> None:
    """Print a text, control characters escaped.

    Args:
        err: To stderr.
        nl: With a newline behind it.
        file: Another stream than these.
    """
    click.echo(shown(text), err=err, nl=nl, file=file)


def columns() -> int | None:
    """Of the terminal that is printed to; None: it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def asks(question: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--yes`, and for people on a terminal who leave it out a question before the command does anything.

    Scripts, whose input is no terminal, are not asked. Who answers no ends the command with exit code 1.

    Args:
        question: What is about to be done, with a question mark.
    """

    def ask(ctx: click.Context, _parameter: click.Parameter, yes: bool) -> None:
        if not yes and not ctx.resilient_parsing and sys.stdin is not None and sys.stdin.isatty():
            click.confirm(question, abort=True, err=True)

    return click.option("-y", "--yes", is_flag=True, expose_value=False, callback=ask, help="Do not ask.")
