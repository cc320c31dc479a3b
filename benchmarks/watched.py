"""What does a lane learn from calls in a team's own functions? The openai SDK in a task, with and without `watch`.

    python benchmarks/watched.py [--calls 600] [--rpm 1200] [--seeds 0 1 2] [--who plain watched built-in]

The built-in task is measured too. Each run: a simulated provider with OpenAI's headers and a limit that is not
configured, and two workers of 16 threads, in an environment of its own (.race/watched). *of the oracle*: the least time
in which the calls can be answered, divided by the time from the first request to the last answer. *429s*: of all
requests. *tokens*: those in the tracking database, of those that the provider has counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.race.batch import tied  # noqa: E402
from benchmarks.race.clients import ENVIRONMENTS, HERE, Client, environment  # noqa: E402
from ratelimit_worker.simulate import HeaderStyle, Scenario, Simulator  # noqa: E402
from ratelimit_worker.simulate.oracle import oracle_time_s  # noqa: E402

WHO = {"plain": ("own", "no"), "watched": ("own", "yes"), "built-in": ("built-in", "no")}


def run(who: str, scenario: Scenario, calls: int) -> str:
    """One run, as a row of the table.

    Raises:
        RuntimeError: The client failed.
    """
    task, watch = WHO[who]
    with tempfile.TemporaryDirectory(prefix="watched-", dir="/tmp") as name, Simulator(scenario) as provider:
        folder = Path(name)
        more = {"OPENAI_BASE_URL": provider.base_url, "RACE_WATCH": watch, "MAISD_STATE_DIR": str(folder / "state")}
        command = [str(ENVIRONMENTS / "watched" / "bin" / "python"), str(HERE / "client_watched.py")]
        done = subprocess.run(
            tied([*command, str(folder), str(calls), task]),
            env=environment(folder) | more,
            capture_output=True,
            text=True,
            check=False,
        )
        log = provider.arrivals()
        if done.returncode:
            logs = "".join(path.read_text("utf-8", "replace")[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"{who}: {done.stderr[-2000:]}{logs}")
    told = json.loads(done.stdout.splitlines()[-1])
    good = [arrival for arrival in log if arrival.status == 200]
    took_s = max(arrival.t + arrival.latency_s for arrival in good) - min(arrival.t for arrival in log)
    least_s = oracle_time_s(scenario, calls)
    counted = sum(arrival.input_tokens + arrival.output_tokens for arrival in good)
    tracked = told["input_tokens"] + told["output_tokens"]
    refused = sum(arrival.status == 429 for arrival in log)
    return (
        f"| {who} | {scenario.seed} | {len(good)} of {calls} | {took_s:.1f} s | {100 * least_s / took_s:.1f} % "
        f"| {len(log)} | {refused} ({100 * refused / len(log):.2f} %) | {tracked:,} of {counted:,} "
        f"| {os.getloadavg()[0]:.1f} |"
    )


def main() -> None:
    """Run what the command line names, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--rpm", type=float, default=1200)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    given = parser.parse_args()
    Client("watched", "watched", None).prepare()
    scenario = Scenario(rpm=given.rpm, latency="lognormal(0.25, 0.4)", headers=HeaderStyle.OPENAI)
    print(f"{given.calls} calls, {given.rpm:g}/min, {time.strftime('%Y-%m-%d %H:%M')}")
    print("| client | seed | answered | took | of the oracle | requests | 429s | tokens | load |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in given.seeds:
        for who in given.who:
            print(run(who, replace(scenario, seed=seed), given.calls), flush=True)


if __name__ == "__main__":
    main()
