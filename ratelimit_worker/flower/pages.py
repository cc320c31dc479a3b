"""Which requests are ours? `/rate-limit` (seen by GET, set by POST), the part of it that is alive, and the JSON API."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from flower.api import BaseApiHandler
from flower.views import BaseHandler, monitor
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tornado import web
from tornado.web import url

from ratelimit_worker.calls import Mode
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flower import wording
from ratelimit_worker.flower.board import Board, Order, View
from ratelimit_worker.reports import words
from ratelimit_worker.reports.analytics import as_builtins

STATIC = Path(__file__).parent / "static"
AUTO = "AUTO"
MOST_FIND = 200  #: characters of a filter
#: How long a pin may hold, by what the form calls it; None: until Auto.
DURATIONS_S: dict[str, float | None] = {"": None, "15m": 900.0, "1h": 3_600.0, "4h": 14_400.0}

_SAID = "rlw_said"
# Everything on the page is a file of this server; Bootstrap's icons are data: URLs, its script writes style attributes.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",
        "form-action 'self'",
        "frame-ancestors 'none'",  # nobody puts the buttons under a page of theirs
        "base-uri 'none'",
    )
)


def view_of(asked: web.RequestHandler) -> View:
    """Which lanes the address names; a page that is no number is the first."""
    page = asked.get_query_argument("page", "1")
    number = int(page) if page.isascii() and page.isdigit() and len(page) < 7 else 1
    return View(find=asked.get_query_argument("find", "")[:MOST_FIND], page=max(1, number))


class _Page(BaseHandler):
    """What the page and its living part have in common."""

    @property
    def board(self) -> Board:
        """Where to ask."""
        board: Board = self.application.board
        return board

    @property
    def view(self) -> View:
        """Which lanes the address names."""
        return view_of(self)

    def address(self, name: str, view: View) -> str:
        """Where a page of ours shows a view."""
        asked = {"find": view.find} if view.find else {}
        asked |= {"page": str(view.page)} if view.page > 1 else {}
        return f"{self.reverse_url(name)}{'?' if asked else ''}{urlencode(asked)}"

    def set_default_headers(self) -> None:
        """Flower's, and what keeps others out of the page."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Cache-Control", "no-store")

    def why_not(self) -> str:
        """Why the buttons are off; "": they are on. Flower's own API acts under the same conditions."""
        options = self.application.options
        if options.read_only:
            return "Flower runs in read-only mode: the buttons are off."
        if not (options.basic_auth or options.auth or self.unauthenticated_api):
            return "The buttons are off: start Flower with a login (FLOWER_BASIC_AUTH=user:password or --basic-auth)."
        return ""


class RateLimitPage(_Page):
    """How every lane stands, and what it is told."""

    @web.authenticated
    async def get(self) -> None:
        """The page, with what the last button did."""
        said = (self.get_secure_cookie(_SAID) or b"").decode()
        if said:
            self.clear_cookie(_SAID)
        await self._show(said=said)

    @web.authenticated
    async def post(self) -> None:
        """Do what a button says, then back to the page, so that a reload does not do it again."""
        if refused := self.why_not():
            raise web.HTTPError(403, refused)
        try:
            order = self._order()
            changes = await self.board.give(order)
        except BadInput as error:
            self.set_status(400)
            await self._show(problem=str(error))
        except StoreUnavailable as error:
            self.set_status(503)
            await self._show(problem=str(error))
        else:
            self.set_secure_cookie(_SAID, wording.done(order, changes), expires_days=None)
            self.redirect(self.address("rate-limit", self.view), status=303)

    def check_xsrf_cookie(self) -> None:
        """Stricter than Flower's, which asks for no token under basic auth: same origin and token, always."""
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site and site != "same-origin":
            raise web.HTTPError(403, "Cross-site request forbidden")
        if not site and origin and urlsplit(origin).netloc != self.request.host:
            raise web.HTTPError(403, "Cross-origin request forbidden")
        web.RequestHandler.check_xsrf_cookie(self)

    def who(self) -> str:
        """The person for the history: who is logged in, else "flower"."""
        if isinstance(self.current_user, str):
            return self.current_user
        if self.application.options.basic_auth:
            _, _, credentials = self.request.headers["Authorization"].partition(" ")
            return base64.b64decode(credentials).decode().partition(":")[0] or "flower"
        return "flower"

    def _order(self) -> Order:
        # Tornado's own: Flower's get_argument escapes, which the template does again.
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
        self.render(
            "rate-limit.html",
            **{"said": "", "problem": "", **more},
            sight=sight,
            view=self.view,
            address=self.address,
            words=words,
            wording=wording,
            why_not=self.why_not(),
            durations=list(filter(None, DURATIONS_S)),
        )


class LivePart(_Page):
    """The part of the page that its script fetches every two seconds."""

    @web.authenticated
    async def get(self) -> None:
        """A piece of HTML."""
        sight, view = await self.board.sight(self.view), self.view
        self.finish(
            self.render_string(
                "rate-limit-live.html", sight=sight, view=view, address=self.address, words=words, wording=wording
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
    """Flower's metrics and those of the lanes, behind Flower's login: names of lanes and what they cost are in them."""

    @web.authenticated
    async def get(self) -> None:
        """In Prometheus' text form."""
        ours = await self.application.board.metrics()
        await super().get()
        self.write(ours)
        self.set_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)


class OurFile(web.StaticFileHandler):
    """Style and script of the page."""

    def set_extra_headers(self, path: str) -> None:
        """A browser asks whether it has the newest."""
        self.set_header("Cache-Control", "no-cache")


HANDLERS: tuple[Any, ...] = (
    url(r"/rate-limit", RateLimitPage, name="rate-limit"),
    url(r"/rate-limit/live", LivePart, name="rate-limit-live"),
    url(r"/rate-limit/static/(.+)", OurFile, {"path": str(STATIC)}, name="rate-limit-static"),
    url(r"/api/rate-limit", RateLimitApi),
    url(r"/metrics", Metrics),
)
