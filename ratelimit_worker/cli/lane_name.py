"""How is a lane named on the command line? As text; a shell that completes it is told the lanes that there are."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from ratelimit_worker.errors import RateLimitWorkerError


class LaneName(click.types.StringParamType):
    """Any text: a lane need not be there yet."""

    name = "lane"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The lanes whose names begin so, busy ones first; none where Redis can't be asked."""
        from ratelimit_worker.cli.sources import open_sources
        from ratelimit_worker.stores.reach import redis_errors

        try:
            with open_sources() as opened, redis_errors():
                names = [lane.lane for lane in opened.sources.server.now().lanes]
        except RateLimitWorkerError:
            return []  # whatever is printed here stands in the line that is being typed
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


LANE = LaneName()
