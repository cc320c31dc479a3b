"""How soon does the chart of a lane show a new mode? Measured in Chromium, from the pin until the page shows it.

    python -m benchmarks.follows [--changes 12]

One Valkey, no worker, Flower as a process, the page of figures of one lane in a headless Chromium. A mode is pinned at
a random moment between two refreshes, and the page is checked every 10 ms. The goal is 2 s for the slowest.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from urllib.parse import quote

from benchmarks.goals import beside
from ratelimit_worker.calls import LaneLimits, Mode
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.pin import pin
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.faces.test_flower import LOGIN, flower
from tests.faces.test_flower_browser import Browser, chromium
from tests.fleet import fleet

MOST_S = 2.0
LANE = "openai:gpt-4o"
STRICT = (Mode.EMERGENCY, Mode.REDUCED, Mode.HALT)
#: Notes when tile and chart both show a mode. The clock is the machine's, as Python's is.
LOOK = """
    var wanted = arguments[0];
    window.seenAt = 0;
    var timer = setInterval(function () {
      var shade = document.querySelector("#rlw-chart [data-mode=" + wanted + "]");
      var mode = document.getElementById("rlw-mode");
      if (shade && mode && mode.innerText.trim() === wanted) {
        window.seenAt = Date.now();
        clearInterval(timer);
      }
    }, 10);
"""


def follow(browser: Browser, mode: Mode) -> float:
    """Seconds from a pin until the page shows it."""
    time.sleep(random.uniform(0.0, 2.0))  # between two refreshes
    browser.run(LOOK, mode.value)
    began_s = time.time()
    pin(services().control, mode, lane=LANE, who="benchmark")
    wait_for(lambda: bool(browser.run("return window.seenAt")), timeout_s=120.0, what=f"{mode} is seen")
    return float(browser.run("return window.seenAt")) / 1000 - began_s


def main() -> int:
    """Print each figure with its goal; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=12)
    told = parser.parse_args()
    with fleet() as made, chromium() as browser:
        services().lanes.establish(LANE, limit_fields(LaneLimits(rpm=60)))
        with flower(made.env, made.folder / "flower.log", "--basic-auth", ":".join(LOGIN)) as address:
            login = ":".join(quote(part, safe="") for part in LOGIN)
            browser.open(f"{address.replace('://', f'://{login}@')}/rate-limit/figures?lane={quote(LANE)}&window=15m")
            took = [follow(browser, STRICT[change % len(STRICT)]) for change in range(told.changes)]
    print(f"{told.changes} changes; load {os.getloadavg()[0]:.1f}", flush=True)
    beside("the median", statistics.median(took), MOST_S, "s")
    return int(beside("the slowest", max(took), MOST_S, "s"))


if __name__ == "__main__":
    raise SystemExit(main())
