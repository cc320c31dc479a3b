"""Explore with the property tests for as long as told: `make fuzz MINUTES=20`.

Round after round, each with a new seed, in an order of its own. It ends when a round has failed (exit code 1, the seed
and the command that finds the failure again), or when the time is over (exit code 0, what was tried).
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time

from tests import properties
from tests.builders import ROOT

NOTHING_RAN = 5  #: pytest's exit code when no test was selected


def command(seed: int, more: list[str]) -> list[str]:
    """One round: every property test, or those that `more` (arguments of pytest) selects."""
    profile = ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]
    return [sys.executable, "-m", "pytest", "-q", "-m", "fuzz", *profile, *more]


def main() -> int:
    """Explore → exit code."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="All else goes to pytest: -k NAME, -n 2, a file.")
    parser.add_argument("--minutes", type=float, default=20.0, help="explore for so long (default: 20)")
    parser.add_argument("--seed", type=int, help="one round with this seed, to the end")
    told, more = parser.parse_known_args()
    until = float("inf") if told.seed is not None else time.time() + told.minutes * 60
    rounds = examples = 0
    while time.time() < until:
        seed = secrets.randbits(64) if told.seed is None else told.seed
        rounds += 1
        print(f"round {rounds}: seed {seed}", flush=True)
        done = subprocess.run(
            command(seed, more),
            cwd=ROOT,
            env={**os.environ, properties.UNTIL: str(until)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        tried = properties.SUMMARY.search(done.stdout)
        if done.returncode != 0 or tried is None:
            print(done.stdout)
            again = f'make fuzz SEED={seed} ARGS="{" ".join(more) or "-k NAME"}"'
            print(f"round {rounds} failed with seed {seed} (pytest: {done.returncode}); again: {again}", flush=True)
            return 1
        examples += int(tried[1])
        print(f"  {tried[0]}", flush=True)
        if told.seed is not None:
            break
    print(f"nothing found: {rounds} rounds, {examples} examples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
