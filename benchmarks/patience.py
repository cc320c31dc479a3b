"""What does it cost to wait for a long Retry-After? Many calls of a lane wait for it, while another lane goes on.

    python benchmarks/patience.py [calls [seconds]]      (20,000 calls and 75 s by default)

The first calls of a lane get a 429 with Retry-After; all others wait in the lane. Measured meanwhile: the worker's
memory compared with that of an idle one; the p95 of another lane's round trips compared with those without waiting
calls (medians of ROUNDS); and, with a visibility timeout of 30 s, which calls were delivered again. At the end all
calls are answered, without a pace, to save time.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.promises import all_answered, limit, rss_kb, say  # noqa: E402
from ratelimit_worker.simulate import Entry, Fault, Scenario, Simulator  # noqa: E402
from ratelimit_worker.wiring import services  # noqa: E402
from tests.conftest import wait_for  # noqa: E402
from tests.fleet import fleet  # noqa: E402

ROUNDS, ROUND = 9, 200
LEASE_S = 30


def p95_ms(tasks: Any) -> float:
    """The p95 of round trips through another lane, one after the other, as the median of ROUNDS."""
    rounds = []
    for _ in range(ROUNDS):
        took = []
        for n in range(ROUND):
            start = time.perf_counter()
            tasks.echo.delay(n).get(timeout=30)
            took.append(time.perf_counter() - start)
        rounds.append(quantiles(took, n=20)[18] * 1000)
    return median(rounds)


def main(calls: int = 20_000, seconds: float = 75.0) -> None:
    """Run it once and print a line."""
    refusal = Entry(for_s=seconds - 10, fault=Fault.RATE_LIMITED, retry_after_s=seconds, match="question wait")
    provider = Simulator(Scenario(latency="0.02", timeline=(refusal,)))
    with provider, fleet(OPENAI_BASE_URL=provider.base_url, MAISD_VISIBILITY_TIMEOUT_SECONDS=str(LEASE_S)) as made:
        worker = made.worker("w", "-P", "threads", "-c", "16", "-l", "WARNING", wait=False)
        tasks = made.agent()
        limit("chat", 400)
        limit("free", None)
        all_answered([tasks.chat.delay(f"warm {n}") for n in range(300)])
        p95_ms(tasks)  # warm
        alone, idle = p95_ms(tasks), rss_kb(worker)
        start = time.time()
        results = [tasks.chat.delay(f"wait {n}") for n in range(calls)]
        sent = time.time() - start
        gc.freeze()  # this process has all results in memory, and its own garbage collector must not be measured
        time.sleep(10)  # until the server has processed all that was sent, and rewritten its AOF
        beside, waiting = p95_ms(tasks), rss_kb(worker)
        measured = time.time() - start
        wait_for(lambda: any(result.ready() for result in results[:100]), seconds + 60, "the first is answered")
        limit("chat", None)
        lost = all_answered(results, 600.0)
        arrivals = [one for one in provider.arrivals() if one.unix >= start]
        first = min(one.unix for one in arrivals if one.good) - start
        assert first > measured, "the lane opened while it was measured: take more seconds"
        answers = Counter(one.body for one in arrivals if one.good)
        refused = len(arrivals) - sum(answers.values())
        say(
            f"{calls:,} calls wait for a Retry-After of {seconds:.0f} s, visibility timeout {LEASE_S} s",
            sent_in=f"{sent:.1f} s",
            measured_until=f"{measured:.1f} s",
            first_answer_after=f"{first:.1f} s",
            refused=refused,
            rss_idle=f"{idle} kB",
            rss_waiting=f"{waiting / idle:.3f} ×",
            p95_alone=f"{alone:.2f} ms",
            p95_beside=f"{beside:.2f} ms ({beside / alone:.2f} ×)",
            delivered_again=services().lanes.counters().get("restored", 0),
            answered_twice=sum(n > 1 for n in answers.values()),
            lost=lost,
        )


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:], strict=False)))
