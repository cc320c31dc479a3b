"""The page "Rate limit" in a real browser: it loads, Emergency is clicked, `status` says so. Pictures are kept."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx2 as httpx
import pytest
from celery.exceptions import TaskRevokedError

from ratelimit_worker import wiring
from ratelimit_worker.calls import LaneLimits, Mode
from ratelimit_worker.config import read_settings
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from tests.builders import entry
from tests.conftest import wait_for
from tests.faces.test_flower import LOGIN, flower
from tests.fleet import Fleet, fleet, free_port

pytestmark = [pytest.mark.browser, pytest.mark.worker]

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver's name for a reference
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--window-size=1280,800",
)


class Browser:
    """Headless Chromium over WebDriver's HTTP."""

    def __init__(self, driver_url: str, folder: Path) -> None:
        self._client = httpx.Client(base_url=driver_url, timeout=120.0, trust_env=False)
        arguments = [*_FLAGS, f"--user-data-dir={folder}"]
        answer = self._ask(
            "POST", "/session", capabilities={"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        )
        self._session = f"/session/{answer['sessionId']}"

    def open(self, url: str) -> None:
        """Go there."""
        self._ask("POST", f"{self._session}/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._ask("POST", f"{self._session}/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        """Click as a mouse does: the element must be in sight."""
        self._ask("POST", f"{self._element(selector)}/click")

    def write(self, selector: str, text: str) -> None:
        """Type."""
        self._ask("POST", f"{self._element(selector)}/value", text=text)

    def keys(self, actions: list[dict[str, str]]) -> None:
        """Press and let go of keys, where the focus is."""
        self._ask("POST", f"{self._session}/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def text(self, selector: str) -> str:
        """What can be read there; nothing where it is not there (yet). In one step, since the page renews its parts."""
        found: str = self.run("return document.querySelector(arguments[0])?.innerText.trim() ?? ''", selector)
        return found

    def resize(self, width: int, height: int) -> None:
        """The size of what is seen, also below what a window may have at least."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def devtools(self, command: str, **parameters: Any) -> None:
        """A command of Chromium's own."""
        self._ask("POST", f"{self._session}/goog/cdp/execute", cmd=command, params=parameters)

    def picture(self, path: Path) -> None:
        """What is seen, as PNG; also in the folder that RLW_SCREENSHOTS names."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))
        if folder := os.environ.get("RLW_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)

    def close(self) -> None:
        """End it."""
        self._ask("DELETE", self._session)
        self._client.close()

    def _element(self, selector: str) -> str:
        found = self._ask("POST", f"{self._session}/element", using="css selector", value=selector)
        return f"{self._session}/element/{found[_ELEMENT]}"

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self._client.request(method, path, json=None if method != "POST" else body)
        assert answer.is_success, answer.text
        return answer.json()["value"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Without it: skipped on a laptop, a failure where CI is set."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        why = "Chromium is not installed (apt-get install chromium chromium-driver): its tests cannot run"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with chromium() as opened:
        yield opened


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium of its own."""
    folder, port = Path(tempfile.mkdtemp(prefix="rlw-chromium-")), free_port()
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return bool(httpx.get(f"{url}/status", trust_env=False).json()["value"]["ready"])
        except httpx.TransportError:
            return False

    try:
        wait_for(ready, timeout_s=120.0, what="chromedriver is ready")
        opened = Browser(url, folder / "profile")
        try:
            yield opened
        finally:
            opened.close()
    finally:
        driver.terminate()
        driver.wait(timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Fleet]:
    """A broker of its own: these tests begin without a lane."""
    with fleet() as made:
        yield made


@pytest.fixture
def page(cluster: Fleet) -> Iterator[str]:
    """The address of the page, with the login in it."""
    with flower(cluster.env, cluster.folder / "flower.log", "--basic-auth", ":".join(LOGIN)) as address:
        user, password = (quote(part, safe="") for part in LOGIN)
        yield f"{address.replace('://', f'://{user}:{password}@')}/rate-limit"


def modes(cluster: Fleet) -> dict[str, str]:
    """Lane → mode, as `status` says."""
    services = wiring.services()
    engine = engine_for(services.settings.database_url)
    state, _ = status(Sources.of(Queries(engine), Live(services.redis)))
    engine.dispose()
    return {lane.lane: lane.mode.value for lane in state.lanes}


def lanes_shown(browser: Browser) -> list[str]:
    """The lanes of the table, in their order."""
    shown: list[str] = browser.run(
        "return Array.from(document.querySelectorAll('#rlw-lanes [data-lane]'), row => row.dataset.lane)"
    )
    return shown


def fits(browser: Browser) -> bool:
    """Whether nothing reaches out of the page's width."""
    return bool(browser.run("return document.documentElement.scrollWidth <= window.innerWidth"))


def test_emergency_is_clicked_and_status_says_so(cluster: Fleet, page: str, browser: Browser, tmp_path: Path) -> None:
    """From no lane, over Emergency for all and Auto for one, to changes made elsewhere: seen without a reload."""
    browser.resize(1280, 800)
    browser.open(page)
    assert browser.text("#rlw-empty").startswith("No lane yet")
    assert browser.text("a.nav-link.active") == "Rate limit"
    browser.run("window.sameDocument = true")
    browser.picture(tmp_path / "rate-limit-empty.png")

    cluster.worker("w", "-P", "threads", "-c", "4", "-E")
    agent = cluster.agent()
    control = wiring.services().control
    for task, argument in ((agent.echo, 1), (agent.stamp, "a"), (agent.hush, "p")):
        task.delay(argument).get(timeout=120)
    wait_for(
        lambda: browser.run("return document.querySelectorAll('#rlw-lanes [data-lane]').length") == 3,
        what="the lanes come by themselves",
    )
    assert browser.run("return Array.from(document.getElementById('rlw-lane').options, o => o.value)") == [
        *("", "free", "hush", "stamp")
    ]

    browser.write("[name=reason]", "provider <sick> & slow")
    browser.click("button[value=EMERGENCY]")
    wait_for(lambda: browser.text("#rlw-said") == "All lanes are pinned to EMERGENCY until Auto.", what="it is said")
    assert browser.run("return window.sameDocument") is None  # a plain form
    assert modes(cluster) == {"free": "EMERGENCY", "hush": "EMERGENCY", "stamp": "EMERGENCY"}
    assert browser.text("[data-lane=free] .rlw-mode") == "EMERGENCY"
    assert browser.text("[data-lane=free] .rlw-chip") == "pinned by hand"
    assert browser.text("#rlw-strictest") == "EMERGENCY"

    browser.run("window.sameDocument = true")
    browser.run("document.getElementById('rlw-lane').value = 'hush'")
    for number in range(12):
        agent.stamp.delay(str(number))
    wait_for(
        lambda: "“provider <sick> & slow”" in browser.text("#rlw-live"), timeout_s=120.0, what="the history tells why"
    )
    assert browser.run("return document.getElementById('rlw-lane').value") == "hush"  # what is chosen stays
    pin(control, Mode.REDUCED, lane="free", for_s=900.0, reason="nightly batch", who="ann")
    auto(control, lane="hush", reason="recovered", who="law-abiding")
    wait_for(lambda: browser.text("[data-lane=free] .rlw-mode") == "REDUCED", what="a change made elsewhere is seen")
    wait_for(lambda: "nightly batch" in browser.text("#rlw-history"), timeout_s=120.0, what="and told")
    assert browser.run("return window.sameDocument") is True
    assert browser.text("#rlw-refreshed") == "Live"
    assert browser.text("#rlw-workers") == "1 / 4"
    assert fits(browser)
    browser.picture(tmp_path / "rate-limit.png")
    for width in (768, 900, 1_024, 1_100):
        browser.resize(width, 800)
        wait_for(lambda: fits(browser), what=f"it fits {width} px")

    browser.resize(390, 844)
    wait_for(lambda: fits(browser), what="it fits a phone")
    browser.picture(tmp_path / "rate-limit-phone.png")
    browser.run("window.scrollTo({top: document.body.scrollHeight / 3, behavior: 'instant'})")
    browser.picture(tmp_path / "rate-limit-phone-lanes.png")
    browser.resize(1280, 800)
    browser.run("document.documentElement.dataset.bsTheme = 'dark'; window.scrollTo({top: 0, behavior: 'instant'})")
    browser.picture(tmp_path / "rate-limit-dark.png")

    browser.run("document.getElementById('rlw-lane').value = ''")
    browser.click("button[value=AUTO]")
    normal = {"free": "NORMAL", "hush": "NORMAL", "stamp": "NORMAL"}
    wait_for(lambda: modes(cluster) == normal, what="the lanes are the law's again")
    assert browser.run("return document.querySelectorAll('.rlw-problem').length") == 0


def press(browser: Browser, key: str) -> None:
    """A key, where the focus is."""
    codes = {"Tab": "\ue004", "Enter": "\ue007", "Space": " "}
    keys = [{"type": kind, "value": codes[key]} for kind in ("keyDown", "keyUp")]
    browser.keys(keys)


def focus_on(browser: Browser, element_id: str) -> None:
    """Go on by Tab until an element has the focus."""
    for _ in range(150):  # each lane of a page is a link
        if browser.run("return document.activeElement.id") == element_id:
            return
        press(browser, "Tab")
    raise AssertionError(f"Tab does not come to {element_id}")


def test_many_lanes_have_pages_and_a_filter_by_keyboard(
    cluster: Fleet, page: str, browser: Browser, tmp_path: Path
) -> None:
    """120 lanes: fifties, the halted one first; Next by Tab and Enter; a filter that buttons come back to; a phone."""
    services = wiring.Services(read_settings(cluster.env))
    for number in range(120):
        services.lanes.establish(f"team-{number:03}", limit_fields(LaneLimits()))
    pin(services.control, Mode.HALT, lane="team-119", who="ann")
    browser.resize(1280, 800)
    browser.open(page)
    assert lanes_shown(browser)[0] == "team-119"
    assert len(lanes_shown(browser)) == 50
    assert browser.text("#rlw-left-out") == "Lanes 1 to 50 of 120 (1 HALT, 119 NORMAL)"
    assert browser.text("#rlw-strictest") == "HALT"
    assert browser.run("return document.documentElement.outerHTML.length") < 200_000
    focus_on(browser, "rlw-next")
    html = browser.run("return document.querySelector('#rlw-live table').dataset.seen = 'before'")
    assert html == "before"
    wait_for(
        lambda: not browser.run("return document.querySelector('#rlw-live table').dataset.seen"), what="it is renewed"
    )
    assert browser.run("return document.activeElement.id") == "rlw-next"  # the focus stays
    press(browser, "Enter")
    wait_for(lambda: browser.text("#rlw-left-out").startswith("Lanes 51 to 100 of 120"), what="the next page")
    assert lanes_shown(browser)[0] == "team-049"
    browser.picture(tmp_path / "rate-limit-page.png")

    focus_on(browser, "rlw-find-text")
    browser.write("#rlw-find-text", "TEAM-10")
    press(browser, "Enter")
    wait_for(lambda: browser.text("#rlw-left-out").startswith("Lanes 1 to 10 of 10 with “TEAM-10”"), what="the filter")
    assert lanes_shown(browser) == [f"team-{number}" for number in range(100, 110)]
    browser.run("document.getElementById('rlw-lane').value = 'team-103'")
    browser.click("button[value=REDUCED]")
    wait_for(lambda: "team-103 is pinned to REDUCED" in browser.text("#rlw-said"), what="it is said")
    assert lanes_shown(browser)[0] == "team-103"
    assert len(lanes_shown(browser)) == 10  # the filter stays
    browser.resize(400, 844)
    wait_for(lambda: fits(browser), what="it fits a phone")
    browser.picture(tmp_path / "rate-limit-filter-phone.png")
    browser.open(f"{page}?page=2")
    wait_for(lambda: fits(browser), what="pages fit a phone")
    browser.picture(tmp_path / "rate-limit-page-phone.png")
    browser.open(f"{page}?find=%3Ci%3Enobody&page=99")
    assert browser.text("#rlw-none") == "No lane has “<i>nobody” in its name."
    browser.resize(1280, 800)


#: Figures of tiles that reach out of their tile.
TOO_WIDE = (
    "return Array.from(document.querySelectorAll('.metric-value'))"
    ".filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
)
HOSTILE = ("x" * 200, "<img src=x onerror=window.hurt=1>", "\"quoted\" & 'single'", "مسار-gpt", "🦜🔥", "two  spaces ")


def test_names_of_any_kind_stay_on_the_page_and_are_only_text(cluster: Fleet, page: str, browser: Browser) -> None:
    """As long as they may be, of markup, right to left: each page fits, also 400 px wide, and finds the lane."""
    services = wiring.Services(read_settings(cluster.env))
    for name in HOSTILE:
        services.lanes.establish(name, limit_fields(LaneLimits(rpm=60)))
        services.lanes.enqueue(entry(f"call of {name[:40]}", lane=name))
    pin(services.control, Mode.EMERGENCY, lane=HOSTILE[1], who="<b>ann", reason="<script>window.hurt=1</script>" * 9)
    for width in (1280, 400):
        browser.resize(width, 900)
        named = (f"?find={HOSTILE[0]}", f"/calls?lane={HOSTILE[0]}", f"/call?id={'<b>' * 99}")
        for path in ("", "/calls", "/alerts", *named):
            browser.open(page + path)
            wait_for(lambda: fits(browser), what=f"{path[:40]} fits")
        for name in HOSTILE:
            browser.open(f"{page}/figures?{urlencode({'lane': name})}")
            wait_for(lambda: fits(browser), what=f"figures of {name[:40]} fit")
            assert browser.text("#rlw-mode") == ("EMERGENCY" if name == HOSTILE[1] else "NORMAL")
            assert browser.run(TOO_WIDE) == []
            assert browser.run("return document.getElementById('rlw-live').dataset.everyMs") == "1000"
    assert browser.run("return window.hurt ?? 0") == 0
    browser.resize(1280, 800)


def test_redis_away_is_said_without_a_reload(cluster: Fleet, page: str, browser: Browser) -> None:
    """And it comes back by itself."""
    browser.open(page)
    cluster.valkey.stop()
    wait_for(lambda: "How the lanes stand is unknown" in browser.text("#rlw-live"), timeout_s=120.0, what="it says so")
    cluster.valkey.start()
    wait_for(lambda: "No lane yet" in browser.text("#rlw-live"), timeout_s=120.0, what="it is back")


VIEWER = ("eve", "looks on")


@pytest.fixture
def addresses(cluster: Fleet) -> Iterator[tuple[str, str, str]]:
    """Flower's address; with the login of an operator, and of a viewer."""
    logins = [word for login in (LOGIN, VIEWER) for word in ("--basic-auth", ":".join(login))]
    env = {**cluster.env, "MAISD_FLOWER_OPERATORS": LOGIN[0]}
    with flower(env, cluster.folder / "flower.log", *logins) as address:
        both = (":".join(quote(part, safe="") for part in login) for login in (LOGIN, VIEWER))
        yield (address, *(address.replace("://", f"://{login}@") for login in both))  # type: ignore[misc]


def choose_all_and(browser: Browser, button: str, most: int) -> None:
    """By keyboard alone: all calls of the page, then a button."""
    focus_on(browser, "rlw-choose-all")
    press(browser, "Space")
    assert browser.text("#rlw-chosen") == f"{most} chosen"
    focus_on(browser, button)
    press(browser, "Enter")


def test_an_operator_cancels_and_runs_again_by_keyboard_and_a_viewer_looks(
    cluster: Fleet, addresses: tuple[str, str, str], browser: Browser, tmp_path: Path
) -> None:
    """50 that wait, 10 that failed; the chart follows a mode set elsewhere; whom nobody named may press nothing."""
    bare, operators, viewers = addresses
    cluster.worker("w", "-P", "threads", "-c", "8")
    agent = cluster.agent()
    control = wiring.services().control
    pin(control, Mode.HALT, lane="stamp", who="ann")
    waiting = [agent.stamp.delay(str(number)) for number in range(50)]
    failed = [agent.ruled.delay("invalid_request", 10) for _ in range(10)]
    for call in failed:
        with pytest.raises(Exception, match="invalid_request"):
            call.get(timeout=120)

    browser.resize(1280, 800)
    browser.open(f"{operators}/rate-limit/calls?lane=stamp")
    choose_all_and(browser, "rlw-cancel", 50)
    wait_for(lambda: browser.text("#rlw-said") == "50 of 50 calls cancelled.", timeout_s=120.0, what="it is said")
    for call in waiting:
        with pytest.raises(TaskRevokedError):
            call.get(timeout=120)

    def open_failed() -> bool:
        browser.open(f"{operators}/rate-limit/calls?state=failed")
        return bool(browser.run("return document.querySelectorAll('[name=call]').length") == 10)

    wait_for(open_failed, timeout_s=120.0, what="they are on record")
    browser.picture(tmp_path / "calls.png")
    choose_all_and(browser, "rlw-again", 10)
    wait_for(lambda: "10 of 10 calls on their way again." in browser.text("#rlw-said"), timeout_s=120.0, what="said")
    assert sorted(agent.ruled.AsyncResult(call.id).get(timeout=120) for call in failed) == list(range(10, 20))
    browser.open(f"{operators}/rate-limit/call?id={failed[0].id}")
    wait_for(lambda: browser.text("#rlw-where") in {"answered", "failed"}, what="one call is shown")
    assert browser.run("return document.querySelectorAll('#rlw-steps [data-kind]').length") >= 1

    browser.open(f"{operators}/rate-limit/figures?lane=stamp&window=15m")
    browser.run("window.sameDocument = true")
    assert browser.text("#rlw-mode") == "HALT"
    shaded = "return document.querySelectorAll('#rlw-chart [data-mode=EMERGENCY]').length"
    assert browser.run(shaded) == 0
    pin(control, Mode.EMERGENCY, lane="stamp", for_s=900.0, reason="nightly", who="ann")
    wait_for(lambda: browser.run(shaded) == 1, timeout_s=120.0, what="the chart follows")
    wait_for(lambda: browser.text("#rlw-mode") == "EMERGENCY", timeout_s=120.0, what="the mode is told")
    assert browser.run("return window.sameDocument") is True
    assert browser.run("return document.documentElement.outerHTML.length") < 200_000
    browser.resize(400, 844)
    wait_for(lambda: fits(browser), what="it fits a phone")
    for path in ("calls", "figures", f"call?id={failed[0].id}"):
        browser.open(f"{operators}/rate-limit/{path}")
        wait_for(lambda: fits(browser), what="it fits a phone")
    browser.resize(1280, 800)
    assert external(browser) == []

    # Last: Chromium goes on with the login that it had first when it sends a form to the same server.
    pin(control, Mode.HALT, lane="hush", who="ann")
    kept = [agent.hush.delay("p") for _ in range(3)]
    browser.open(f"{viewers}/rate-limit/calls?lane=hush")
    assert browser.run("return document.querySelectorAll('#rlw-calls [data-state=waiting]').length") == 3
    assert browser.run("return document.querySelectorAll('#rlw-calls-form button, [name=call]').length") == 0
    assert "eve may look" in browser.text("#rlw-why-not")
    with httpx.Client(base_url=bare, auth=VIEWER, timeout=120.0, trust_env=False) as eve:
        token = eve.get("/rate-limit/calls").cookies["_xsrf"]
        for path, form in (
            ("/rate-limit/calls", {"action": "cancel", "call": kept[0].id}),
            ("/rate-limit", {"mode": "HALT", "lane": ""}),
            (f"/api/task/revoke/{kept[0].id}", {}),
        ):
            assert eve.post(path, data={"_xsrf": token, **form}).status_code == 403
        assert eve.get(f"/api/task/result/{failed[0].id}").status_code == 403
        assert eve.get("/api/rate-limit").status_code == 200
    assert modes(cluster)["stamp"] == "EMERGENCY"


def external(browser: Browser) -> list[str]:
    """What the page has fetched from another host."""
    found: list[str] = browser.run(
        "return performance.getEntriesByType('resource').map(one => one.name)"
        ".filter(name => !name.startsWith('data:') && new URL(name).host !== location.host)"
    )
    return found
