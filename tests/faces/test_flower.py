"""Flower on an app with lanes: its own pages go on, ours shows and sets modes, and nobody else's page can press it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import create_signed_value

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.cli import main
from ratelimit_worker.flow.lane.limit import Change, set_limits
from ratelimit_worker.flower import loader, roles, wording
from ratelimit_worker.flower.board import Order
from ratelimit_worker.flower.summaries import KEPT, without_answers
from ratelimit_worker.reports.metrics import PREFIX
from ratelimit_worker.wiring import services
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet, free_port

LOGIN = ("ops", "a:pass,word")
FOR_15M: dict[str, Any] = {"for": "15m"}
FOR_1H: dict[str, Any] = {"for": "1h"}


@contextmanager
def flower(env: dict[str, str], log_path: Path, *arguments: str, prefix: str = "") -> Iterator[str]:
    """A real Flower process on the fleet's app; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "ratelimit_worker", "flower", "-A", "tests.fleet_app", "--port", str(port)]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*command, *arguments], env={**os.environ, **env}, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}{prefix}"

    def answers() -> bool:
        assert process.poll() is None, log_path.read_text()
        try:
            return httpx.get(f"{address}/healthcheck", timeout=2.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, timeout_s=120.0, what="Flower answers")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log_path.read_text()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Fleet]:
    """A broker and a worker that sends events."""
    with fleet() as made:
        made.worker("w", "-P", "threads", "-c", "4", "-E")
        yield made


@pytest.fixture(scope="module")
def address(cluster: Fleet) -> Iterator[str]:
    """Flower with a login."""
    with flower(cluster.env, cluster.folder / "flower.log", "--basic-auth", ":".join(LOGIN)) as found:
        yield found


@pytest.fixture
def browser(address: str) -> Iterator[httpx.Client]:
    """A client that is logged in and has the page's cookies."""
    with httpx.Client(base_url=address, auth=LOGIN, timeout=120.0, trust_env=False) as client:
        client.get("/rate-limit").raise_for_status()
        yield client


def command_line(cluster: Fleet, *arguments: str) -> str:
    """What a command prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *arguments],
        env={**os.environ, **cluster.env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def shows(browser: httpx.Client, path: str, words: str) -> bool:
    return words in browser.get(path).text


def press(client: httpx.Client, mode: str, *, headers: dict[str, str] | None = None, **form: Any) -> httpx.Response:
    """Press a button of the page, as a browser does without the script."""
    token = client.cookies.get("_xsrf", "")
    return client.post("/rate-limit", data={"_xsrf": token, "mode": mode, "lane": "", **form}, headers=headers or {})


@pytest.mark.worker
@pytest.mark.parametrize("path", ["/", "/workers", "/tasks", "/broker", "/rate-limit", "/nowhere"])
def test_every_page_has_the_link(browser: httpx.Client, path: str) -> None:
    """Flower's own pages, errors too, lead to ours, and only ours is marked as the one that is open."""
    page = browser.get(path)
    assert page.status_code == (404 if path == "/nowhere" else 200)
    assert 'href="/rate-limit"' in page.text
    assert ('href="/rate-limit" aria-current="page"' in " ".join(page.text.split())) == (path == "/rate-limit")


@pytest.mark.worker
def test_the_broker_page_has_the_stock_address(cluster: Fleet, browser: httpx.Client) -> None:
    """It names the server as stock Celery does, and lists the worker's queue with what lies in it."""
    wait_for(lambda: ">fleet<" in browser.get("/broker").text, timeout_s=120.0, what="the queue is listed")
    page = browser.get("/broker").text
    assert cluster.valkey.url.removesuffix("/0") in page
    assert "lanes://" not in page


