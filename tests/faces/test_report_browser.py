"""The report of a simulated day in a real browser, in four ways: light, dark, 400 pixels wide, on paper. Pictures are
kept in the folder that RLW_SCREENSHOTS names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report_day
from ratelimit_worker.reports.analytics import write_report
from tests.faces.test_flower_browser import Browser, browser, fits

__all__ = ["browser"]  # the fixture

pytestmark = pytest.mark.browser

SINCE_S = 1_799_971_200.0

#: Pairs of words of an axis that lie on each other, of all charts.
_OVERLAPS = """
const found = [];
for (const axis of document.querySelectorAll('.x, .y')) {
  const seen = [...axis.children].filter(one => one.offsetParent !== null).map(one => one.getBoundingClientRect());
  seen.forEach((a, i) => seen.slice(i + 1).forEach(b => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) found.push([a.x, b.x]);
  }));
}
return found;
"""
#: Luminance of ink and paper, 0 to 255.
_SHADES = """
const style = getComputedStyle(document.body);
const shade = text => text.match(/[0-9.]+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0) / 3;
return [shade(style.color), shade(style.backgroundColor)];
"""
_SMALLEST = """
return Math.min(...[...document.querySelectorAll('body *')].filter(one => one.innerText && !one.children.length)
  .map(one => parseFloat(getComputedStyle(one).fontSize)));
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    url, day = f"sqlite:///{folder}/tracking.db", report_day.simulate(SINCE_S, busy=0.3)
    report_day.write(day, url)
    write_report(report_day.figures(day, url), folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize(
    ("way", "width", "media", "dark"),
    [
        ("light", 1_100, "screen", False),
        ("dark", 1_100, "screen", True),
        ("narrow", 400, "screen", False),
        ("print", 718, "print", True),  # who reads in the dark prints on white paper all the same
    ],
)
def test_it_can_be_read(
    report: Path, browser: Browser, tmp_path: Path, way: str, width: int, media: str, dark: bool
) -> None:
    """Nothing reaches out of the page, no words lie on each other, none is tiny, and ink is far from paper."""
    browser.open(report.as_uri())
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.devtools("Emulation.setEmulatedMedia", media=media, features=scheme)
    browser.resize(width, 900)
    assert fits(browser)
    assert browser.run(_OVERLAPS) == []
    assert browser.run(_SMALLEST) >= 10.5
    ink, paper = browser.run(_SHADES)
    assert (ink > 200 and paper < 50) if way == "dark" else (ink < 60 and paper > 250)
    drawn: list[Any] = browser.run("return [...document.querySelectorAll('svg')].map(one => one.clientWidth)")
    assert len(drawn) == len(("money", "attempts", "latency", "reuse")) + 2 * len(report_day.LANES)
    assert min(drawn) > 200
    height = browser.run("return document.documentElement.scrollHeight")
    browser.resize(width, int(height))
    browser.picture(tmp_path / f"report-{way}.png")
