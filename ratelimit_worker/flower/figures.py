"""The page of figures: a lane (or all) over 15 minutes to 7 days, as a chart, bars and tables."""

from __future__ import annotations

from typing import Any

from tornado import web

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flower import wording
from ratelimit_worker.flower.chart import drawn
from ratelimit_worker.flower.page import Page
from ratelimit_worker.reports import words
from ratelimit_worker.reports.dashboard import PERIODS, Dashboard, Period, done_in_s, headroom, held_by
from ratelimit_worker.reports.money import amount, in_total

TAB = "rate-limit-figures"
#: Time between two refreshes. With the age of a state (`board.STANDS_S`) and half a second for the request, a chart
#: shows a new mode within 2 s.
EVERY_MS = 1_000
MOST_TEXT = 300  #: characters of a lane's name
KINDS = {"task": "Functions", "context": "Contexts", "tenant": "Tenants", "model": "Models"}


class _FiguresBase(Page):
    @property
    def period(self) -> Period:
        """Lane and period that the address asks for."""
        name = self.get_query_argument("window", "1h")
        lane = self.get_query_argument("lane", "", strip=False)[:MOST_TEXT]
        return Period(lane or None, name if name in PERIODS else "1h")

    def parts(self, found: Dashboard) -> dict[str, Any]:
        """Values for the template of the part that is refreshed."""
        return {
            "found": found,
            "drawing": drawn(found),
            "headroom": headroom(found.now) if found.now is not None else (),
            "reasons": held_by(found.now, found.at_s) if found.now is not None else (),
            "done_s": done_in_s(found.now) if found.now is not None else None,
            "amount": amount,
            "in_total": in_total,
        }


class FiguresPage(_FiguresBase):
    """The whole page."""

    @web.authenticated
    async def get(self) -> None:
        """Figures of the lane and period in the address."""
        try:
            found = await self.board.figures(self.period)
        except StoreUnavailable as error:
            self.set_status(503)
            self.show("rate-limit-figures.html", TAB, problem=str(error), found=None, period=self.period)
            return
        self.show(
            "rate-limit-figures.html",
            TAB,
            period=self.period,
            periods=list(PERIODS),
            kinds=KINDS,
            every_ms=EVERY_MS,
            **self.parts(found),
        )


class FiguresLive(_FiguresBase):
    """The part of the page that its script fetches every second."""

    @web.authenticated
    async def get(self) -> None:
        """A piece of HTML."""
        try:
            found = await self.board.figures(self.period)
        except StoreUnavailable as error:
            raise web.HTTPError(503, str(error)) from error
        self.finish(
            self.render_string(
                "rate-limit-figures-live.html", at=self.at, words=words, wording=wording, **self.parts(found)
            )
        )
