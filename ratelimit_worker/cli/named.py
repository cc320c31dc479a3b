"""The option `-A MODULE`, before the command or after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_KEPT = "ratelimit_worker.app"
_OWN = ("flower", "up")  #: commands with an option of their own for it


def _keep(ctx: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        ctx.meta[_KEPT] = name  # shared by a command and its groups
        if ctx.parent is None:
            ctx.default_map = {**(ctx.default_map or {}), **{one: {"app_name": name} for one in _OWN}}


def of_app(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option, for a command that looks at a deployment."""
    return click.option(
        "-A",
        "--app",
        metavar="MODULE",
        expose_value=False,
        callback=_keep,
        help="The deployment's app, as `celery -A` takes it. Default: MAISD_REDIS_URL, CELERY_APP, what ran here last.",
    )(command)


def name_app(ctx: click.Context, name: str) -> None:
    """Use this app for all commands under `ctx` that do not name one."""
    ctx.meta[_KEPT] = name


def app_name() -> str | None:
    """The app that was named; None: none was."""
    ctx = click.get_current_context(silent=True)
    name: str | None = ctx.meta.get(_KEPT) if ctx is not None else None
    return name
