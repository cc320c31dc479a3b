"""What these pages have in common: security headers, who is logged in, and who may press a button."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlencode, urlsplit

from flower.views import BaseHandler
from tornado import web

from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flower import wording
from ratelimit_worker.flower.board import Board
from ratelimit_worker.flower.roles import may_operate
from ratelimit_worker.reports import words

_SAID = "rlw_said"
EVERY_MS = 2_000  #: time between two refreshes of a page's live part
MOST_SAID = 1_500  #: characters of the message about what a button did, which is kept in a cookie
#: The pages, in the order of their links: name of the route, and title.
TABS = (
    ("rate-limit", "Lanes"),
    ("rate-limit-calls", "Calls"),
    ("rate-limit-figures", "Figures"),
    ("rate-limit-alerts", "Alerts"),
)
# Everything on the page is a file of this server; Bootstrap's icons are data: URLs, its script writes style attributes.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",
        "form-action 'self'",
        "frame-ancestors 'none'",  # no other site can show these buttons in a frame
        "base-uri 'none'",
    )
)


class Page(BaseHandler):
    """A page of this package, or a part of one that is fetched separately."""

    @property
    def board(self) -> Board:
        """The board that reads and acts for all pages."""
        board: Board = self.application.board
        return board

    def at(self, name: str, **asked: str) -> str:
        """The address of a route, with the parameters that are not empty."""
        said = {key: value for key, value in asked.items() if value}
        return f"{self.reverse_url(name)}{'?' if said else ''}{urlencode(said)}"

    def set_default_headers(self) -> None:
        """Flower's headers, a content security policy, and no caching."""
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
        if not may_operate(self.who(), self.application.operators):
            return f"The buttons are off: {self.who()} may look, and is no operator (MAISD_FLOWER_OPERATORS)."
        return ""

    def check_xsrf_cookie(self) -> None:
        """Require same origin and a token in every case; Flower itself asks for no token under basic auth."""
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site and site != "same-origin":
            raise web.HTTPError(403, "Cross-site request forbidden")
        if not site and origin and urlsplit(origin).netloc != self.request.host:
            raise web.HTTPError(403, "Cross-origin request forbidden")
        web.RequestHandler.check_xsrf_cookie(self)

    def who(self) -> str:
        """The name for the history: the user who is logged in, or else "flower"."""
        if isinstance(self.current_user, str):
            return self.current_user
        if self.application.options.basic_auth:
            _, _, credentials = self.request.headers["Authorization"].partition(" ")
            return base64.b64decode(credentials).decode().partition(":")[0] or "flower"
        return "flower"

    def said(self) -> str:
        """The message about what the last button did; it is returned once."""
        said = (self.get_secure_cookie(_SAID) or b"").decode()
        if said:
            self.clear_cookie(_SAID)
        return said

    def say(self, what: str, address: str) -> None:
        """Keep a message for the next page and redirect to that, so that a reload does not press the button again."""
        self.set_secure_cookie(_SAID, what[:MOST_SAID], expires_days=None)
        self.redirect(address, status=303)

    def show(self, template: str, tab: str, **more: Any) -> None:
        """Write a whole page.

        Args:
            tab: Name of the route whose link is marked.
        """
        self.render(
            template,
            **{"said": "", "problem": "", "every_ms": EVERY_MS, **more},
            tab=tab,
            tabs=TABS,
            at=self.at,
            words=words,
            wording=wording,
            why_not=self.why_not(),
        )


class ButtonPage(Page, ABC):
    """A page with buttons: GET shows it; POST does what a button says and redirects, so a reload repeats nothing."""

    @web.authenticated
    async def get(self) -> None:
        """The page, with what the last button did."""
        await self._show(said=self.said())

    @web.authenticated
    async def post(self) -> None:
        """Do what a button says."""
        if refused := self.why_not():
            raise web.HTTPError(403, refused)
        try:
            await self._do()
        except BadInput as error:
            self.set_status(400)
            await self._show(problem=str(error))
        except StoreUnavailable as error:
            self.set_status(503)
            await self._show(problem=str(error))

    @abstractmethod
    async def _do(self) -> None:
        """Do what the pressed button says, and `say` what was done."""

    @abstractmethod
    async def _show(self, **more: str) -> None:
        """Write the page, with the message `said` or the `problem`."""
