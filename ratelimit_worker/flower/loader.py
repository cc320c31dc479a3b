"""Adds a link to the navigation of all of Flower's pages: one line in one of its templates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tornado import template

log = logging.getLogger(__name__)

OURS = Path(__file__).parent / "templates"
NAVIGATION = "navbar.html"
LINK = "rate-limit-link.html"
_END_OF_LINKS = "</ul>"


class Loader(template.Loader):
    """Loads templates of this package, or else Flower's; adds a link at the end of the first list of the navigation.

    Args:
        stock: The folder of Flower's templates.
    """

    def __init__(self, stock: Path, **kwargs: Any) -> None:
        super().__init__(str(stock), **kwargs)

    def _create_template(self, name: str) -> template.Template:
        folder = OURS if (OURS / name).is_file() else Path(self.root)
        text = (folder / name).read_text("utf-8")
        if name == NAVIGATION:
            text = with_link(text, (OURS / LINK).read_text("utf-8"))
        return template.Template(text, name=name, loader=self)


def with_link(navigation: str, link: str) -> str:
    """Flower's navigation with `link` as the last entry of its first list; unchanged if there is no list."""
    if _END_OF_LINKS not in navigation:
        log.warning("this Flower's navigation has no list: the page is at /rate-limit, without a link to it")
        return navigation
    before, end, after = navigation.partition(_END_OF_LINKS)
    return f"{before}{link}{end}{after}"
