"""Which figures are wanted, and until when? Types and options that commands with figures share."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from ratelimit_worker.cli.duration import DURATION

F = TypeVar("F", bound=Callable[..., Any])
_AGO = re.compile(r"[\d.]+[smhd].*")


class Moment(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A moment, given as a time ago (90m) or as a date with or without a time, converted to seconds since the epoch."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a text to seconds since the epoch."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        if _AGO.fullmatch(text.lower()):
            return time.time() - DURATION.convert(text, param, ctx)
        try:
            at = datetime.fromisoformat(text)
            at_s = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            at_s = -1.0
        if at_s < 0:
            self.fail(f"{value!r}: write 90m, 7d (ago), 2026-11-30 or 2026-11-30T08:15 (UTC)", param, ctx)
        return at_s


MOMENT = Moment()


def only_some(command: F) -> F:
    """Options that choose lane, function, context and tenant; the command gets them as `only`."""

    @functools.wraps(command)
    def chosen(
        *args: Any, lane: str | None, function: str | None, context: str | None, tenant: str | None, **more: Any
    ) -> Any:
        from ratelimit_worker.contracts.rollup import Only

        return command(*args, only=Only(lane=lane, task=function, context=context, tenant=tenant), **more)

    made: Callable[..., Any] = chosen
    for name in ("tenant", "context", "function", "lane"):  # click's help lists the last decorator first
        made = click.option(f"--{name}", metavar="NAME", help=f"Of this {name} alone.")(made)
    return made  # type: ignore[return-value]
