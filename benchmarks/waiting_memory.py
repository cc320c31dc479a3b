"""How much memory of Redis does a waiting call take? The server counts it, so the machine need not be quiet.

    python benchmarks/waiting_memory.py [--calls 1000]

Calls of `chat_completion`, each with a prompt of random letters, are sent to a server without workers; the growth of
its `used_memory` is divided by their number. Goal: at most 4 kB in addition to the prompt.
"""

from __future__ import annotations

import argparse
import random
import string
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ratelimit_worker import make_app
from tests.fleet import Valkey, fleet

GOAL_BYTES = 4_000  #: of a call, in addition to its prompt
PROMPTS = (10, 1_000, 10_000)  #: letters


def bytes_per_call(task: Any, valkey: Valkey, calls: int, letters: int) -> float:
    """Mean memory of each of so many waiting calls, bytes."""
    before = _used(valkey)
    for _ in range(calls):
        prompt = "".join(random.choices(string.ascii_lowercase + " ", k=letters))
        task.delay(model="gpt-4o-mini", max_tokens=20, messages=[{"role": "user", "content": prompt}])
    return (_used(valkey) - before) / calls


def _used(valkey: Valkey) -> int:
    told: Any = valkey.client.info("memory")
    return int(told["used_memory"])


def main() -> int:
    """Measure each length, and compare with the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000)
    calls = parser.parse_args().calls
    missed = False
    with fleet() as made:
        app = make_app()
        app.loader.import_default_modules()
        task = app.tasks["ratelimit_worker.chat_completion"]
        bytes_per_call(task, made.valkey, 100, 10)  # scripts are loaded, tables have their first size
        for letters in PROMPTS:
            each = bytes_per_call(task, made.valkey, calls, letters)
            beside = max(0.0, each - letters)
            missed |= beside > GOAL_BYTES
            verdict = "MISSED" if beside > GOAL_BYTES else "met"
            print(f"prompt of {letters:,} letters: {each:,.0f} bytes a call (goal {GOAL_BYTES:,} beside it: {verdict})")
        made.valkey.client.flushall()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
