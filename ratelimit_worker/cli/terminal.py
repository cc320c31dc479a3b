"""How do commands speak? Through `say`, which makes harmless what lanes, providers and files have put into a text."""

from __future__ import annotations

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