@pytest.mark.worker
def test_task_pages_show_neither_prompt_nor_answer(cluster: Fleet, browser: httpx.Client) -> None:
    """Of a call Flower shows a summary; of an ordinary task what it always shows."""
    tasks = cluster.agent()
    call, plain = tasks.echo.delay("Xylophone"), tasks.add.delay(20, 3)
    assert call.get(timeout=120) == "Xylophone"
    assert plain.get(timeout=120) == 23
    for one in (call, plain):
        wait_for(partial(shows, browser, f"/task/{one.id}", "SUCCESS"), timeout_s=120.0, what="Flower saw the end")
    page = browser.get(f"/task/{call.id}").text
    assert "&lt;free, " in page
    rows = browser.get("/tasks/datatable", params={"draw": 1, "start": 0, "length": 50, "search[value]": ""}).text
    for shown in (page, rows, browser.get("/api/tasks").text, browser.get(f"/api/task/info/{call.id}").text):
        assert "Xylophone" not in shown
    assert "23" in browser.get(f"/task/{plain.id}").text


@pytest.mark.worker
def test_a_button_pins_and_auto_gives_back(cluster: Fleet, browser: httpx.Client) -> None:
    """Emergency for all lanes: `status` says so, the history names who and why, escaped; Auto ends it."""
    cluster.agent().echo.delay(1).get(timeout=120)
    done = press(browser, "EMERGENCY", reason="<b>costs</b> & more")
    assert (done.status_code, done.headers["Location"]) == (303, "/rate-limit")
    state = json.loads(command_line(cluster, "status", "--format", "json"))
    assert {lane["mode"] for lane in state["lanes"]} == {"EMERGENCY"}
    page = browser.get("/rate-limit").text
    assert "All lanes are pinned to EMERGENCY until Auto." in page
    assert "All lanes are pinned" not in browser.get("/rate-limit").text  # said once

    def told() -> bool:
        live = browser.get("/rate-limit/live").text
        return "&lt;b&gt;costs&lt;/b&gt; &amp; more" in live and ">ops<" in live

    wait_for(told, timeout_s=120.0, what="the history has it")
    assert press(browser, "AUTO").status_code == 303
    state = json.loads(command_line(cluster, "status", "--format", "json"))
    assert {lane["mode"] for lane in state["lanes"]} == {"NORMAL"}


@pytest.mark.worker
def test_a_button_can_mean_one_lane_for_a_while(cluster: Fleet, browser: httpx.Client) -> None:
    """Only the lane that was chosen is pinned, and with an end."""
    agent = cluster.agent()
    agent.echo.delay(1).get(timeout=120)
    agent.stamp.delay("a").get(timeout=120)
    assert press(browser, "REDUCED", lane="stamp", **FOR_15M).status_code == 303
    assert "Lane stamp is pinned to REDUCED until 2" in browser.get("/rate-limit").text
    modes = {lane["lane"]: lane["mode"] for lane in browser.get("/api/rate-limit").json()["lanes"]}
    assert (modes["stamp"], modes["free"]) == ("REDUCED", "NORMAL")
    assert press(browser, "AUTO", lane="stamp").status_code == 303


@pytest.mark.worker
def test_a_lane_is_only_a_name(cluster: Fleet, browser: httpx.Client) -> None:
    """What looks like HTML is shown as it is written, and can be chosen."""
    lane = '<i>"x"</i>'
    command_line(cluster, "limits", "set", lane, "--rpm", "60")
    wait_for(lambda: "&lt;i&gt;" in browser.get("/rate-limit").text, what="the lane is shown")
    page = browser.get("/rate-limit").text
    assert '<option value="&lt;i&gt;&quot;x&quot;&lt;/i&gt;">' in page
    assert "<i>" not in page
    assert press(browser, "HALT", lane=lane, **FOR_1H).status_code == 303
    assert {one["lane"]: one["mode"] for one in browser.get("/api/rate-limit").json()["lanes"]}[lane] == "HALT"
    assert press(browser, "AUTO", lane=lane).status_code == 303


@pytest.mark.worker
def test_money_is_on_the_page(cluster: Fleet, browser: httpx.Client) -> None:
    """What a lane's budget has left."""
    live, lane = services(), "gpt-money"
    set_limits(live.control, lane, Change(usd_per_month=12.5), LaneLimits())
    row = f'data-money="{lane}"'
    wait_for(lambda: row in browser.get("/rate-limit").text, what="the budget is on the page")
    shown = browser.get("/rate-limit").text
    assert "$12.50 of $12.50 this month" in shown[shown.index(row) :]
    set_limits(live.control, lane, Change(usd_per_month=0), LaneLimits())


