"""Routes: `/rate-limit` (GET shows lanes, POST sets modes), its part that is refreshed, the JSON API and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flower.api import BaseApiHandler
from flower.views import monitor
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tornado import web
from tornado.web import url

from ratelimit_worker.calls import Mode
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flower import wording
from ratelimit_worker.flower.board import Order, View
from ratelimit_worker.flower.calls import CallPage, CallsPage
from ratelimit_worker.flower.figures import FiguresLive, FiguresPage
from ratelimit_worker.flower.page import ButtonPage, Page
from ratelimit_worker.reports import words
from ratelimit_worker.reports.analytics import as_builtins

STATIC = Path(__file__).parent / "static"
AUTO = "AUTO"
MOST_FIND = 200  #: characters of a filter
#: How long a pin may last, by the value in the form; None: until Auto.
DURATIONS_S: dict[str, float | None] = {"": None, "15m": 900.0, "1h": 3_600.0, "4h": 14_400.0}


def view_of(asked: web.RequestHandler) -> View:
    """The lanes that the address asks for; if its page is no number, it is the first."""
    page = asked.get_query_argument("page", "1")
    number = int(page) if page.isascii() and page.isdigit() and len(page) < 7 else 1
    return View(find=asked.get_query_argument("find", "")[:MOST_FIND], page=max(1, number))


class _LanesPage(Page):
    """What the page of lanes and its refreshed part have in common."""

    @property
    def view(self) -> View:
        """The lanes that the address asks for."""
        return view_of(self)

    def address(self, name: str, view: View) -> str:
        """The address of a route with a view."""
        return self.at(name, find=view.find, page=str(view.page) if view.page > 1 else "")


class RateLimitPage(_LanesPage, ButtonPage):
    """The state of every lane, and the buttons."""

    async def _do(self) -> None:
        order = self._order()
        changes = await self.board.give(order)
        self.say(wording.done(order, changes), self.address("rate-limit", self.view))

    def _order(self) -> Order:
        # Tornado's own method: Flower's get_argument escapes, and the template would escape once more.
        mode, lane = self.get_body_argument("mode"), self.get_body_argument("lane", strip=False)
        for_ = self.get_body_argument("for", "")
        if mode != AUTO and mode not in Mode.__members__:
            raise BadInput(f"mode={mode[:40]!r}: use {', '.join((*Mode.__members__, AUTO))}")
        if for_ not in DURATIONS_S:
            raise BadInput(f"for={for_[:40]!r}: use {', '.join(filter(None, DURATIONS_S))}")
        return Order(
            mode=None if mode == AUTO else Mode(mode),
            lane=lane or None,
            for_s=None if mode == AUTO else DURATIONS_S[for_],
            reason=self.get_body_argument("reason", ""),
            who=self.who(),
        )

    async def _show(self, **more: str) -> None:
        sight = await self.board.sight(self.view)
        self.show(
            "rate-limit.html",
            "rate-limit",
            **more,
            sight=sight,
            view=self.view,
            address=self.address,
            durations=list(filter(None, DURATIONS_S)),
        )


class LivePart(_LanesPage):
    """The part of the page that its script fetches every two seconds."""

    @web.authenticated
    async def get(self) -> None:
        """A piece of HTML."""
        sight, view = await self.board.sight(self.view), self.view
        self.finish(
            self.render_string(
                "rate-limit-live.html",
                sight=sight,
                view=view,
                address=self.address,
                at=self.at,
                words=words,
                wording=wording,
            )
        )


class RateLimitApi(BaseApiHandler):
    """The JSON of `ratelimit-worker status --format json`, under the conditions of Flower's API."""

    @web.authenticated
    async def get(self) -> None:
        """A page of lanes, and all workers and queues."""
        try:
            state = await self.application.board.state(view_of(self))
        except StoreUnavailable as error:
            raise web.HTTPError(503, str(error)) from error
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(words.as_json(as_builtins(state)))


class Metrics(monitor.Metrics):
    """Flower's metrics and those of the lanes. They need Flower's login, since they have names and costs of lanes."""

    @web.authenticated
    async def get(self) -> None:
        """All of them in Prometheus' text format."""
        ours = await self.application.board.metrics()
        await super().get()
        self.write(ours)
        self.set_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)


class OurFile(web.StaticFileHandler):
    """Style and script of the page."""

    def set_extra_headers(self, path: str) -> None:
        """Make the browser ask each time whether its copy is the newest."""
        self.set_header("Cache-Control", "no-cache")


HANDLERS: tuple[Any, ...] = (
    url(r"/rate-limit", RateLimitPage, name="rate-limit"),
    url(r"/rate-limit/live", LivePart, name="rate-limit-live"),
    url(r"/rate-limit/static/(.+)", OurFile, {"path": str(STATIC)}, name="rate-limit-static"),
    url(r"/rate-limit/calls", CallsPage, name="rate-limit-calls"),
    url(r"/rate-limit/call", CallPage, name="rate-limit-call"),
    url(r"/rate-limit/figures", FiguresPage, name="rate-limit-figures"),
    url(r"/rate-limit/figures/live", FiguresLive, name="rate-limit-figures-live"),
    url(r"/api/rate-limit", RateLimitApi),
    url(r"/metrics", Metrics),
)
