"""Output of commands: `say` escapes control characters that lanes, providers and files may have put into a text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import click

from ratelimit_worker.plain_text import shown


def say(text: str, *, err: bool = False, nl: bool = True, file: Any = None) -> None:
    """Print a text with control characters escaped.

    Args:
        err: Print to stderr instead of stdout.
        nl: Add a newline.
        file: Another stream to print to.
    """
    click.echo(shown(text), err=err, nl=nl, file=file)


def columns() -> int | None:
    """Width of the terminal in characters; None: output goes to a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def asks(question: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option `--yes`. Without it, a person on a terminal is asked before the command does anything.

    Scripts, whose input is not a terminal, are not asked. The answer no ends the command with exit code 1.

    Args:
        question: What is about to be done, with a question mark.
    """

    def ask(ctx: click.Context, _parameter: click.Parameter, yes: bool) -> None:
        if not yes and not ctx.resilient_parsing and sys.stdin is not None and sys.stdin.isatty():
            click.confirm(question, abort=True, err=True)

    return click.option("-y", "--yes", is_flag=True, expose_value=False, callback=ask, help="Do not ask.")