def test_the_api_says_what_status_says(cluster: Fleet, browser: httpx.Client) -> None:
    """The same fields, lanes and set-points."""
    cluster.agent().echo.delay(1).get(timeout=120)
    told = json.loads(command_line(cluster, "status", "--format", "json"))
    lanes = [(lane["lane"], lane["limits"]) for lane in told["lanes"]]

    def same() -> bool:  # the page may be a second old
        shown = browser.get("/api/rate-limit").json()["lanes"]
        return [(lane["lane"], lane["limits"]) for lane in shown] == lanes

    wait_for(same, what="Flower shows these lanes")
    api = browser.get("/api/rate-limit")
    assert api.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert api.json().keys() == told.keys()
    for ours, theirs in zip(api.json()["lanes"], told["lanes"], strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["lane"], ours["mode"], ours["limits"]) == (theirs["lane"], theirs["mode"], theirs["limits"])
    assert "Access-Control-Allow-Origin" not in api.headers


@pytest.mark.worker
def test_prometheus_gets_flowers_metrics_and_ours(cluster: Fleet, browser: httpx.Client, address: str) -> None:
    """Both as one text, behind the login; the command has ours on a port of its own, and ends by SIGTERM."""
    assert httpx.get(f"{address}/metrics", timeout=60.0, trust_env=False).status_code == 401
    text = browser.get("/metrics").raise_for_status().text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert "flower_events" in names
    assert PREFIX + "workers" in names
    port = free_port()
    command = [sys.executable, "-m", "ratelimit_worker", "metrics", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **cluster.env}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Metrics: http://127.0.0.1:")
        own = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60.0, trust_env=False).text
        told = {family.name: family for family in text_string_to_metric_families(own)}
        assert [sample.value for sample in told[PREFIX + "workers"].samples] == [1.0]
        up = {sample.labels["of"]: sample.value for sample in told[PREFIX + "up"].samples}
        assert up == {"redis": 1, "database": 1}
        check = httpx.get(f"http://127.0.0.1:{port}/healthcheck", timeout=60.0, trust_env=False)
        assert (check.status_code, check.text) == (200, "OK")
        taken = CliRunner().invoke(main, ["metrics", "--port", str(port)], env=cluster.env)
        assert taken.exit_code == 1
        assert f"cannot listen on 127.0.0.1:{port}" in taken.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        process.communicate()


@pytest.mark.worker
@pytest.mark.parametrize(
    ("headers", "form"),
    [
        ({}, {"_xsrf": ""}),
        ({}, {"_xsrf": "2|00000000|00000000000000000000000000000000|1700000000"}),
        ({"Origin": "http://evil.example"}, {}),
        ({"Origin": "null"}, {}),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}, {}),
        ({"Sec-Fetch-Site": "same-site"}, {}),
        ({"Sec-Fetch-Site": "none"}, {}),
    ],
)
def test_a_foreign_page_cannot_press(browser: httpx.Client, headers: dict[str, str], form: dict[str, str]) -> None:
    """Without the token or from another origin a button does nothing, though the browser sends the login."""
    assert press(browser, "HALT", headers=headers, **form).status_code == 403
    assert all(lane["mode"] != "HALT" for lane in browser.get("/api/rate-limit").json()["lanes"])


@pytest.mark.worker
def test_nobody_without_the_login(browser: httpx.Client, address: str) -> None:
    """Where there is a login, all of it needs the login, token or not."""
    with httpx.Client(base_url=address, cookies=browser.cookies, trust_env=False) as stranger:
        assert press(stranger, "HALT", headers={"Origin": address}).status_code == 401
        assert press(stranger, "HALT", headers={"Authorization": "Basic b3BzOndyb25n"}).status_code == 401
        for path in ("/rate-limit", "/rate-limit/live", "/api/rate-limit"):
            assert stranger.get(path).status_code == 401


@pytest.mark.worker
@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"mode": "PANIC"}, "use NORMAL, REDUCED, EMERGENCY, HALT, AUTO"),
        ({"for": "9y"}, "use 15m, 1h, 4h"),
        ({"reason": "x" * 501}, "use at most 500 characters"),
    ],
)
def test_a_wrong_word_is_said_on_the_page(browser: httpx.Client, form: dict[str, Any], says: str) -> None:
    """400, a sentence, and the page is still there."""
    answer = press(browser, **{"mode": "HALT", **form})
    assert answer.status_code == 400
    assert says in answer.text
    assert 'id="rlw-live"' in answer.text


