"""Names of lanes on the command line: any text, with completion by the existing lanes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
from click.shell_completion import CompletionItem

from ratelimit_worker.errors import RateLimitWorkerError


class LaneName(click.types.StringParamType):
    """Any text, since a lane need not exist yet."""

    name = "lane"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The lanes whose names begin with this, busy ones first; none if Redis can't be reached."""
        from ratelimit_worker.cli.sources import open_sources
        from ratelimit_worker.stores.reach import redis_errors

        try:
            with open_sources() as opened, redis_errors():
                names = [lane.lane for lane in opened.sources.server.now().lanes]
        except RateLimitWorkerError:
            return []  # silently, since anything printed would appear in the line that is being typed
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


LANE = LaneName()


def unknown(asked: Sequence[str], found: Iterable[str]) -> list[str]:
    """A sentence for each lane that was asked for and not found: its name may be misspelt."""
    there = set(found)
    return [f"lane {name} is not known (yet)" for name in dict.fromkeys(asked) if name not in there]


def none_found(asked: Sequence[str], find: str) -> str:
    """Why no lane is shown."""
    if asked:
        return "no such lane"
    return f"no lane has {find!r} in its name" if find else "no lane is known yet"


def hint(error: click.ClickException) -> str:
    """What to write in place of `halt gpt`: "; a lane is named with --lane"; "" for another error."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    takes_one = context is not None and any("--lane" in option.opts for option in context.command.params)
    return "; a lane is named with --lane" if takes_one and "unexpected extra argument" in error.message else ""