@pytest.mark.worker
def test_a_button_without_a_lane_is_refused(browser: httpx.Client) -> None:
    """A form that says nothing of the lane does not mean all."""
    token = browser.cookies["_xsrf"]
    assert browser.post("/rate-limit", data={"_xsrf": token, "mode": "HALT"}).status_code == 400


@pytest.mark.worker
def test_nobody_can_frame_it_and_all_is_from_here(browser: httpx.Client) -> None:
    """The page allows no foreign script, style or frame around it, and names no foreign file."""
    page = browser.get("/rate-limit")
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    for asset in ("rate-limit.css", "rate-limit.js"):
        assert f"/rate-limit/static/{asset}" in page.text
        assert browser.get(f"/rate-limit/static/{asset}").is_success
    assert browser.get("/rate-limit/static/../pages.py").status_code != 200
    assert browser.get("/rate-limit/static/%2e%2e/pages.py").status_code != 200


@pytest.mark.worker
def test_without_a_login_it_shows_and_does_nothing(cluster: Fleet) -> None:
    """As Flower's API it does not act without a login. An empty FLOWER_BASIC_AUTH is none; a prefix goes before all."""
    with (
        flower(
            {**cluster.env, "FLOWER_BASIC_AUTH": ""},
            cluster.folder / "open.log",
            "--url_prefix=ops",
            prefix="/ops",
        ) as found,
        httpx.Client(base_url=found, timeout=120.0, trust_env=False) as anybody,
    ):
        page = anybody.get("/rate-limit")
        assert page.status_code == 200
        assert "The buttons are off" in page.text
        assert 'id="rlw-control"' not in page.text
        assert 'href="/ops/rate-limit"' in page.text
        assert httpx.get(f"{found}/rate-limit/static/rate-limit.js", trust_env=False).is_success
        assert press(anybody, "HALT").status_code == 403
        assert anybody.get("/api/rate-limit").status_code == 401
    assert "no login is set" in (cluster.folder / "open.log").read_text()


@pytest.mark.worker
def test_redis_away_is_a_sentence(tmp_path: Path) -> None:
    """The page stays, says what is unknown and that a button did nothing; with Redis all is back."""
    with (
        fleet() as made,
        flower(made.env, tmp_path / "log", "--basic-auth", ":".join(LOGIN)) as found,
        httpx.Client(base_url=found, auth=LOGIN, timeout=120.0, trust_env=False) as client,
    ):
        assert "No lane yet" in client.get("/rate-limit").text
        made.valkey.stop()
        wait_for(lambda: "How the lanes stand is unknown" in client.get("/rate-limit").text, what="it says so")
        assert client.get("/api/rate-limit").status_code == 503
        assert press(client, "HALT").status_code == 503
        made.valkey.start()
        wait_for(lambda: "No lane yet" in client.get("/rate-limit").text, what="it is back")


def test_help_needs_no_flower() -> None:
    """The command is there without the extra; using it says what to install."""
    code = (
        "import sys; from importlib.abc import MetaPathFinder\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'flower' else found(name, *a)\n"
        "from ratelimit_worker.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "flower"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr == "Error: Flower is not installed: pip install 'ratelimit-worker[flower]'\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--basic-auth", "nobody"], "write USER:PASSWORD"), (["--basic-auth", ":x"], "write USER:PASSWORD")],
)
def test_a_login_has_two_parts(arguments: list[str], says: str) -> None:
    """A usage error that does not repeat what may be a password."""
    done = CliRunner().invoke(main, ["flower", *arguments])
    assert done.exit_code == 2
    assert says in done.output
    assert "nobody" not in done.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--prot=1"], 2, "Flower has no option '--prot'"),
        (["-A", "nowhere_at_all"], 78, "-A nowhere_at_all: "),
        ([], 78, "no Redis: set MAISD_REDIS_URL"),
    ],
)
def test_what_is_wrong_is_said_at_once(arguments: list[str], code: int, says: str) -> None:
    """Before anything listens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAISD_", "CELERY_"))}
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", "flower", *arguments],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_link_goes_into_the_first_list() -> None:
    """Once; a navigation without a list stays as it is."""
    assert loader.with_link("<ul>a</ul><ul>b</ul>", "+") == "<ul>a+</ul><ul>b</ul>"
    assert loader.with_link("<p>a</p>", "+") == "<p>a</p>"


def test_answers_are_taken_out_of_calls_only() -> None:
    """Before the deployment's own format_task sees them."""
    seen: list[str] = []

    def own(task: SimpleNamespace) -> SimpleNamespace:
        seen.append(task.result)
        return task

    format_task = without_answers(lambda name: name == "call", own)
    format_task(SimpleNamespace(name="call", result="'answer'"))
    format_task(SimpleNamespace(name="plain", result="23"))
    format_task(SimpleNamespace(name="call", result=None))
    assert seen == [KEPT, "23", None]


@pytest.mark.parametrize(
    ("order", "until", "says"),
    [
        (Order(mode=Mode.HALT, lane=None, who="w"), None, "All lanes are pinned to HALT until Auto."),
        (Order(mode=Mode.NORMAL, lane="x", who="w"), 60.0, "until 1970-01-01 00:01:00 UTC."),
        (Order(mode=None, lane="x", who="w"), None, "Lane x is given back to the law."),
    ],
)
def test_what_was_done_is_a_sentence(order: Order, until: float | None, says: str) -> None:
    """Which lanes, what, and until when."""
    change = ModeChange(id="i", lane="x", from_mode=Mode.NORMAL, to_mode=Mode.NORMAL, at=0.0, cause="c", until=until)
    assert says in wording.done(order, [change])


def test_flower_keeps_as_many_tasks_as_fit_into_its_memory() -> None:
    """Its own default is 100,000, which took 650 MB; who wants more says so."""
    code = (
        "from ratelimit_worker.flower.serve import _read_options, options\n"
        "for more in ([], ['--max_tasks=5']):\n"
        "    _read_options(None, None, (), more)\n"
        "    print(options.max_tasks)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert made.stdout.split() == ["8000", "5"]


def asked(method: str, path: str, headers: dict[str, str]) -> HTTPServerRequest:
    """A request as Tornado has read it."""
    start_line = RequestStartLine(method, path, "HTTP/1.1")
    return HTTPServerRequest(start_line=start_line, headers=HTTPHeaders({"Host": "flower", **headers}))


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"Authorization": "Basic b3BzOmE6cGFzcyx3b3Jk"}, "ops"),
        ({"Authorization": "Basic !"}, ""),
        ({"Authorization": "Bearer b3BzOmE="}, ""),
        ({"Cookie": "user=ops"}, ""),  # nobody has signed it
        ({}, ""),
    ],
)
def test_a_name_is_claimed_by_a_login_alone(headers: dict[str, str], wanted: str) -> None:
    """Of basic auth the user, of Flower's own login whom its signed cookie names."""
    request = asked("POST", "/rate-limit", headers)
    assert roles.claimed_name(request, "secret") == wanted


def test_a_signed_cookie_names_whom_oauth_has_let_in() -> None:
    """For as long as Flower's login holds."""
    cookie = create_signed_value("secret", "user", "ann@example.org").decode()
    request = asked("POST", "/", {"Cookie": f"user={cookie}"})
    assert roles.claimed_name(request, "secret") == "ann@example.org"
    assert roles.claimed_name(request, "another") == ""


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/rate-limit/calls", False),
        ("HEAD", "/", False),
        ("POST", "/rate-limit", True),
        ("POST", "/api/worker/shutdown/w", True),
        ("DELETE", "/api/anything", True),
        ("GET", "/api/task/result/1", True),
        ("GET", "/api/tasks", False),
    ],
)
def test_what_changes_something_is_for_operators(method: str, path: str, wanted: bool) -> None:
    """And answers of calls, which may repeat what was asked."""
    request = asked(method, path, {})
    assert roles.is_for_operators(request) is wanted
    assert roles.may_operate("eve", ())
    assert not roles.may_operate("eve", ("ops", "ann"))
    assert roles.may_operate("ann", ("ops", "ann"))
